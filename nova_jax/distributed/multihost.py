"""Many processes as one run: how they find each other, agree with each other, and end together.

Every process runs the same command. JAX joins them: process 0 is the coordinator, all arrays and
collectives span all devices, and a process that sends no sign of life for a while ends the others.
Alone, every function here does the obvious thing, so that callers need not ask.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from nova_jax.errors import NovaError

T = TypeVar("T")

# What XLA and Orbax say when the other end of a connection is gone; they have no exception for it.
_SIGNS_OF_LOSS = ("Gloo", "gloo", "NCCL", "nccl", "oordination", "barrier", "Socket closed")

# What launchers call a process's number, and how many there are.
_LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    ("RANK", "WORLD_SIZE"),
)


def launched_as(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process's number and how many there are, from a launcher's variables; (0, 1) without.

    This is for processes that share work and do not speak with each other; `join` is for those
    that do.
    """
    for number, count in _LAUNCHERS:
        if number in environment and count in environment:
            return int(environment[number]), int(environment[count])
    return 0, 1


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n": the i-th of n processes that share work.

    Raises:
        NovaError: it is none.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise NovaError(f"--shard={text} is not i/n with i from 0 to n - 1")
    return int(index), int(count)


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
    lost_after: int = 100,
) -> None:
    """Makes this process one of a run's. It must be called before anything else uses JAX.

    A process that runs alone is left as it is.

    Args:
        coordinator: host:port of process 0, where the others find it; or "auto" where JAX can find
            the address, the number of processes and this one's by itself (TPU VMs, SLURM, Open MPI,
            Kubernetes with its Python package). None means "auto" in a SLURM step of several tasks
            and on a TPU slice of several hosts in Kubernetes; elsewhere this process runs alone.
        num_processes: number of processes in the run; not needed with "auto".
        process_id: number of this process, from 0; not needed with "auto".
        timeout: seconds within which all processes must have come together.
        lost_after: seconds without a sign of life after which a process counts as lost.

    Raises:
        NovaError: if flags are missing, or not all processes come together in time.
    """
    if coordinator is None and _in_cluster():
        coordinator = "auto"
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise NovaError("--num_processes and --process_id need --coordinator=HOST:PORT")
        return
    places: dict[str, Any] = {}
    if coordinator != "auto":
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise NovaError(f"--coordinator={coordinator} is not HOST:PORT, such as node1:8476")
        if num_processes is None or process_id is None:
            raise NovaError(f"--coordinator={coordinator} needs --num_processes and --process_id")
        if not 0 <= process_id < num_processes:
            raise NovaError(
                f"--process_id={process_id} is not one of {num_processes} processes; "
                f"they are 0 to {num_processes - 1}"
            )
        places = dict(
            coordinator_address=coordinator, num_processes=num_processes, process_id=process_id
        )

    # JAX ends the whole process, with a page of C++, when its own time is up: wait here instead.
    failure: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **places,
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=lost_after,
                shutdown_timeout_seconds=lost_after,
            )
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        who = f"process {process_id} of {num_processes}" if places else "this process"
        raise NovaError(
            f"{who} waited {timeout} s at the coordinator {coordinator} for the others; start "
            "every process with the same --coordinator, that host and port must be reachable"
        )
    if failure:
        reason = str(failure[0]).splitlines()[0]
        raise NovaError(f"--coordinator={coordinator}: {reason}") from failure[0]


def _in_cluster() -> bool:
    """Whether it would be wrong for this process to run alone."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return tasks > 1 or len(hosts) > 1


def is_first() -> bool:
    """Whether this is process 0, which alone writes logs, metrics and samples."""
    return jax.process_index() == 0


def on_first(action: Callable[[], T]) -> T:
    """Lets process 0 act, and returns its result, plain values, in every process.

    Raises:
        NovaError: in every process, if the action raised it in process 0.
    """
    if jax.process_count() == 1:
        return action()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"result": action()}
        except NovaError as error:
            outcome = {"error": str(error)}
    outcome = json.loads(_gather(json.dumps(outcome))[0])
    if "error" in outcome:
        raise NovaError(outcome["error"])
    return outcome["result"]


def check_same(facts: Mapping[str, Any]) -> None:
    """Compares plain values that all must agree on, such as a config, and the code that they run.

    Raises:
        NovaError: in every process, naming what differs.
    """
    if jax.process_count() == 1:
        return
    mine = flatten_dict(json.loads(json.dumps(facts)), sep=".") | {
        "nova_jax code": _digest_of_code(),
        "jax": version("jax"),
        "devices of a process": jax.local_device_count(),
    }
    first, *others = map(json.loads, _gather(json.dumps(mine)))
    missing = object()
    different = [
        f"{key} ({first.get(key)!r} in process 0, {other.get(key)!r} in process {process})"
        for process, other in enumerate(others, 1)
        for key in sorted(first.keys() | other.keys())
        if first.get(key, missing) != other.get(key, missing)
    ]
    if different:
        more = f", and {len(different) - 8} more" if len(different) > 8 else ""
        raise NovaError(
            f"the processes do not run the same: {', '.join(different[:8])}{more}; "
            "start every process with one command and one installation"
        )


def _digest_of_code() -> str:
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _gather(text: str) -> list[str]:
    """The texts of all processes, in order, in every process."""
    encoded = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(encoded))).reshape(-1)
    padded = np.pad(encoded, (0, int(lengths.max()) - len(encoded)))
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [row[:n].tobytes().decode() for row, n in zip(rows, lengths, strict=True)]


def to_host(array: jax.Array) -> np.ndarray:
    """Returns in every process the whole of an array that may lie on the devices of several."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Says in one line that another process is gone, where XLA reports a broken connection."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or not any(sign in str(error) for sign in _SIGNS_OF_LOSS):
            raise
        reason = str(error).splitlines()[0]
        raise NovaError(
            f"process {jax.process_index()} lost another of the {jax.process_count()} processes "
            f"({reason}); see their logs, then start all again: the run goes on from its last "
            "checkpoint"
        ) from error


@contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second acts as it always does.

    It yields a function that is called after every step with the step's number, and says whether to
    stop after it. One signal to any of several processes is enough, and all stop after the same
    step: JAX's coordinator has them agree, without a collective. In such a run SIGTERM never does
    anything else.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # signals cannot be caught here
        return
    # JAX watches for SIGTERM in processes that it has joined, and must not be replaced.
    joined = jax.distributed.is_initialized()
    numbers = (signal.SIGINT,) if joined else (signal.SIGINT, signal.SIGTERM)
    earlier = [signal.getsignal(number) for number in numbers]
    event = threading.Event()

    def restore() -> None:
        for number, handler in zip(numbers, earlier, strict=True):
            signal.signal(number, handler)

    def request(number: int, frame: Any) -> None:
        restore()
        if joined:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            event.set()

    for number in numbers:
        signal.signal(number, request)
    try:
        yield (
            multihost_utils.reached_preemption_sync_point if joined else lambda step: event.is_set()
        )
    finally:
        restore()
