"""What a run survives, and how several processes are one. Real processes, really killed.

Runs of one process that are killed and go on are in ``tests/test_kills.py``.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from processes import (
    can_mount,
    finish,
    free_port,
    records,
    start,
    start_together,
    steps_done,
    wait_for,
)

from nova_jax.checkpoints.integrity import verify_checksums
from nova_jax.distributed.lock import hold

STEPS = 12
SLOW = pytest.mark.slow


@pytest.fixture
def small(run):
    """One batch shape, a checkpoint after every step, nothing but training."""
    return run | {
        "steps": STEPS,
        "data": run["data"] | {"video_fraction": 1.0},
        "checkpoint": {"every": 1},
        "logging": {"every": 1, "tensorboard": False},
        "validation": {"every": 100, "batches": 1},
        "samples": {"every": None},
    }


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def whole(programs, tmp_path_factory):
    """A function that gives the work directory of a run of one process that was left in peace."""
    done: dict[int, Path] = {}

    def train(run):
        if (steps := run["steps"]) not in done:
            folder = tmp_path_factory.mktemp("whole")
            process = start(run, folder / "run", log=folder / "log", cache=programs)
            assert finish([process]) == [0], (folder / "log").read_text()
            done[steps] = folder / "run"
        return done[steps]

    return train


@SLOW
def test_a_disk_that_fills_up_is_one_line_and_the_last_checkpoint_stays(small, programs, tmp_path):
    if not can_mount():
        pytest.skip("needs unprivileged name spaces to mount a small file system")
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = start(small, workdir, disk=3_000_000, log=log, cache=programs)
    assert finish([process]) == [2], log.read_text()
    text = log.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert "no space left on device; free some and run the same command again" in line
    assert "Traceback" not in text
    whole = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert whole
    for checkpoint in whole:
        verify_checksums(checkpoint)


@SLOW
def test_a_dead_data_worker_is_one_line(small, programs, tmp_path):
    small["data"] |= {"num_workers": 1}
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = start(small, workdir, log=log, cache=programs)
    wait_for(lambda: steps_done(workdir), [process])
    (worker,) = data_workers(process.pid)
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    assert finish([process]) == [2], log.read_text()
    assert time.monotonic() - killed < 60
    last = log.read_text().splitlines()[-1]
    assert last.startswith("error: a data worker is gone: ") and "exit code -9" in last


def data_workers(process: int) -> list[int]:
    """Processes that Grain has started for a process."""
    parts = ["pgrep", "--parent", str(process), "--full", "spawn_main"]
    return [int(line) for line in subprocess.check_output(parts).split()]


LOST_AFTER = 20


@pytest.mark.parametrize("more", [0, pytest.param(2, marks=SLOW), pytest.param(4, marks=SLOW)])
def test_processes_are_one_run_stop_together_and_go_on_in_other_numbers(
    small, programs, whole, tmp_path, more
):
    workdir = tmp_path / "run"
    options = dict(cache=programs)

    # Two processes. One is asked to stop: both do, after the same step, and save it.
    two = start_together(2, small, workdir, logs=tmp_path / "two", **options)
    wait_for(lambda: steps_done(workdir), two)
    os.kill(two[1].pid, signal.SIGTERM)
    assert finish(two) == [0, 0], logs(tmp_path / "two")
    done = steps_done(workdir)
    assert f"{done} of {STEPS} steps done" in (tmp_path / "two" / "0.log").read_text()
    assert (workdir / "checkpoints" / str(done)).is_dir()
    assert "steps done" not in (tmp_path / "two" / "1.log").read_text()

    if more:
        lose_one(more, small, workdir, tmp_path / "more", programs, done)

    # One goes on to the end, on another mesh, as if it had been alone all the time.
    expected = losses(whole(small))
    other, log = small | {"mesh": {"fsdp": 2}}, tmp_path / "log"
    assert finish([start(other, workdir, devices=2, log=log, **options)]) == [0], log.read_text()
    found = losses(workdir)
    assert expected.keys() == found.keys() == set(range(1, STEPS + 1))
    np.testing.assert_allclose(
        [found[step] for step in expected], list(expected.values()), rtol=1e-5
    )


def lose_one(count, run, workdir, folder, programs, done):
    """Processes go on. One is killed: the rest end, each with a line that says so."""
    flag = f"--lost_after={LOST_AFTER}"
    others = start_together(count, run, workdir, flag, logs=folder, cache=programs)
    wait_for(lambda: steps_done(workdir) > done, others)
    others[-1].kill()
    killed = time.monotonic()
    *codes, last = finish(others)
    assert time.monotonic() - killed < LOST_AFTER + 60
    assert last == -9 and set(codes) <= {2, -6}, codes
    for i, code in enumerate(codes):
        log = (folder / f"{i}.log").read_text()
        assert f"error: process {i} lost another of the {count} processes" in log or (
            code == -6 and "another task died" in log
        ), log


def logs(folder: Path) -> str:
    return "\n".join(f"== {file}\n{file.read_text()}" for file in sorted(folder.iterdir()))


def losses(workdir: Path) -> dict[int, float]:
    found = (record for record in records(workdir) if "train_video/loss" in record)
    return {record["step"]: record["train_video/loss"] for record in found}


@pytest.mark.parametrize("count", [1, 2])
def test_a_work_directory_in_use_is_refused_at_once_in_every_process(
    small, programs, tmp_path, count
):
    workdir = tmp_path / "run"
    with hold(workdir / "lock"):
        second = start_together(count, small, workdir, logs=tmp_path / "logs", cache=programs)
        assert finish(second) == [2] * count, logs(tmp_path / "logs")
        assert [path.name for path in workdir.iterdir()] == ["lock"]
    for i in range(count):
        last = (tmp_path / "logs" / f"{i}.log").read_text().splitlines()[-1]
        assert last.startswith(f"error: {workdir} is in use by process {os.getpid()} on ")


def test_processes_that_differ_are_named_and_nothing_is_written(small, programs, tmp_path):
    other = small | {"seed": 1, "optimizer": small["optimizer"] | {"b2": 0.9}}
    place = (f"--coordinator=localhost:{free_port()}", "--num_processes=2")
    both = [
        start(run, tmp_path / "run", *place, f"--process_id={i}", log=tmp_path / f"{i}.log",
              cache=programs)
        for i, run in enumerate((small, other))
    ]  # fmt: skip
    assert finish(both) == [2, 2]
    for i in (0, 1):
        last = (tmp_path / f"{i}.log").read_text().splitlines()[-1]
        assert last.startswith("error: the processes do not run the same: ")
        assert "optimizer.b2 (0.95 in process 0, 0.9 in process 1)" in last
        assert "seed (0 in process 0, 1 in process 1)" in last
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_is_not_there_is_waited_for_in_vain_and_named(small, programs, tmp_path):
    flags = ("--num_processes=2", "--coordinator_timeout=2")
    alone = [
        start(small, tmp_path / "run", f"--coordinator=localhost:{free_port()}", *flags,
              f"--process_id={i}", log=tmp_path / f"{i}.log", cache=programs)
        for i in (0, 1)
    ]  # fmt: skip
    assert finish(alone, 60) == [2, 2]
    for i in (0, 1):
        log = (tmp_path / f"{i}.log").read_text()
        assert f"error: process {i} of 2 waited 2 s at the coordinator localhost:" in log
    assert not (tmp_path / "run").exists()
