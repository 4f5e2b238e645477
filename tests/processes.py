"""Commands in processes of their own, started in a moment: forked from a server that has imported
everything and used no device yet. They can be killed at a place that is named beforehand."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

_CONTEXT = multiprocessing.get_context("forkserver")
# Not the commands themselves: each defines flags of its own, and a process can have one of them.
_CONTEXT.set_forkserver_preload(
    [
        "annotations",
        "nova_jax.cli",
        "nova_jax.digits.judges",
        "nova_jax.pipeline",
        "nova_jax.prepare.preparation",
        "nova_jax.training.loop",
        "tensorboardX",
        "processes",
    ]
)


def start(
    run: dict[str, Any],
    workdir: Path,
    *flags: str,
    log: Path,
    **options: Any,
) -> BaseProcess:
    """Starts ``python -m nova_jax.train`` on a config of plain values.

    Args:
        run: the config.
        workdir: of the run.
        flags: more of the command line.
        log, options: see `start_command`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    recipe = write_recipe(run, log.with_suffix(".py"))
    arguments = (f"--config={recipe}", f"--workdir={workdir}", *flags)
    return start_command("train", *arguments, log=log, **options)


def start_command(
    command: str,
    *arguments: str,
    devices: int = 1,
    disk: int | None = None,
    log: Path,
    cache: Path,
    kill: str | None = None,
) -> BaseProcess:
    """Starts ``python -m nova_jax.COMMAND``; output is appended to `log`.

    Args:
        command: such as "train" or "prepare.__main__".
        arguments: its command line.
        devices: CPU devices of the process.
        disk: write to a disk of this many bytes, whose contents are there afterwards.
        log: where output goes.
        cache: where compiled programs are kept for the next process.
        kill: where the process is to die; see `die_at`.
    """
    options = (command, arguments, devices, disk, str(log), str(cache), kill)
    process = _CONTEXT.Process(target=_run, args=options)
    process.start()
    return process


def start_together(
    count: int, run: dict[str, Any], workdir: Path, *flags: str, **options: Any
) -> list[BaseProcess]:
    """Starts the `count` processes of one run; process i writes to ``logs/i.log`` beside."""
    join = (f"--coordinator=localhost:{free_port()}", f"--num_processes={count}")
    logs = options.pop("logs")
    return [
        start(run, workdir, *join, f"--process_id={i}", *flags, log=logs / f"{i}.log", **options)
        for i in range(count)
    ]


def write_recipe(run: dict[str, Any], file: Path) -> Path:
    """Makes a config file of plain values."""
    file.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({json.dumps(json.dumps(run))}))\n"
    )
    return file


def finish(processes: list[BaseProcess], seconds: float = 300) -> list[int | None]:
    """Waits and returns exit codes, negative for signals; None for what takes longer, and ends."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def wait_for(condition: Callable[[], Any], processes: list[BaseProcess], seconds: float = 300):
    """Waits for a condition that the processes will bring about; fails if one of them ends."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert all(process.is_alive() for process in processes), "ended too early"
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.01)
    return found


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by tree and name."""
    checkpoint = workdir / "checkpoints" / str(step)
    return {
        tree + name: array
        for tree in ("params", "frozen", "ema", "optimizer")
        for name, array in arrays_of(checkpoint / tree).items()
    }


def arrays_of(tree: Path) -> dict[str, np.ndarray]:
    """Every array that Orbax has saved in a directory, by name."""
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(tree).item_metadata.tree
        on_host = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved)
        restored = checkpointer.restore(tree, on_host)
    paths = jax.tree_util.tree_flatten_with_path(restored)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}


def records(workdir: Path) -> list[dict[str, Any]]:
    """What a run has recorded, but for how fast it went."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines(True) if file.exists() else []
    found = (json.loads(line) for line in lines if line.endswith("\n"))
    return [record for record in found if not any(name.startswith("speed/") for name in record)]


def steps_done(workdir: Path) -> int:
    """The last step that a run has recorded."""
    return max((record["step"] for record in records(workdir)), default=0)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def die_at(place: str) -> None:
    """Has this process kill itself at a place, which is one of these, with n from 1:

    - "n REGEX": before the n-th change of files that is described by words which match, such as
      "os.rename a b" or "open a"; see https://docs.python.org/3/library/audit_events.html
    - "n call MODULE:NAME": before the n-th call of a function or method
    - "n call MODULE:NAME torn": after it, and half of the last line of metrics.jsonl is lost
    """
    count, _, what = place.partition(" ")
    left = itertools.count(int(count) - 1, -1)
    if what.startswith("call "):
        module, _, name = what.split()[1].partition(":")
        *outer, name = name.split(".")
        owner = importlib.import_module(module)
        for part in outer:
            owner = getattr(owner, part)
        original = getattr(owner, name)

        def deadly(*arguments: Any, **options: Any) -> Any:
            if next(left) == 0:
                if what.endswith(" torn"):
                    original(*arguments, **options)
                    file = arguments[0]._workdir / "metrics.jsonl"
                    os.truncate(file, len(file.read_bytes()) - 20)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(owner, name, deadly)
        return

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if (change := _change(event, details)) and re.search(what, change) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _change(event: str, details: tuple[Any, ...]) -> str | None:
    """Describes what an audit event changes on disk; None for all other events."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event == "open" and isinstance(details[2], int) and details[2] & writing:
        return f"open {details[0]}"
    if event in ("os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "shutil.rmtree"):
        return " ".join([event, *(str(part) for part in details[:2] if not isinstance(part, int))])
    return None


def _run(
    command: str,
    arguments: tuple[str, ...],
    devices: int,
    disk: int | None,
    log: str,
    cache: str,
    kill: str | None,
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    sys.argv = [command, *arguments]
    if kill is not None:
        die_at(kill)

    def run() -> None:
        runpy.run_module(f"nova_jax.{command}", run_name="__main__", alter_sys=True)

    if disk is None:
        run()
        return
    with small_disk(disk) as place:
        workdir = sys.argv[2].removeprefix("--workdir=")
        sys.argv[2] = f"--workdir={place}/run"
        try:
            run()
        finally:
            shutil.copytree(place / "run", workdir)


def can_mount() -> bool:
    """Whether `small_disk` works here."""
    process = _CONTEXT.Process(target=_mount)
    process.start()
    return finish([process]) == [0]


def _mount() -> None:
    with small_disk(4096):
        pass


@contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A file system of this many bytes that only this process sees; it must have one thread."""
    user, group = os.getuid(), os.getgid()
    new_user, new_mounts = 0x10000000, 0x00020000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_user | new_mounts):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with tempfile.TemporaryDirectory() as place:
        if libc.mount(b"disk", place.encode(), b"tmpfs", 0, f"size={size}".encode()):
            raise OSError(ctypes.get_errno(), "mount")
        try:
            yield Path(place)
        finally:
            libc.umount2(place.encode(), 2)
