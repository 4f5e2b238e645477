"""Options that save work: what they leave as it is, and what they leave out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from small import conditions, make

from nova_jax.distributed.mesh import MeshConfig, SampleParallelism, make_mesh
from nova_jax.kernels.diffusion_sampler.reference import combine
from nova_jax.plan.costs import read_costs
from nova_jax.sampling.denoise import KeyedNoise, denoise_set
from nova_jax.sampling.frames import next_frame, part_of
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.order import bucket_steps, set_sizes
from nova_jax.sampling.schedules import DDPMSchedule, FlowMatchingSchedule
from nova_jax.sampling.state import begin
from nova_jax.sampling.video import generate

CONFIG = dataclasses.replace(
    small.CONFIG, latent_size=(8, 8), spatial_decoder="vit_d2w32", diffusion_head="mlp_d1w32"
)
SAMPLING = SamplingConfig(2, 3, GuidanceConfig(scale=3.0))
KEYS = jax.random.split(jax.random.key(9), 2)
#: 24 tokens, of which two steps in a row see and draw other numbers.
LONG = dataclasses.replace(CONFIG, latent_size=(8, 12))
STEPS = SamplingConfig(5, 2, GuidanceConfig(scale=2.0))


def drawn(model, sampling, frames=1, **options):
    arguments = (model, FlowMatchingSchedule(), conditions(2))
    return generate(*arguments, frames=frames, config=sampling, keys=KEYS, **options)


# Guidance in an interval ------------------------------------------------------------------------


def test_the_interval_is_closed_and_may_be_empty():
    times = np.array([900.0, 700.0, 500.0, 300.0])
    interval = lambda **bounds: GuidanceConfig(**bounds).interval(times)  # noqa: E731
    assert interval() == (0, 4)
    assert interval(trunc=500.0) == (0, 3)
    assert interval(ceiling=700.0) == (1, 4)
    assert interval(ceiling=700.0, trunc=500.0) == (1, 3)
    assert interval(ceiling=600.0, trunc=650.0) == (2, 2)
    assert interval(ceiling=100.0) == (4, 4)


@pytest.mark.parametrize("schedule", [FlowMatchingSchedule(), DDPMSchedule()], ids=str)
@pytest.mark.parametrize("renorm", [1.0, 0.3])
def test_outside_the_interval_it_is_the_conditional_pass(schedule, renorm):
    """Against the equations, step by step over all tokens; those outside the set move too."""
    model, steps, scale = make(CONFIG), schedule.sampling_steps(6), 3.0
    guidance = GuidanceConfig(scale=scale, renorm=renorm, ceiling=800.0, trunc=250.0)
    features = jax.random.normal(jax.random.key(1), (4, 3, 32))
    noise = KeyedNoise(KEYS, CONFIG.num_tokens, CONFIG.token_dim)
    start, head = 5, model.diffusion_head
    made = denoise_set(head, features, noise, 0, 0, start, 3, steps, guidance, scale)

    x, chosen = noise.initial(0, 0), slice(start, start + 3)
    first, end = guidance.interval(steps.time)
    assert 0 < first < end < len(steps.time)
    for step, time in enumerate(steps.time):
        inside = jnp.concatenate([x[:, chosen]] * 2)
        times = head.embed_step(jnp.full(inside.shape[:2], time))
        predicted = head(inside, head.feature_embed(features) + times)
        cond, uncond = jnp.split(predicted, 2)
        guided, factor = cond, None
        if first <= step < end:
            outside = jnp.sum(x.at[:, chosen].set(0.0) ** 2, (1, 2))
            guided, factor = combine(
                jnp.stack([cond, uncond]), scale, guidance.rule, jnp.ones(3), outside
            )
        everywhere = x if factor is None else x * factor[:, None, None]
        x = steps.keep[step] * x + steps.move[step] * everywhere.at[:, chosen].set(guided)
        if step < steps.noise_draws:
            x = x + steps.noise_scale[step] * noise.added(0, 0, step)
    np.testing.assert_allclose(made, x[:, chosen], rtol=1e-4, atol=1e-4)


def test_steps_without_guidance_cost_one_pass():
    model, steps = make(CONFIG), FlowMatchingSchedule().sampling_steps(8)
    features = jax.random.normal(jax.random.key(1), (4, 4, 32))

    def flops(**bounds):
        guidance = GuidanceConfig(scale=3.0, **bounds)
        draw = functools.partial(denoise_set, steps=steps, guidance=guidance, scale=3.0)
        noise = KeyedNoise(KEYS, CONFIG.num_tokens, CONFIG.token_dim)
        program = nnx.jit(lambda head: draw(head, features, noise, 0, 0, 0, 4))
        return read_costs(program.lower(model.diffusion_head).compile().as_text()).flops

    half = float(np.median(steps.time))
    both, ceiling, trunc, none = (
        flops(**bounds) for bounds in ({}, {"ceiling": half}, {"trunc": half}, {"ceiling": 0.0})
    )
    assert ceiling == pytest.approx(trunc, rel=0.02)
    assert ceiling == pytest.approx((both + none) / 2, rel=0.05)
    assert none < 0.6 * both


# Fewer steps later ------------------------------------------------------------------------------


def test_frames_after_the_first_have_fewer_steps():
    model, fewer = make(CONFIG), dataclasses.replace(SAMPLING, later_inference_steps=1)
    plain, video = drawn(model, SAMPLING, 2), drawn(model, fewer, 2)
    np.testing.assert_allclose(video[:, 0], plain[:, 0], rtol=1e-5, atol=1e-5)
    state = begin(CONFIG, conditions(2), None, KEYS, video[:, :1], slots=2)
    state = dataclasses.replace(state, drawn=jnp.ones(2, jnp.int32))
    one = dataclasses.replace(SAMPLING, num_inference_steps=1)
    step = nnx.jit(functools.partial(next_frame, schedule=FlowMatchingSchedule(), sampling=one))
    np.testing.assert_allclose(video[:, 1], step(model, state)[1], rtol=1e-4, atol=1e-4)
    # What is given is a first frame.
    given = drawn(model, fewer, 2, given=plain[:, :1])
    alone = drawn(model, one, 2, given=plain[:, :1])
    np.testing.assert_allclose(given, alone, rtol=1e-5, atol=1e-5)
    assert fewer.sets(16, 3) == [[5, 11], [16], [16]]


# Keys and values kept between steps -------------------------------------------------------------


@pytest.mark.parametrize("rotary", [False, True])
def test_seeing_all_tokens_in_each_step_is_exact(rotary):
    model = make(dataclasses.replace(LONG, spatial_decoder="vit_d4w32", rotary=rotary))
    exact = drawn(model, STEPS, 2)
    cached = drawn(model, dataclasses.replace(STEPS, feature_cache=1), 2)
    np.testing.assert_allclose(cached, exact, rtol=1e-5, atol=1e-5)
    stale = drawn(model, dataclasses.replace(STEPS, feature_cache=4), 2)
    assert stale.shape == exact.shape and bool(jnp.isfinite(stale).all())
    assert float(jnp.abs(stale - exact).max()) > 1e-3


@pytest.mark.parametrize(("steps", "rotary"), [(5, False), (6, True)])
def test_what_does_not_change_need_not_be_seen_again(steps, rotary):
    """Of a model whose visible tokens do not see each other in the first half, of one block, the
    second half, of one block too, knows all that it needs: no key is old, and none is missing."""
    model = make(dataclasses.replace(LONG, spatial_decoder="vit_d2w32", rotary=rotary))
    out = model.spatial_decoder.encoder_blocks.block.attention.out
    out.kernel.set_value(jnp.zeros_like(out.kernel.get_value()))
    sampling = dataclasses.replace(STEPS, num_inference_steps=steps)
    cached = drawn(model, dataclasses.replace(sampling, feature_cache=100), 2)
    np.testing.assert_allclose(cached, drawn(model, sampling, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whole", [True, False])
def test_devices_share_what_is_kept(whole):
    model, config = make(LONG), dataclasses.replace(STEPS, feature_cache=3)
    layout = MeshConfig() if whole else MeshConfig(tensor=2)
    mesh = make_mesh(jax.devices()[:2], layout)
    shared = drawn(model, config, parallelism=SampleParallelism(mesh, whole=whole))
    np.testing.assert_allclose(shared, drawn(model, config), rtol=1e-4, atol=1e-4)


def test_a_frame_of_which_something_is_kept_is_exact():
    model, given = make(LONG), jax.random.normal(jax.random.key(3), (2, 1, 8, 12, 3))
    edit = {"given": given, "kept": np.arange(24)[None] % 3 == 0}
    cached = drawn(model, dataclasses.replace(STEPS, feature_cache=4), **edit)
    np.testing.assert_allclose(cached, drawn(model, STEPS, **edit), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("waste", [-1.0, 0.05])  # a program for each step, or for several
@pytest.mark.parametrize("tokens", [16, 24, 77, 360, 1440])
def test_a_part_has_the_set_before_and_the_one_that_is_due(tokens, waste):
    most = 0
    for steps in (*range(1, 40), 64, 128):
        sizes = set_sizes(tokens, steps)
        for bucket in bucket_steps(sizes, lambda visible, predicted: 100.0 + visible, waste):
            for index, start, count in zip(*bucket.rows, strict=True):
                first, size = part_of(int(start), bucket.width, tokens)
                before = sizes[index - 1] if index else 0
                assert first <= start - before and start + count <= first + size <= tokens
                most = max(most, before - bucket.width)
    assert most == 1 or waste > 0  # by rounding, that is, there is one more
