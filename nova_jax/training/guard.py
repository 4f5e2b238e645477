"""What happens when numbers go wrong: skipped steps, their cause, and the way back.

A step changes nothing if its loss, its gradients or its update are not finite
(`nova_jax.training.step`). This file counts such steps on the host, names what produced the first
of a row, and says when to go back to the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nova_jax.config import Checked, Count, Natural
from nova_jax.distributed.mesh import replicate, replicated
from nova_jax.errors import NovaError
from nova_jax.models.observe import Places, observed
from nova_jax.training.loss import LossParts
from nova_jax.training.optimizer import Params
from nova_jax.training.state import TrainState
from nova_jax.training.step import Batch, Metrics, Trainer, not_finite

logger = logging.getLogger(__name__)

Diagnose = Callable[[TrainState, Batch, int], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig(Checked):
    """What to do about numbers that are not finite.

    Attributes:
        limit: skipped steps in a row at which the run goes back to its last checkpoint.
        rollbacks: how often it may, before it stops with an error.
    """

    limit: Count = 10
    rollbacks: Natural = 3


class NumericsGuard:
    """Looks at every step, one step behind, so that the device never waits for the host."""

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
        if last is None or not jax.device_get(last[2]["skipped"]):
            self._in_a_row = 0
            return False
        if self._in_a_row == 0:
            number, batch, metrics = last
            self._cause = self._diagnose(state, batch, number)
            what = not_finite(jax.device_get(metrics))
            logger.warning("step %d skipped, its %s not finite: %s", number, what, self._cause)
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


def make_diagnosis(trainer: Trainer) -> Diagnose:
    """Makes ``(state, batch, step) -> words``: what is first not finite when a step is repeated.

    Looked at are the batch, the parameters, what each module gives in the order of the forward
    pass, the gradients, and the parameters that they would lead to. Compiled when it is first
    needed. The repetition has the parameters of `state`, which are the step's own if the steps
    since were skipped too.
    """

    def finite(x: jax.Array) -> jax.Array:
        return jnp.isfinite(x).all()

    def repeat(state: TrainState, batch: Batch, step: int) -> tuple[LossParts, Params]:
        return trainer.loss_and_gradients(state, batch, trainer.draws(state, batch, step - 1))

    on_all = replicated(trainer.mesh)

    @functools.partial(jax.jit, out_shardings=on_all)
    def finite_of(tree: Any) -> Any:
        return jax.tree.map(finite, tree)

    @functools.partial(jax.jit, out_shardings=on_all)
    def look(state: TrainState, batch: Batch, step: int) -> tuple[jax.Array, Places, Any]:
        (parts, gradients), places = observed(repeat, finite)(state, batch, step)
        params = trainer.update(state, gradients)[0]
        flags = {
            "gradients": gradients,
            "norm": optax.tree.norm(gradients),
            "params": params,
            "param_norm": optax.tree.norm(params),
        }
        return parts.loss, places, finite_of(flags)

    def first(flags: Any) -> str | None:
        flat = jax.tree_util.tree_leaves_with_path(jax.device_get(flags))
        paths = (path for path, flag in flat if not flag)
        return next((jax.tree_util.keystr(p, simple=True, separator=".") for p in paths), None)

    def diagnose(state: TrainState, batch: Batch, step: int) -> str:
        if name := first(finite_of(dict(batch))):
            return f"the batch's {name}"
        if name := first(finite_of(state.params)):
            return f"the parameter {name}"
        number = replicate(np.int32(step), trainer.mesh)
        loss, places, flags = jax.device_get(look(state, batch, number))
        if name := first(places):
            return name
        if not math.isfinite(loss):
            return "the loss, though no module's output"
        if name := first(flags["gradients"]):
            return f"the gradient of {name}"
        if not flags["norm"]:
            return "the norm of all gradients"
        if name := first(flags["params"]):
            return f"the new parameter {name}"
        if not flags["param_norm"]:
            return "the norm of all new parameters"
        return "not when repeated with the parameters after it"

    return diagnose
