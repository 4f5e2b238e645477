"""Runs of several real processes, and what they are told when they cannot be one."""

import signal

import pytest

from nova_jax.distributed import multihost
from nova_jax.errors import NovaError


def test_a_second_signal_is_not_caught():
    # Programs started in the background by a script inherit an ignored Ctrl-C.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    with multihost.stop_requests() as requested:
        assert not requested(1)
        signal.raise_signal(signal.SIGINT)
        assert requested(2)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((None, 2, 0), "need --coordinator=HOST:PORT"),
        (("node1", 2, 0), "--coordinator=node1 is not HOST:PORT"),
        (("node1:8476", None, 0), "needs --num_processes and --process_id"),
        (("node1:8476", 2, 2), "--process_id=2 is not one of 2 processes; they are 0 to 1"),
    ],
)
def test_places_that_make_no_sense_are_named(place, message):
    with pytest.raises(NovaError, match=message):
        multihost.join(*place)


def test_a_process_without_others_stays_alone(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    multihost.join()
    multihost.check_same({"a": 1})
    assert multihost.is_first() and multihost.on_first(lambda: 3) == 3


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, (3, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script, before srun
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "4"}, (0, 4)),
        ({"RANK": "0"}, (0, 1)),
    ],
)
def test_launchers_say_which_process_this_is(environment, place):
    assert multihost.launched_as(environment) == place
