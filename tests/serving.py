"""The app in a process of its own, as people start it, on a small untrained model."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nova_jax import media


def assert_same(made: np.ndarray, wanted: np.ndarray, most: int = 1) -> None:
    """The same pixels, but for rounding: two processes may compile a program differently.

    Then one of some ten thousand values is off by one of 255. What was coded after that with losses
    differs around it, by a little more.
    """
    assert made.shape == wanted.shape
    difference = np.abs(made.astype(int) - wanted)
    assert difference.max() <= most and difference.mean() < most / 100


def assert_same_files(made: Path, wanted: Path) -> None:
    """The same bytes, or pixels that are the same but for rounding."""
    assert made.name == wanted.name
    if made.read_bytes() == wanted.read_bytes():
        return
    read = media.read_image if made.suffix == ".png" else media.read_video
    assert_same(read(made), read(wanted), most=1 if made.suffix == ".png" else 8)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def app(model: Path, log: Path, *flags: str) -> Iterator[str]:
    """The address of a served app; what it says is in a file."""
    command = (sys.executable, "-m", "nova_jax.app", f"--checkpoint={model}", *flags)
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    with serving(command, log, env=environment) as (address, _):
        yield address


@contextlib.contextmanager
def serving(
    command: Sequence[object], log: Path, **options: Any
) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of what a command serves by its `--port`, and its process, ended at the end."""
    port = free_port()
    with open(log, "w") as file:
        words = [*map(str, command), f"--port={port}"]
        process = subprocess.Popen(words, stdout=file, stderr=file, **options)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield address, process
    finally:
        process.terminate()
        process.wait()
