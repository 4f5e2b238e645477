"""What training lets the temporal encoder see: windows, noise, frames left out, the model's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from nova_jax.errors import NovaError
from nova_jax.models import Conditions
from nova_jax.models.nova import Context
from nova_jax.sampling.denoise import KeyedNoise
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.sampling.video import generate
from nova_jax.training.context import (
    ContextConfig,
    ContextDraws,
    cutmix,
    draw_start,
    frame_weights,
    make_context,
    own_frames,
    window_of,
)
from nova_jax.training.loss import TrainingDraws, training_loss
from nova_jax.training.step import batch_draws

SCHEDULE = FlowMatchingSchedule()
CONFIG = dataclasses.replace(small.CONFIG, latent_size=(8, 8))
SHAPE = (2, 3, 8, 8, 3)
CONDITIONS = Conditions(
    text=jax.random.normal(jax.random.key(5), (2, 4, 8)),
    text_length=jnp.array([4, 2], jnp.int32),
    flow=jnp.full(2, 5.0),
    fps=jnp.full(2, 12.0),
)


@pytest.fixture(scope="module")
def model():
    return small.make(CONFIG)


@pytest.fixture(scope="module")
def latents():
    return jax.random.normal(jax.random.key(3), SHAPE)


def draws_of(num_visible):
    draws = TrainingDraws.sample(CONFIG, SCHEDULE, jax.random.key(2), batch=2, frames=3)
    return dataclasses.replace(draws, num_visible=jnp.asarray(num_visible, jnp.int32))


def context_of(model, latents, num_visible=4, **config):
    config = ContextConfig(**config)
    draws = ContextDraws.sample(config, jax.random.key(7), SHAPE)
    order, visible = draws_of(num_visible).order, jnp.asarray(num_visible)

    def own():
        options = {"keys": draws.own_keys, "steps": config.own_steps}
        return own_frames(model, SCHEDULE, latents, CONDITIONS, order, visible, **options)

    return make_context(config, draws, latents, own)


def test_noise_has_a_level_of_its_own_in_every_frame(model, latents):
    context = context_of(model, latents, noise=0.5)
    draws = ContextDraws.sample(ContextConfig(noise=0.5), jax.random.key(7), SHAPE)
    level = np.asarray(draws.level)[..., None, None, None]
    wanted = np.asarray(latents) + np.asarray(draws.noise) * level
    np.testing.assert_allclose(context.latents, wanted, rtol=1e-6, atol=1e-6)
    assert len(np.unique(level)) == 6 and 0 <= level.min() and level.max() <= 0.5
    assert bool(context.known.all())


def test_frames_that_are_left_out_do_not_matter(model, latents):
    seen = model.temporal_encoder(latents, model.embed_conditions(CONDITIONS))
    condition = model.embed_conditions(CONDITIONS)
    known = jnp.array([[True, True, False], [True, True, True]])
    some = model.temporal_encoder(latents, condition, known)
    other = model.temporal_encoder(latents.at[0, 1].add(1), condition, known)
    np.testing.assert_array_equal(some, other)
    np.testing.assert_allclose(some[1], seen[1], rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(some[0, 2] - seen[0, 2]).max()) > 1e-3
    shares = [float(context_of(model, latents, dropout=p).known.mean()) for p in (0.0, 1.0)]
    assert shares == [1.0, 0.0]


def test_another_video_shows_in_one_rectangle_of_all_frames_but_the_first(model, latents):
    mixed = np.asarray(cutmix(latents, jnp.array([[0.25, 0.0, 0.5, 1.0], [0.4, 0.4, 0.6, 0.7]])))
    inside = np.zeros((2, 1, 8, 8, 1), bool)
    inside[0, :, 2:4] = True
    inside[1, :, 3:5, 3:6] = True  # pixels whose middle is inside
    wanted = np.where(inside, latents[::-1], latents)
    np.testing.assert_array_equal(mixed[:, 1:], wanted[:, 1:])
    np.testing.assert_array_equal(mixed[:, 0], latents[:, 0])
    seen = context_of(model, latents, cutmix=0.9).latents
    np.testing.assert_array_equal(seen[:, 0], latents[:, 0])
    assert 0 < np.mean(np.asarray(seen != latents)[:, 1:]) < 0.9**2


def test_rectangles_are_as_large_as_asked_for_and_inside_the_frame():
    shape = (500, 3, 8, 8, 3)
    drawn = ContextDraws.sample(ContextConfig(cutmix=0.6), jax.random.key(7), shape).rectangle
    size = np.asarray(drawn[:, 2:] - drawn[:, :2])
    assert 0 <= size.min() < 0.02 and 0.58 < size.max() <= 0.6
    assert 0 <= drawn.min() < 0.02 and 0.98 < drawn.max() <= 1


def test_own_frames_are_what_generation_draws_after_the_clip(model, latents):
    """The last frame, all of it masked, is a generated frame after the clip's others."""
    config, visible = ContextConfig(own=1.0, own_steps=3), 0
    own = context_of(model, latents, visible, own=1.0, own_steps=3).latents
    draws = ContextDraws.sample(config, jax.random.key(7), SHAPE)
    size = model.config
    for frame in (0, 2):  # positions are of three frames
        rows = np.array([frame, 3 + frame])
        options = {"given": latents[:, :frame]} if frame else {}
        generated = generate(
            model,
            SCHEDULE,
            CONDITIONS,
            frames=3,
            config=SamplingConfig(1, 3, GuidanceConfig(scale=1.0)),
            keys=jax.random.split(jax.random.key(0), 2),
            order=draws_of(visible).order[rows],
            noise=KeyedNoise(draws.own_keys[rows], size.num_tokens, size.token_dim),
            **options,
        )
        np.testing.assert_allclose(own[:, frame], generated[:, frame], rtol=1e-4, atol=1e-5)


def test_own_frames_keep_what_is_visible(model, latents):
    everything = context_of(model, latents, CONFIG.num_tokens, own=1.0).latents
    np.testing.assert_allclose(everything, latents, rtol=1e-6, atol=1e-6)
    own = np.asarray(context_of(model, latents, 4, own=1.0).latents)
    tokens, old = (np.asarray(model.tokens(jnp.asarray(x))) for x in (own, latents))
    unchanged = np.isclose(tokens, old, atol=1e-6).all(-1)
    np.testing.assert_array_equal(unchanged.sum(-1), np.full((2, 3), 4))


def test_the_loss_sees_a_context_and_asks_for_the_clip(model, latents):
    loss_of = nnx.jit(training_loss, static_argnums=1)
    draws = draws_of(4)
    plain, _ = loss_of(model, SCHEDULE, latents, CONDITIONS, draws)
    whole = dataclasses.replace(draws, start=jnp.asarray(1))  # a window from the clip's beginning
    windowed = loss_of(model, SCHEDULE, latents, CONDITIONS, whole)[0]
    np.testing.assert_allclose(windowed, plain, rtol=1e-6)
    same = Context(latents, jnp.ones(SHAPE[:2], bool))
    np.testing.assert_allclose(loss_of(model, SCHEDULE, latents, CONDITIONS, draws, same)[0], plain)
    other = dataclasses.replace(same, latents=latents.at[:, 0].multiply(-1))
    parts = [
        loss_of(model, SCHEDULE, latents, CONDITIONS, draws, context)[1]
        for context in (same, other)
    ]
    np.testing.assert_array_equal(parts[0].first, parts[1].first)
    assert abs(float(parts[0].rest - parts[1].rest)) > 1e-4


def test_windows_begin_with_the_first_frame_and_end_inside_the_clip():
    clips = jnp.arange(10.0)[None, :, None, None, None]
    starts = [int(draw_start(key, 10, 6)) for key in jax.random.split(jax.random.key(0), 200)]
    assert set(starts) == {1, 2, 3, 4, 5}
    assert 80 < starts.count(1) < 160
    assert window_of(clips, jnp.asarray(3), 6).ravel().tolist() == [0, 3, 4, 5, 6, 7]
    assert window_of(clips, jnp.asarray(5), 6).ravel().tolist() == [0, 5, 6, 7, 8, 9]


def test_frames_of_a_later_window_that_cannot_be_known_do_not_count():
    assert frame_weights(jnp.asarray(1), 6).tolist() == [1, 1, 1, 1, 1, 1]
    weights = frame_weights(jnp.asarray(3), 6)
    np.testing.assert_allclose(weights, [1, 0, 0, 5 / 3, 5 / 3, 5 / 3], rtol=1e-6)


def test_nothing_is_drawn_that_is_not_asked_for(latents):
    batch = {"latents": latents}
    arguments = (CONFIG, SCHEDULE, batch, jax.random.key(1), 1)
    plain = batch_draws(*arguments, ContextConfig())
    assert plain.context is None and plain.start is None
    changed = batch_draws(*arguments, ContextConfig(noise=0.3))
    for field in ("order", "num_visible", "noise", "timestep_index"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(changed, field))
    assert batch_draws(*arguments, ContextConfig(window=4)).start is None  # no longer than that


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 1.5}, "noise is 1.5; it must be at least 0 and at most 1"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"cutmix": 1.5}, "cutmix is 1.5"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"own": 2.0}, "own is 2.0"),
        ({"own_steps": 0}, "own_steps is 0"),
        ({"window": 3}, "window is 3; it must be at least 4"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(NovaError, match=message):
        ContextConfig(**options)
