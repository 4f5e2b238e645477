"""One training step: draw, differentiate, update; compiled once per batch shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from nova_jax.distributed.mesh import batch_sharding, replicated
from nova_jax.models.nova import Conditions, Nova
from nova_jax.sampling.schedules import Schedule
from nova_jax.training.loss import LossParts, draw, training_loss
from nova_jax.training.state import EMAConfig, TrainState, state_shardings, update_ema

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    graphdef: nnx.GraphDef,
    state: TrainState,
    *,
    mesh: Mesh,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    ema: EMAConfig,
    loss_repeat: int,
    seed: int,
) -> TrainStep:
    """Compiles ``(state, batch) -> (state, metrics)``; the old state's memory is reused.

    All randomness of step i comes from ``fold_in(key(seed), i)``, so a run can be stopped anywhere
    and carries no generator.

    Args:
        graphdef: the model without its variables.
        state: says where every array lives; its values are not used.
        mesh: over which batches are split.
        schedule: noise schedule.
        optimizer: updates the trained parameters.
        learning_rate: the optimizer's, to be reported.
        ema: how the average follows.
        loss_repeat: noise draws of each frame.
        seed: of all draws.

    Returns:
        The step. A batch is what `nova_jax.data.pipeline` yields, on the mesh. Metrics are
        scalars: loss, loss_first and loss_rest (first frame and later ones), grad_norm (before
        clipping), param_norm, lr.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_of(params: Any) -> tuple[jax.Array, LossParts]:
            model = nnx.merge(graphdef, params, state.frozen)
            return batch_loss(model, schedule, batch, key, loss_repeat)

        (_, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(
            step=state.step + 1,
            params=params,
            frozen=state.frozen,
            optimizer=optimizer_state,
            ema=update_ema(ema, state.step + 1, state.ema, params),
        )
        return new, {
            "loss": parts.loss,
            "loss_first": parts.first,
            "loss_rest": parts.rest,
            "grad_norm": optax.tree.norm(gradients),
            "param_norm": optax.tree.norm(params),
            "lr": jnp.asarray(learning_rate(state.step), jnp.float32),
        }

    shardings = state_shardings(state)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def batch_loss(
    model: Nova, schedule: Schedule, batch: Batch, key: jax.Array, loss_repeat: int
) -> tuple[jax.Array, LossParts]:
    """Training loss of a batch with everything random drawn from `key`, and its parts."""
    latents = batch["latents"]
    size, frames = latents.shape[:2]
    draws = draw(model.config, schedule, key, batch=size, frames=frames, loss_repeat=loss_repeat)
    conditions = Conditions(**{name: value for name, value in batch.items() if name != "latents"})
    return training_loss(model, schedule, latents, conditions, draws)
