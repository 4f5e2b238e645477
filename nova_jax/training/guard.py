"""What happens when numbers go wrong: skipped steps, their cause, the way back, and spikes.

A step whose loss or gradients are not finite changes nothing (`nova_jax.training.step`). This file
counts such steps on the host, names what produced the first of a row, and says when to go back to
the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.experimental import checkify
from jax.sharding import Mesh

from nova_jax.distributed.mesh import on_mesh, replicated
from nova_jax.errors import NovaError
from nova_jax.models.layers import checked
from nova_jax.sampling.keys import training_key
from nova_jax.sampling.schedules import Schedule
from nova_jax.training.state import Blueprint, TrainState
from nova_jax.training.step import Batch, Metrics, batch_loss

logger = logging.getLogger(__name__)

Diagnose = Callable[[TrainState, Batch, int], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What to do about numbers that are not finite, and about spikes.

    Attributes:
        limit: skipped steps in a row at which the run goes back to its last checkpoint.
        rollbacks: how often it may, before it stops with an error.
        spike: standard deviations above its running mean at which a loss or a gradient norm is
            reported as a spike.
    """

    limit: int = 10
    rollbacks: int = 3
    spike: float = 6.0

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise NovaError(f"guard.limit is {self.limit}; it must be at least 1")
        if self.rollbacks < 0:
            raise NovaError(f"guard.rollbacks is {self.rollbacks}; it must not be negative")
        if self.spike <= 0:
            raise NovaError(f"guard.spike is {self.spike}; it must be positive")


class NumericsGuard:
    """Looks at every step, one step behind, so that the device never waits for the host.

    Args:
        config: the limits.
        diagnose: says what was not finite in a step, see `make_diagnosis`.
    """

    def __init__(self, config: GuardConfig, diagnose: Diagnose):
        self.config, self._diagnose = config, diagnose
        self._last: tuple[int, Batch, Metrics] | None = None
        self._in_a_row = self._rollbacks = 0

    def watch(self, state: TrainState, step: int, batch: Batch, metrics: Metrics) -> bool:
        """Takes a step, and looks at the one before.

        Args:
            state: after the step.
            step: its number, from 1.
            batch: what it saw.
            metrics: what it gave; not waited for.

        Returns:
            Whether it is time to go back to the last checkpoint.

        Raises:
            NovaError: it is, once too often.
        """
        last, self._last = self._last, (step, batch, metrics)
        if last is None or not last[2]["skipped"]:
            self._in_a_row = 0
            return False
        if self._in_a_row == 0:
            number, batch, _ = last
            cause = self._diagnose(state, batch, number)
            logger.warning(
                "step %d skipped, its loss or gradients are not finite: %s", number, cause
            )
            self._cause = cause
        self._in_a_row += 1
        if self._in_a_row < self.config.limit:
            return False
        if self._rollbacks == self.config.rollbacks:
            raise NovaError(
                f"{self._in_a_row} steps in a row are not finite, after going back "
                f"{self._rollbacks} times ({self._cause}); lower optimizer.learning_rate, set "
                "optimizer.clip_norm, or look at the data"
            )
        self._rollbacks, self._in_a_row, self._last = self._rollbacks + 1, 0, None
        return True


def make_diagnosis(
    blueprint: Blueprint, *, mesh: Mesh, schedule: Schedule, loss_repeat: int, seed: int
) -> Diagnose:
    """Makes ``(state, batch, step) -> words``: what is first not finite when a step is repeated.

    Looked at are the batch, the parameters, what each module gives in the order of the forward
    pass, and the gradients. Compiled when it is first needed. The repetition has the parameters of
    `state`, which are the step's own if the steps since were skipped too.
    """

    def loss_of(params: Any, frozen: Any, batch: Batch, step: Any) -> jax.Array:
        key = training_key(seed, step - 1)
        model = blueprint.model(params, frozen)
        return batch_loss(model, schedule, batch, key, loss_repeat)[0]

    def finite(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)

    everywhere = replicated(mesh)
    finite_of = jax.jit(finite, out_shardings=everywhere)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def forward(*arguments: Any) -> Any:
        with checked(True):
            return checkify.checkify(loss_of, errors=checkify.user_checks)(*arguments)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def gradients(*arguments: Any) -> Any:
        with on_mesh(mesh):  # checkify cannot follow what is laid out by hand
            return finite(jax.grad(loss_of)(*arguments))

    def first(flags: Mapping[str, Any]) -> str | None:
        flat = flatten_dict(flags, sep=".")
        return next((name for name, flag in flat.items() if not flag), None)

    def diagnose(state: TrainState, batch: Batch, step: int) -> str:
        if name := first(finite_of(dict(batch))):
            return f"the batch's {name}"
        if name := first(finite_of(state.params)):
            return f"the parameter {name}"
        arguments = (state.params, state.frozen, batch, step)
        error, loss = forward(*arguments)
        if message := error.get():
            return message.removesuffix(" (`check` failed)")
        if not math.isfinite(loss):
            return "the loss, though no module's output"
        if name := first(gradients(*arguments)):
            return f"the gradient of {name}"
        return "not when repeated with the parameters after it"

    return diagnose


class Spikes:
    """Running mean and variance of numbers, by name, and what stands out from them.

    The last 100 values or so count. Nothing stands out before there are 50.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._moments: dict[str, tuple[int, float, float]] = defaultdict(lambda: (0, 0.0, 0.0))

    def find(
        self, kind: str, step: int, metrics: Mapping[str, float]
    ) -> Iterator[tuple[str, float]]:
        """Takes a step's metrics, and yields the name of each spike with its deviations."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(value := float(metrics[name])):
                continue
            key = f"{kind}/{name}"
            count, mean, variance = self._moments[key]
            deviations = (value - mean) / math.sqrt(variance) if variance > 0 else 0.0
            if count >= 50 and deviations > self.threshold:
                logger.warning(
                    "step %d: %s %.4g is %.1f standard deviations above its mean %.4g",
                    *(step, key, value, deviations, mean),
                )
                yield name, deviations
                # It counts as what just would not have been one; a new level wins in the end.
                value = mean + self.threshold * math.sqrt(variance)
            weight = max(0.01, 1 / (count + 1))
            difference = value - mean
            mean += weight * difference
            variance = (1 - weight) * (variance + weight * difference**2)
            self._moments[key] = count + 1, mean, variance
