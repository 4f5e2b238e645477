"""Large memory pages for large arrays on Linux CPUs: steps take a fifth to a third less time.

XLA takes a step's working memory from malloc and gives it back after the step. In pages of 4 KiB
the kernel then hands out, and clears, hundreds of thousands of pages a step. glibc asks for 2 MiB
pages instead when told so (tunable glibc.malloc.hugetlb, since version 2.35), but it reads that
once, when a process starts. Measured in docs/benchmarks.md.
"""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

_VARIABLE, _VALUE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Replaces this process by itself with large pages, where that would help.

    The process keeps its number, arguments and streams. Nothing happens where GLIBC_TUNABLES is set
    already (an empty value switches this off), where JAX has an accelerator to run on, and where
    the system has no such pages. Call it before doing any work: all of it would be lost.
    """
    if _would_help():
        sys.stdout.flush()
        sys.stderr.flush()
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, os.environ | {_VARIABLE: _VALUE})


def restart_command_with_huge_pages() -> None:
    """The same, where this process is one of the commands, `python -m nova_jax.…`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("nova_jax."):
        restart_with_huge_pages()


def _would_help() -> bool:
    if _VARIABLE in os.environ or not sys.platform.startswith("linux") or not sys.executable:
        return False
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return False
    if not _SETTING.exists() or "[never]" in _SETTING.read_text():
        return False
    has_plugin = bool(importlib.metadata.entry_points(group="jax_plugins"))
    return not has_plugin and importlib.util.find_spec("libtpu") is None
