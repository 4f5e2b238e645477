"""How fast a run is and what it waits for, and traces for JAX's profiler."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax

from nova_jax.distributed.machines import machine_of
from nova_jax.distributed.mesh import MeshLayout
from nova_jax.models import flops
from nova_jax.training.config import TrainConfig
from nova_jax.training.step import Batch, Metrics

logger = logging.getLogger(__name__)

# Steps of a trace: enough to see what repeats, few enough to open.
TRACED = 5


class Throughput:
    """Times steps, from one look at the metrics to the next.

    Compilation, validation, samples and checkpoints do not count: whoever is done with one calls
    `restart`.
    """

    def __init__(self, config: TrainConfig, mesh: MeshLayout):
        self._config, self._devices = config, mesh.size
        machine = machine_of(mesh.devices.flat[0])
        self._peak = None if machine is None else machine.flops[config.dtype]
        self._compiled: set[tuple[int, ...]] = set()
        self._last: Any = None
        # Seconds, seconds without a batch, steps, samples, FLOPs: of the whole run; `_since` the
        # last look.
        self._total = [0.0] * 5
        self.restart()

    def restart(self) -> None:
        """Forgets what was timed since the last look."""
        self._began, self._since = time.monotonic(), [0.0] * 5

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around getting a batch. It counts if the devices are done before the batch is there."""
        began = time.monotonic()
        yield
        if self._last is not None and self._last.is_ready():
            self._since[1] += time.monotonic() - began

    def step(self, batch: Batch, metrics: Metrics) -> None:
        """Takes note of a step that has been queued."""
        size, *shape, _ = batch["latents"].shape
        self._last = metrics["loss"]
        if tuple(shape) not in self._compiled:
            self._compiled.add(tuple(shape))
            jax.block_until_ready(metrics)
            self.restart()
            return
        frames, height, width = shape
        model = dataclasses.replace(self._config.model, latent_size=(height, width))
        work = flops.of_training(
            model, batch=size, frames=frames, loss_repeat=self._config.loss_repeat
        )
        for index, value in enumerate((1, size, work), start=2):
            self._since[index] += value

    def look(self) -> dict[str, float]:
        """Numbers since the last look, when the steps are done; empty where none was timed.

        See `_numbers` for what they are.
        """
        self._since[0] = time.monotonic() - self._began
        timed = self._since[2] > 0
        if timed:
            self._total = [a + b for a, b in zip(self._total, self._since, strict=True)]
        numbers = self._numbers(self._since) if timed else {}
        self.restart()
        return numbers

    def summary(self) -> dict[str, float]:
        """The same of all that was looked at."""
        return self._numbers(self._total) if self._total[2] else {}

    def _numbers(self, sums: list[float]) -> dict[str, float]:
        """Seconds of a step, samples a second, share of time that devices waited for data at most.

        TFLOP/s of a device, counted from the model's matrix products, three times a forward pass;
        its share of the device's peak (MFU), where that is known; GiB at the peak, of this process
        on the host, and of its fullest device where JAX knows.
        """
        seconds, waited, steps, samples, work = sums
        rate = work / seconds / self._devices
        numbers = {
            "seconds_per_step": seconds / steps,
            "samples_per_second": samples / seconds,
            "data_wait": waited / seconds,
            "tflops_per_device": rate / 1e12,
        }
        if self._peak is not None:
            numbers["mfu"] = rate / self._peak
        unit = 2**30 if sys.platform == "darwin" else 2**20
        numbers["host_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        used = [(device.memory_stats() or {}) for device in jax.local_devices()]
        peaks = [stats["peak_bytes_in_use"] for stats in used if "peak_bytes_in_use" in stats]
        if peaks:
            numbers["memory_gib"] = max(peaks) / 2**30
        return numbers


class Trace(AbstractContextManager["Trace"]):
    """A profiler trace of a few steps, for TensorBoard or Perfetto.

    Args:
        directory: where it goes.
        first: the first of `TRACED` steps; None for no trace.
    """

    def __init__(self, directory: str | os.PathLike[str], first: int | None):
        self._directory, self._first, self._running = directory, first, False

    def before(self, step: int) -> None:
        """Starts the trace if this step, which is about to run, is its first."""
        if step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, metrics: Metrics) -> None:
        """Ends the trace if this step, which has been queued, is its last."""
        if self._running and self._first is not None and step == self._first + TRACED - 1:
            jax.block_until_ready(metrics)
            self._stop()

    def __exit__(self, *_: Any) -> None:
        if self._running:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        logger.warning("wrote a profiler trace to %s", self._directory)
