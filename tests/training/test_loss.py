"""The training loss and its parts; values and gradients are also in tests/parity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import CONFIG

from nova_jax.models import Conditions, Nova
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.training.loss import TrainingDraws, training_loss

SCHEDULE = FlowMatchingSchedule()


def test_draws_have_static_shapes_and_masks_of_seventy_percent_or_more():
    seen = set()
    for seed in range(200):
        draws = TrainingDraws.sample(
            CONFIG, SCHEDULE, jax.random.key(seed), batch=1, frames=1, loss_repeat=1
        )
        seen.add(int(draws.num_visible))
    assert min(seen) == 0
    assert max(seen) in (7, 8)
    assert draws.noise.shape == (1, 1, 24, 12)


def test_masks_of_any_share_are_drawn_where_they_are_asked_for():
    config = dataclasses.replace(CONFIG, mask_ratio_min=0.0, mask_ratio_std=100.0)
    assert config.max_visible_tokens == 23
    key = jax.random.split(jax.random.key(0), 500)
    draw = jax.vmap(
        lambda key: (
            TrainingDraws.sample(
                config, SCHEDULE, key, batch=1, frames=1, loss_repeat=1
            ).num_visible
        )
    )
    counts = np.bincount(draw(key), minlength=24)
    assert len(counts) == 24 and counts.min() > 0  # one token is always hidden
    assert abs(counts[:12].sum() - counts[12:].sum()) < 100


@pytest.mark.parametrize("frames", [1, 3])
def test_parts_add_up_and_visible_tokens_do_not_count(frames):
    model = Nova(CONFIG, rngs=nnx.Rngs(0))
    latents = jax.random.normal(jax.random.key(1), (2, frames, 8, 12, 3))
    conditions = Conditions(text=jnp.ones((2, 4, 8)), text_length=jnp.array([4, 2]))
    draws = TrainingDraws.sample(
        CONFIG, SCHEDULE, jax.random.key(2), batch=2, frames=frames, loss_repeat=2
    )
    draws = dataclasses.replace(draws, num_visible=jnp.asarray(6, jnp.int32))
    loss, parts = nnx.jit(training_loss, static_argnums=1)(
        model, SCHEDULE, latents, conditions, draws
    )
    np.testing.assert_allclose(loss, parts.first + parts.rest, rtol=1e-6)
    assert parts.weight.tolist() == [0.0] * 6 + [1.0] * 18
    weighted = np.asarray(parts.per_token)[..., 6:].sum((0, 1, 3)) / (2 * 2 * frames * 18 + 1e-5)
    if frames == 1:
        np.testing.assert_allclose(parts.first, weighted[0], rtol=1e-5)
        assert float(parts.rest) == 0
    else:
        np.testing.assert_allclose(parts.first, 3 * weighted[0], rtol=1e-5)
        np.testing.assert_allclose(parts.rest, 1.5 * weighted[1:].sum(), rtol=1e-5)
    np.testing.assert_allclose(parts.mask_ratio, 0.75)


def test_an_untrained_head_already_predicts_the_noise():
    """The head starts as x / rms(x): with data at zero, the loss is near zero before training."""
    model = Nova(dataclasses.replace(CONFIG, latent_channels=2), rngs=nnx.Rngs(0))
    latents = jnp.zeros((4, 1, 8, 12, 2))
    conditions = Conditions(text=jnp.ones((4, 4, 8)), text_length=jnp.full(4, 4))
    config = dataclasses.replace(CONFIG, latent_channels=2)
    draws = TrainingDraws.sample(config, SCHEDULE, jax.random.key(2), batch=4, frames=1)
    loss, _ = nnx.jit(training_loss, static_argnums=1)(model, SCHEDULE, latents, conditions, draws)
    assert float(loss) < 0.2
