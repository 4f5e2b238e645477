"""One training step: draw, differentiate, update; compiled once per batch shape."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nova_jax.distributed.mesh import MeshLayout, batch_sharding, replicated
from nova_jax.models import layout
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Conditions, Context, Nova
from nova_jax.models.observe import Places, hand_on, observed
from nova_jax.sampling.keys import context_and_window_keys, training_key
from nova_jax.sampling.schedules import Schedule
from nova_jax.training.context import (
    ContextConfig,
    ContextDraws,
    draw_start,
    make_context,
    own_frames,
    window_of,
)
from nova_jax.training.loss import LossParts, TrainingDraws, training_loss
from nova_jax.training.optimizer import Params
from nova_jax.training.state import Blueprint, EMAConfig, TrainState, state_shardings, update_ema

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """All that a training step is made of, but for the state and the batch.

    Attributes:
        blueprint: makes the model of a state.
        mesh: over which batches are split.
        schedule: noise schedule.
        optimizer: updates the trained parameters.
        learning_rate: the optimizer's, to be reported.
        ema: how the average follows.
        loss_repeat: noise draws of each frame.
        seed: of all draws.
        first_frame_loss: weight of the first frame of videos in the loss.
        context: what the temporal encoder sees of the frames before.
    """

    blueprint: Blueprint
    mesh: MeshLayout
    schedule: Schedule
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    ema: EMAConfig = EMAConfig()
    loss_repeat: int = 4
    seed: int = 0
    first_frame_loss: float = 1.0
    context: ContextConfig = ContextConfig()

    def draws(
        self, state: TrainState, batch: Batch, step: int | jax.Array | None = None
    ) -> TrainingDraws:
        """Everything random about a step: number `step`, from 0, by default the state's next."""
        key = training_key(self.seed, state.step if step is None else step)
        config = self.blueprint.model(state.params, state.frozen).config
        return batch_draws(config, self.schedule, batch, key, self.loss_repeat, self.context)

    def step(
        self, state: TrainState, batch: Batch, draws: TrainingDraws
    ) -> tuple[TrainState, Metrics, LossParts, Params]:
        """All that a step does once everything random about it is given; to be compiled.

        Returns:
            The state after the step and its metrics, see `make_train_step`; the loss taken apart;
            the gradients. What a program does not use of it costs nothing.
        """
        parts, gradients = self.loss_and_gradients(state, batch, draws)
        norm = optax.tree.norm(gradients)
        updated = self.update(state, gradients)
        param_norm = optax.tree.norm(updated[0])
        # Norms are roots of sums of squares in float32. Where both are finite, so is all that is
        # stored: moments are means of gradients and of their squares, averages of parameters.
        finite = jnp.isfinite(parts.loss) & jnp.isfinite(norm) & jnp.isfinite(param_norm)
        # A step that is not finite only counts as one; all else stays what it was.
        old = (state.params, state.optimizer, state.ema)
        params, optimizer_state, average = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), updated, old
        )
        new = TrainState(state.step + 1, params, state.frozen, optimizer_state, average)
        metrics = {
            "loss": parts.loss,
            "loss_first": parts.first,
            "loss_rest": parts.rest,
            "grad_norm": norm,
            "param_norm": param_norm,
            "lr": jnp.asarray(self.learning_rate(state.step), jnp.float32),
            "skipped": 1.0 - finite.astype(jnp.float32),
        }
        return new, metrics, parts, gradients

    def update(self, state: TrainState, gradients: Params) -> tuple[Params, optax.OptState, Params]:
        """Parameters, state of the optimizer and moving average after these gradients."""
        updates, optimizer_state = self.optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return params, optimizer_state, update_ema(self.ema, state.step + 1, state.ema, params)

    def loss_and_gradients(
        self, state: TrainState, batch: Batch, draws: TrainingDraws
    ) -> tuple[LossParts, Params]:
        """The loss of a step, taken apart, and its gradients; see `step`."""
        context = self._context(state, batch, draws)

        def loss_of(params: Params) -> tuple[jax.Array, tuple[LossParts, Places]]:
            model = self.blueprint.model(params, state.frozen)
            with layout.use(self.mesh):
                (loss, parts), places = observed(batch_loss)(
                    model, self.schedule, batch, draws, context
                )
            if self.first_frame_loss != 1 and batch["latents"].shape[1] > 1:
                loss = self.first_frame_loss * parts.first + parts.rest
            return loss, (dataclasses.replace(parts, loss=loss), places)

        (_, (parts, places)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        hand_on(places)
        return parts, gradients

    def _context(self, state: TrainState, batch: Batch, draws: TrainingDraws) -> Context | None:
        """What the temporal encoder sees, where that is not the batch: no gradient flows there."""
        if draws.context is None:
            return None
        model = self.blueprint.model(state.params, state.frozen)
        model, latents, conditions = _inputs(model, batch, draws)
        seen = (draws.order, draws.num_visible)
        own = functools.partial(own_frames, model, self.schedule, latents, conditions, *seen)
        own = functools.partial(own, keys=draws.context.own_keys, steps=self.context.own_steps)
        with layout.use(self.mesh):
            return make_context(self.context, draws.context, latents, own)


def make_train_step(trainer: Trainer, state: TrainState) -> TrainStep:
    """Compiles ``(state, batch) -> (state, metrics)``; the old state's memory is reused.

    All randomness of a step comes from its `training_key`, so a run can be stopped anywhere. The
    state that is given here says where every array lives; its values are not used.

    Returns:
        The step. A batch is that of `nova_jax.data.batch`, on the mesh. Metrics are
        scalars: loss, loss_first and loss_rest (first frame and later ones), grad_norm (before
        clipping), param_norm (of what the update made, or would have made), lr, skipped (1 if loss
        or either norm were not finite, and so nothing was changed; see `not_finite`).
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return trainer.step(state, batch, trainer.draws(state, batch))[:2]

    shardings = state_shardings(state)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(trainer.mesh)),
        out_shardings=(shardings, replicated(trainer.mesh)),
        donate_argnums=0,
    )


def not_finite(metrics: Mapping[str, Any]) -> str | None:
    """What a step was skipped for: its "loss", "gradients" or "update"; None if it was not skipped.

    The metrics are on the host.
    """
    if not metrics["skipped"]:
        return None
    if not math.isfinite(metrics["loss"]):
        return "loss"
    return "update" if math.isfinite(metrics["grad_norm"]) else "gradients"


def batch_loss(
    model: Nova,
    schedule: Schedule,
    batch: Batch,
    draws: TrainingDraws,
    context: Context | None = None,
) -> tuple[jax.Array, LossParts]:
    """The training loss of a batch, and its parts.

    Latents may be of any size that tokens fit; each is a program of its own.
    """
    model, latents, conditions = _inputs(model, batch, draws)
    return training_loss(model, schedule, latents, conditions, draws, context)


def _inputs(model: Nova, batch: Batch, draws: TrainingDraws) -> tuple[Nova, jax.Array, Conditions]:
    """Latents and conditions of a batch, of longer clips the drawn window; the model, resized."""
    latents = batch["latents"]
    if draws.start is not None:
        latents = window_of(latents, draws.start, len(draws.order) // len(latents))
    conditions = Conditions(**{name: value for name, value in batch.items() if name != "latents"})
    _, _, height, width, _ = latents.shape
    return model.resized((height, width)), latents, conditions


def batch_draws(
    config: NovaConfig,
    schedule: Schedule,
    batch: Batch,
    key: jax.Array,
    loss_repeat: int,
    context: ContextConfig,
) -> TrainingDraws:
    """Everything random about the loss of a batch, from a key; latents as in `batch_loss`."""
    size, length, height, width, channels = batch["latents"].shape
    frames = min(length, context.window or length)
    config = dataclasses.replace(config, latent_size=(height, width))
    draws = TrainingDraws.sample(
        config, schedule, key, batch=size, frames=frames, loss_repeat=loss_repeat
    )
    context_key, window_key = context_and_window_keys(key)
    if frames > 1 and context.changes_frames:
        shape = (size, frames, height, width, channels)
        sampled = ContextDraws.sample(context, context_key, shape)
        draws = dataclasses.replace(draws, context=sampled)
    if frames < length:
        draws = dataclasses.replace(draws, start=draw_start(window_key, length, frames))
    return draws
