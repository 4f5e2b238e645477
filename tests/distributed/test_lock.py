"""Locks between real processes: who is refused, and when a lock is free again."""

import os
import subprocess
import sys
import time

import pytest

from nova_jax.distributed.lock import hold
from nova_jax.errors import NovaError

# Holds a lock and starts a child, says so, and stays until its input ends. Signs of life come fifty
# times as fast as usual; files cannot be locked if the last argument says so.
PROGRAM = """
import errno, fcntl, subprocess, sys
from nova_jax.distributed import lock
from nova_jax.errors import NovaError

def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")

lock._BEAT, lock._DEAD_AFTER, lock._DYING, lock._SETTLE = 0.2, 1.2, 0.1, 0.1
if sys.argv[2] == "lockless":
    fcntl.flock = refuse
try:
    with lock.hold(sys.argv[1]):
        null = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        child = subprocess.Popen(["sleep", "9"], **null)
        print("held", flush=True)
        sys.stdin.read()
        child.kill()
except NovaError as error:
    print("error:", error)
"""
KINDS = pytest.mark.parametrize("kind", ["locking", "lockless"])
HOST = os.uname().nodename


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "lock"


@pytest.fixture
def start(path):
    """A function that starts the program, and returns it and its first line."""
    started = []

    def start(kind):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, path, kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process, process.stdout.readline()

    yield start
    for process in started:
        process.kill()
        process.communicate()


@KINDS
def test_a_second_process_is_told_who_has_the_lock_until_that_ends(path, start, kind):
    owner, said = start(kind)
    assert said == "held\n"
    line = path.read_text().splitlines()[0]
    assert line.startswith(f"process {owner.pid} on {HOST} since 20")
    second, said = start(kind)
    assert said.startswith(f"error: {path.parent} is in use by {line}; let it end, stop it, or ")
    assert f"(if its host is gone for good, delete {path})" in said
    assert owner.poll() is None and path.read_text().splitlines()[0] == line
    owner.communicate("")
    assert not path.parent.exists(), "nothing has come of it, and nothing is left"
    began = time.monotonic()
    assert start(kind)[1] == "held\n"
    assert time.monotonic() - began < 1.2, "a lock that was given back is free at once"


@KINDS
def test_a_killed_process_leaves_its_lock_though_its_child_lives(path, start, kind):
    owner, _ = start(kind)
    owner.kill()
    owner.wait()
    began = time.monotonic()
    assert start(kind)[1] == "held\n"
    assert (time.monotonic() - began < 1.2) == (kind == "locking")


def test_a_refused_process_changes_nothing(path):
    with hold(path):
        (path.parent / "result").touch()
        before = {file: file.stat().st_mtime_ns for file in (path.parent, *path.parent.iterdir())}
        with pytest.raises(NovaError, match=f"in use by process {os.getpid()} on"), hold(path):
            pass
        assert {file: file.stat().st_mtime_ns for file in before} == before
    assert [file.name for file in path.parent.iterdir()] == ["result"]


def test_what_another_host_has_left_is_free_when_it_gives_no_sign_of_life(path, start):
    """The kernel has no lock there: the host is gone, or a file system keeps its locks from us."""
    path.parent.mkdir()
    path.write_text("process 7 on elsewhere since 2026-01-01\nalive at 2026-01-01\n")
    beat = f"for n in $(seq 90); do sleep 0.1; echo still alive >> {path}; done"
    elsewhere = subprocess.Popen(["sh", "-c", beat])
    _, said = start("locking")
    assert said.startswith(f"error: {path.parent} is in use by process 7 on elsewhere since")
    elsewhere.kill()
    elsewhere.wait()
    began = time.monotonic()
    assert start("locking")[1] == "held\n"
    assert time.monotonic() - began > 1.2


@KINDS
def test_a_process_whose_lock_was_taken_ends(path, start, kind):
    owner, _ = start(kind)
    path.write_text("process 7 on elsewhere since 2026-01-01\n")
    assert owner.wait(10) == 2
    assert f"error: {path} was taken by process 7 on elsewhere" in owner.communicate()[1]
