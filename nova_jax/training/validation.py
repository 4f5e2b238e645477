"""Loss on held-out clips, whole and by frame, mask ratio and timestep.

The clips and everything drawn are the same at each validation, so its numbers can be compared
along a run and between runs of one config.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nova_jax.distributed.mesh import batch_sharding, replicate, replicated
from nova_jax.models import layout
from nova_jax.sampling.keys import validation_key
from nova_jax.training.context import ContextConfig
from nova_jax.training.loss import LossParts
from nova_jax.training.optimizer import Params
from nova_jax.training.state import TrainState, state_shardings
from nova_jax.training.step import Batch, Trainer, batch_draws, batch_loss

# Upper ends of the buckets; the lowest mask ratio is the model's `mask_ratio_min`, 0.7 by default.
MASK_BUCKETS = (0.8, 0.9, 1.0)
TIME_BUCKETS = (200, 400, 600, 800, 1000)

Table = dict[str, tuple[Array, Array]]
Validate = Callable[[Params, Params, Sequence[Batch]], dict[str, float]]


def make_validation(trainer: Trainer, state: TrainState) -> Validate:
    """Compiles ``(params, frozen, batches) -> numbers by name``.

    The state says where every array lives; its values are not used.

    Returns:
        The validation. Its numbers are the training loss (``loss``, ``loss_first``,
        ``loss_rest``), and mean squared errors of masked tokens by frame (``frame/0``), by mask
        ratio (``mask/0.7-0.8``) and by training timestep (``time/000-199``; which is noisiest
        depends on the schedule: flow matching counts from pure noise, DDPM from the clean image).
        Buckets that got no token are left out.
    """

    mesh, schedule = trainer.mesh, trainer.schedule

    def validate_batch(params: Params, frozen: Params, batch: Batch, index: jax.Array) -> Table:
        model = trainer.blueprint.model(params, frozen)
        key = validation_key(index)
        window = ContextConfig(window=trainer.context.window)
        draws = batch_draws(model.config, schedule, batch, key, trainer.loss_repeat, window)
        with layout.use(mesh):
            _, parts = batch_loss(model, schedule, batch, draws)
        one = jnp.ones(())
        whole = {"loss": parts.loss, "loss_first": parts.first, "loss_rest": parts.rest}
        lowest = model.config.mask_ratio_min
        return {name: (value, one) for name, value in whole.items()} | buckets(parts, lowest)

    shardings = state_shardings(state)
    compiled = jax.jit(
        validate_batch,
        in_shardings=(shardings.params, shardings.frozen, batch_sharding(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )

    def validate(params: Params, frozen: Params, batches: Sequence[Batch]) -> dict[str, float]:
        sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        for index, batch in enumerate(batches):
            place = replicate(np.int32(index), mesh)
            for name, pair in jax.device_get(compiled(params, frozen, batch, place)).items():
                sums[name] += np.asarray(pair)
        return {name: float(total / count) for name, (total, count) in sums.items() if count}

    return validate


def buckets(parts: LossParts, lowest: float = 0.7) -> Table:
    """(sum of squared errors, number) of masked tokens in each bucket."""
    weight = jnp.broadcast_to(parts.weight, parts.per_token.shape)

    def mean_over(chosen: Float[Array, "r b t n"]) -> tuple[Array, Array]:
        return jnp.sum(chosen * weight * parts.per_token), jnp.sum(chosen * weight)

    table: Table = {}
    for frame in range(parts.per_token.shape[2]):
        chosen = jnp.zeros(weight.shape).at[:, :, frame].set(1.0)
        table[f"frame/{frame}"] = mean_over(chosen)
    # A ratio of exactly 0.8 belongs below; rounding to whole tokens may pass the lowest.
    ends = [end for end in MASK_BUCKETS if end > lowest]
    for low, high in zip((0.0, *ends), ends, strict=False):
        inside = (parts.mask_ratio > low) & (parts.mask_ratio <= high)
        name = f"mask/{max(low, lowest):.1f}-{high:.1f}"
        table[name] = mean_over(jnp.full(weight.shape, inside, jnp.float32))
    for low, high in zip((0, *TIME_BUCKETS), TIME_BUCKETS, strict=False):
        inside = (parts.timestep_index >= low) & (parts.timestep_index < high)
        table[f"time/{low:03d}-{high - 1:03d}"] = mean_over(inside.astype(jnp.float32))
    return table
