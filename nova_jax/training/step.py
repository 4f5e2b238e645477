"""One training step: draw, differentiate, update; compiled once per batch shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from nova_jax.distributed.mesh import batch_sharding, on_mesh, replicated
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Conditions, Nova
from nova_jax.sampling.keys import training_key
from nova_jax.sampling.schedules import Schedule
from nova_jax.training.loss import LossParts, draw, training_loss
from nova_jax.training.state import (
    Blueprint,
    EMAConfig,
    TrainState,
    state_shardings,
    update_ema,
)

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    blueprint: Blueprint,
    state: TrainState,
    *,
    mesh: Mesh,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    ema: EMAConfig,
    loss_repeat: int,
    seed: int,
    first_frame_loss: float = 1.0,
) -> TrainStep:
    """Compiles ``(state, batch) -> (state, metrics)``; the old state's memory is reused.

    All randomness of a step comes from its `training_key`, so a run can be stopped anywhere.

    Args:
        blueprint: makes the model of a state.
        state: says where every array lives; its values are not used.
        mesh: over which batches are split.
        schedule: noise schedule.
        optimizer: updates the trained parameters.
        learning_rate: the optimizer's, to be reported.
        ema: how the average follows.
        loss_repeat: noise draws of each frame.
        seed: of all draws.
        first_frame_loss: weight of the first frame of videos in the loss.

    Returns:
        The step. A batch is what `nova_jax.data.pipeline` yields, on the mesh. Metrics are
        scalars: loss, loss_first and loss_rest (first frame and later ones), grad_norm (before
        clipping), param_norm, lr, skipped (1 if loss or gradients were not finite, and so nothing
        was changed).
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = training_key(seed, state.step)

        def loss_of(params: Any) -> tuple[jax.Array, LossParts]:
            model = blueprint.model(params, state.frozen)
            with on_mesh(mesh):
                loss, parts = batch_loss(model, schedule, batch, key, loss_repeat)
            if first_frame_loss != 1 and batch["latents"].shape[1] > 1:
                loss = first_frame_loss * parts.first + parts.rest
            return loss, dataclasses.replace(parts, loss=loss)

        (_, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(parts.loss) & jnp.isfinite(norm)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = update_ema(ema, state.step + 1, state.ema, params)
        # A step that is not finite only counts as one; all else stays what it was.
        old = (state.params, state.optimizer, state.ema)
        params, optimizer_state, average = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, optimizer_state, average), old
        )
        new = TrainState(
            step=state.step + 1,
            params=params,
            frozen=state.frozen,
            optimizer=optimizer_state,
            ema=average,
        )
        return new, {
            "loss": parts.loss,
            "loss_first": parts.first,
            "loss_rest": parts.rest,
            "grad_norm": norm,
            "param_norm": optax.tree.norm(params),
            "lr": jnp.asarray(learning_rate(state.step), jnp.float32),
            "skipped": 1.0 - finite.astype(jnp.float32),
        }

    shardings = state_shardings(state)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def abstract_batch(
    config: NovaConfig, mesh: Mesh, *, size: int, frames: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch of `size` videos, or pictures, of a model.

    A batch is what `nova_jax.data.pipeline.Dataset` yields.
    """
    sharding = batch_sharding(mesh)

    def array(*shape: int, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

    batch = {
        "latents": array(frames, *config.latent_size, config.latent_channels),
        "flow": array(),
        "fps": array(),
    }
    if config.text_dim is None or config.text_length is None:
        return batch | {"label": array(dtype=jnp.int32)}
    text = array(config.text_length, config.text_dim)
    return batch | {"text": text, "text_length": array(dtype=jnp.int32)}


def batch_loss(
    model: Nova, schedule: Schedule, batch: Batch, key: jax.Array, loss_repeat: int
) -> tuple[jax.Array, LossParts]:
    """Training loss of a batch with everything random drawn from `key`, and its parts.

    Latents may be of any size that tokens fit; each is a program of its own.
    """
    latents = batch["latents"]
    size, frames, height, width, _ = latents.shape
    model = model.resized((height, width))
    draws = draw(model.config, schedule, key, batch=size, frames=frames, loss_repeat=loss_repeat)
    conditions = Conditions(**{name: value for name, value in batch.items() if name != "latents"})
    return training_loss(model, schedule, latents, conditions, draws)
