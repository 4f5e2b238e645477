"""Runs cases in forks of one process that has imported everything and used no device yet.

    python -m fuzz.forks INPUTS        reads "commands 17" or "calls 17", a line each

A fork takes milliseconds where a start takes seconds, and what it does to itself ends with it. Each
works in an empty directory, within limits of time and memory that this process holds it to, and
this process prints its outcome as a line of JSON. What serves is interrupted once it does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Self

from fuzz.commands import commands
from fuzz.values import TESTS

import nova_jax

#: A case may take 20 seconds of two cores, and so many in which it computes nothing, whoever else
#: uses the cores; and bytes.
SECONDS, WAITING, MEMORY = 40, 60, 4 << 30
#: A server prints it after its address.
SERVES = "(Ctrl-C ends it)"


class Forks:
    """`fuzz.forks`, as a context: starting takes seconds, a case what it takes.

    Args:
        inputs: what `fuzz.values.make_inputs` has written.
        programs: where compiled programs are kept; by default where commands keep them.
    """

    def __init__(self, inputs: Path, programs: Path | None = None) -> None:
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            "HF_HUB_OFFLINE": "1",
            "XLA_FLAGS": os.environ.get("XLA_FLAGS") or "--xla_backend_optimization_level=0",
        }
        if programs:
            env["JAX_COMPILATION_CACHE_DIR"] = str(programs)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.forks", str(inputs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its pipes, and waits
            pass

    def run(self, kind: str, seed: int) -> dict[str, Any]:
        """The outcome of a case; see `fuzz.forks.outcome`."""
        self._process.stdin.write(f"{kind} {seed}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def preload() -> None:
    """Imports the package, but for its commands, each of which defines flags of its own."""
    for module in pkgutil.walk_packages(nova_jax.__path__, "nova_jax."):
        if module.name not in commands() and not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # of what is not installed
                importlib.import_module(module.name)


def outcome(kind: str, seed: int, inputs: Path) -> dict[str, Any]:
    """Runs one case: exit status (negative for signals), output, what it was and what it made."""
    with tempfile.TemporaryDirectory() as place:
        for name in ("log", "work"):
            (Path(place) / name).mkdir()
        began = time.monotonic()
        child = os.fork()
        if not child:
            _child(kind, seed, inputs, Path(place))
        ended, limit = _watch(child, Path(place, "log", "stdout"))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it has started
        log = Path(place, "log").iterdir()
        return {
            "kind": kind,
            "seed": seed,
            "status": os.waitstatus_to_exitcode(ended[1]),
            "limit": limit,
            "seconds": round(time.monotonic() - began, 1),
            "core_seconds": round(ended[2].ru_utime + ended[2].ru_stime, 1),
            "megabytes": ended[2].ru_maxrss >> 10,
            **{file.name: file.read_text(errors="replace") for file in log},
        }


def _watch(child: int, printed: Path) -> tuple[Any, str]:
    """Waits for a process, and ends it where it goes past a limit, which is named."""
    limit, worked, awake, serves = "", 0, time.monotonic(), False
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        resident, ticks = _usage(child)
        if ticks != worked:
            worked, awake = ticks, time.monotonic()
        if resident > MEMORY or time.monotonic() - awake > WAITING:
            limit = "memory" if resident > MEMORY else "time"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        if not serves and printed.exists() and SERVES in printed.read_text(errors="replace"):
            serves = True
            os.kill(child, signal.SIGINT)
        time.sleep(0.02)
    if ended[1] and os.WIFSIGNALED(ended[1]) and os.WTERMSIG(ended[1]) == signal.SIGXCPU:
        limit = "time"
    return ended, limit


def _usage(process: int) -> tuple[int, int]:
    """Bytes in memory, and clock ticks that it has computed."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0, 0
    return int(fields[21]) * resource.getpagesize(), int(fields[11]) + int(fields[12])


def _child(kind: str, seed: int, inputs: Path, place: Path) -> None:
    """The rest of a fork's life."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(place / "work")
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(place / "log" / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    status = 1
    try:
        status = importlib.import_module(f"fuzz.{kind}").run(seed, inputs, place / "log")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    preload()
    for line in sys.stdin:
        asked, number = line.split()
        print(json.dumps(outcome(asked, int(number), Path(sys.argv[1]))), file=answers, flush=True)
