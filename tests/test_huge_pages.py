"""Restarting with large memory pages."""

import os
import subprocess
import sys

import pytest

from nova_jax import huge_pages

SCRIPT = """
import os, sys
from nova_jax.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
print(os.getpid(), os.environ["GLIBC_TUNABLES"], *sys.argv[1:])
"""


@pytest.mark.skipif(
    not huge_pages._would_help(), reason="needs Linux with large pages, glibc 2.35, no accelerator"
)
def test_restart_keeps_process_and_arguments():
    command = [sys.executable, "-c", SCRIPT, "a b", "--c"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=60)
    assert output.split() == [str(process.pid), "glibc.malloc.hugetlb=1", "a", "b", "--c"]


def test_a_setting_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("restarted"))
    huge_pages.restart_with_huge_pages()


@pytest.mark.parametrize("main", ["nova_jax.train", "pytest.__main__", None])
def test_only_commands_restart(monkeypatch, main):
    calls = []
    monkeypatch.setattr(huge_pages, "restart_with_huge_pages", lambda: calls.append(main))
    spec = type("Spec", (), {"name": main})() if main else None
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    huge_pages.restart_command_with_huge_pages()
    assert calls == (["nova_jax.train"] if main == "nova_jax.train" else [])
