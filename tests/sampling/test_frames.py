"""Generation: frames against the whole sequence, and a sample's independence of its batch.

Trajectories are checked against the PyTorch release in tests/parity.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from small import conditions, make

from nova_jax.distributed.mesh import (
    SampleParallelism,
    batch_sharding,
    make_mesh,
    replicated,
)
from nova_jax.errors import NovaError
from nova_jax.kernels.diffusion_sampler import api, tpu
from nova_jax.kernels.diffusion_sampler.reference import Guidance, combine
from nova_jax.models import Conditions
from nova_jax.sampling import video
from nova_jax.sampling.denoise import KeyedNoise
from nova_jax.sampling.frames import Kept, describe, next_frame
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.sampling.state import begin, join, rows_of, unconditional
from nova_jax.sampling.video import generate

CONFIG = dataclasses.replace(
    small.CONFIG, latent_size=(8, 8), spatial_decoder="vit_d2w32", diffusion_head="mlp_d1w32"
)
SAMPLING = SamplingConfig(2, 3, GuidanceConfig(scale=3.0))


def rows(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.mark.parametrize("scales", [(1.0, None), (3.0, None), (3.0, 1.5)])
@pytest.mark.parametrize("rotary", [False, True])
def test_a_frame_is_described_as_in_training(rotary, scales):
    """From the frames before it alone, and by each guidance pass as that one sees them."""
    model, given = make(dataclasses.replace(CONFIG, rotary=rotary)), conditions(2)
    guidance = GuidanceConfig(scale=scales[0], image_scale=scales[1])
    latents = jax.random.normal(jax.random.key(3), (2, 3, 8, 8, 3))
    keys = jax.random.split(jax.random.key(9), 2)
    empty = unconditional(given, CONFIG)
    known = [None, jnp.zeros((2, 3), bool), None] if guidance.passes == 3 else [None, None]

    @nnx.jit
    def whole(model):
        encode = model.temporal_encoder
        each = [given, empty, empty][: guidance.passes]
        return [
            encode(latents, model.embed_conditions(c), k) for c, k in zip(each, known, strict=False)
        ]

    passes = jnp.concatenate(whole(model))
    for frame in range(3):
        state = begin(CONFIG, given, None, keys, latents[:, :frame], slots=3)
        described = nnx.jit(describe, static_argnums=2)(model, state, guidance)
        np.testing.assert_allclose(described, passes[:, frame], rtol=1e-5, atol=1e-5)


def test_samples_of_different_frames_advance_together():
    model, schedule = make(CONFIG), FlowMatchingSchedule()
    keys = jax.random.split(jax.random.key(9), 3)
    step = nnx.jit(functools.partial(next_frame, schedule=schedule, sampling=SAMPLING))
    alone = [begin(CONFIG, rows(conditions(3), slice(i, i + 1)), None, keys[i : i + 1], slots=4)
             for i in range(3)]  # fmt: skip
    for i, state in enumerate(alone):
        for _ in range(3 * i):  # the last one is past its slots
            state, _ = step(model, state)
        alone[i] = state
    together, latents = step(model, join(alone))
    for i, state in enumerate(alone):
        state, frame = step(model, state)
        np.testing.assert_allclose(latents[i : i + 1], frame, rtol=1e-4, atol=1e-4)
        own = rows_of(together, i, 1)
        np.testing.assert_array_equal(own.frame, state.frame)
        np.testing.assert_allclose(own.seen, state.seen, rtol=1e-4, atol=1e-4)


def test_a_window_sees_the_first_frame_and_the_last_ones():
    model, schedule = make(CONFIG), FlowMatchingSchedule()
    keys = jax.random.split(jax.random.key(9), 1)
    given = jax.random.normal(jax.random.key(4), (1, 5, 8, 8, 3))

    def last(video, window):
        config = dataclasses.replace(SAMPLING, window=window)
        options = {"frames": 6, "config": config, "keys": keys, "given": video}
        return generate(model, schedule, conditions(1), **options)[:, -1]

    windowed = last(given, 4)
    for frame, sees in enumerate([True, False, False, True, True]):
        change = float(jnp.abs(last(given.at[:, frame].add(1), 4) - windowed).max())
        assert (change > 1e-3) == sees, f"frame {frame}: {change}"
    # What it sees stands where the same frames of a shorter video stand.
    short = generate(
        model,
        schedule,
        conditions(1),
        frames=4,
        config=SAMPLING,
        keys=keys,
        given=given[:, jnp.array([0, 3, 4])],
    )
    np.testing.assert_allclose(short[:, -1], windowed, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last(given, 6), last(given, None), rtol=1e-5, atol=1e-5)


def test_noise_on_frames_changes_those_that_follow():
    model, keys = make(CONFIG), jax.random.split(jax.random.key(9), 1)
    options = {"frames": 3, "keys": keys}
    plain = generate(model, FlowMatchingSchedule(), conditions(1), config=SAMPLING, **options)
    config = dataclasses.replace(SAMPLING, context_noise=0.5)
    noised = generate(model, FlowMatchingSchedule(), conditions(1), config=config, **options)
    np.testing.assert_allclose(noised[:, 0], plain[:, 0], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(noised[:, 1:] - plain[:, 1:]).max()) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 3},
        {"context_noise": 0.1},
        {"later_inference_steps": 1},
        {"num_inference_steps": 4, "feature_cache": 2},
    ],
)
def test_one_program_of_all_frames_gives_the_same(options):
    keys = jax.random.split(jax.random.key(9), 2)
    config = dataclasses.replace(SAMPLING, **options)
    arguments = (make(CONFIG), FlowMatchingSchedule(), conditions(2))
    same = {"frames": 4, "config": config, "keys": keys}
    one = nnx.jit(lambda model: video.generate_in_one(model, *arguments[1:], **same))
    np.testing.assert_allclose(
        one(arguments[0]), generate(*arguments, **same), rtol=1e-4, atol=1e-4
    )


def test_a_frame_keeps_what_it_is_told_to():
    model, schedule = make(CONFIG), FlowMatchingSchedule()
    keys = jax.random.split(jax.random.key(9), 2)
    state = begin(CONFIG, conditions(2), None, keys, slots=2)
    step = nnx.jit(functools.partial(next_frame, schedule=schedule, sampling=SAMPLING))
    old = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    _, plain = step(model, state)

    def drawn(tokens):
        kept = Kept(old, jnp.broadcast_to(jnp.asarray(tokens), (2, CONFIG.num_tokens)))
        _, frame = step(model, state, kept)
        return model.tokens(frame), jnp.asarray(tokens)

    np.testing.assert_allclose(
        drawn([False] * CONFIG.num_tokens)[0], model.tokens(plain), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(drawn([True] * CONFIG.num_tokens)[0], model.tokens(old))
    for number in (1, 5, CONFIG.num_tokens - 1):
        tokens, kept = drawn(np.arange(CONFIG.num_tokens) % CONFIG.num_tokens < number)
        np.testing.assert_array_equal(tokens[:, kept], model.tokens(old)[:, kept])
        assert (jnp.abs(tokens - model.tokens(old)).max(-1)[:, ~kept] > 1e-3).all()


def test_a_sample_does_not_depend_on_its_batch():
    model, schedule = make(CONFIG), FlowMatchingSchedule()
    keys = jax.random.split(jax.random.key(9), 3)
    options = {"frames": 2, "config": SAMPLING}
    together = generate(model, schedule, conditions(3), keys=keys, **options)
    assert together.shape == (3, 2, 8, 8, 3)
    alone = generate(model, schedule, rows(conditions(3), slice(1, 2)), keys=keys[1:2], **options)
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-4, atol=1e-4)
    other = generate(model, schedule, rows(conditions(3), slice(1, 2)), keys=keys[:1], **options)
    assert float(jnp.abs(other[0] - together[1]).max()) > 0.1


def test_a_given_image_is_frame_zero_and_later_frames_follow():
    model, image = make(CONFIG), jax.random.normal(jax.random.key(4), (1, 8, 8, 3))
    keys, finished = jax.random.split(jax.random.key(9), 1), []
    video = generate(
        model,
        FlowMatchingSchedule(),
        conditions(1),
        frames=5,  # longer than the model was made for
        config=SAMPLING,
        keys=keys,
        given=image[:, None],
        on_frame=finished.append,
    )
    assert video.shape == (1, 5, 8, 8, 3)
    np.testing.assert_array_equal(video[:, 0], image)
    assert finished == [1, 2, 3, 4, 5]
    assert bool(jnp.all(jnp.isfinite(video)))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("whole", [True, False])
def test_nothing_goes_between_host_and_devices_while_frames_are_made(devices, whole):
    """Implicitly, that is; arguments are on the devices before."""
    mesh = make_mesh(jax.devices()[:devices])
    graph, params = nnx.split(make(CONFIG))
    model = nnx.merge(graph, jax.device_put(params, replicated(mesh)))
    inputs = (conditions(2), jax.random.split(jax.random.key(9), 2), jnp.zeros((2, 1, 8, 8, 3)))
    given, keys, image = jax.device_put(inputs, batch_sharding(mesh))
    with jax.transfer_guard("disallow"):
        video = generate(
            model,
            FlowMatchingSchedule(),
            given,
            frames=3,
            config=SAMPLING,
            keys=keys,
            given=image,
            on_frame=lambda _: None,
            parallelism=SampleParallelism(mesh, whole=whole),
        )
    assert bool(jnp.all(jnp.isfinite(video)))


def test_truncating_all_guidance_is_no_guidance():
    model, keys = make(CONFIG), jax.random.split(jax.random.key(9), 1)

    def draw(**guidance):
        config = dataclasses.replace(SAMPLING, guidance=GuidanceConfig(**guidance))
        return generate(
            model, FlowMatchingSchedule(), conditions(1), frames=1, config=config, keys=keys
        )

    plain = draw(scale=1.0)
    np.testing.assert_allclose(draw(scale=5.0, trunc=2000.0), plain, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(draw(scale=5.0) - plain).max()) > 1e-3


def test_unconditional_drops_text_or_class_and_keeps_motion():
    empty = unconditional(conditions(2), CONFIG)
    assert empty.text_length.tolist() == [0, 0]
    assert empty.flow.tolist() == [5.0, 5.0]
    config = dataclasses.replace(CONFIG, text_dim=None, text_length=None, num_classes=7)
    assert unconditional(Conditions(label=jnp.array([1, 3])), config).label.tolist() == [7, 7]


def test_guidance_by_hand():
    cond, uncond, base = jnp.array([[[3.0, 4.0]]]), jnp.zeros((1, 1, 2)), jnp.array([[[0.0, 4.0]]])
    valid = jnp.ones(1)
    plain, factor = combine(jnp.stack([cond, uncond]), 2.0, Guidance(2), valid, None)
    np.testing.assert_allclose(plain, [[[6.0, 8.0]]])
    assert factor is None
    # ‖cond‖ = 5 and ‖guided‖ = 10, with nothing outside the set: factor ½, bounded by renorm.
    rest = jnp.zeros(1)
    for bound, wanted in ((0.2, 0.5), (0.8, 0.8)):
        config = Guidance(2, renorm=bound)
        guided, factor = combine(jnp.stack([cond, uncond]), 2.0, config, valid, rest)
        np.testing.assert_allclose(guided, wanted * plain, rtol=1e-6)
        np.testing.assert_allclose(factor, [wanted], rtol=1e-6)
    # Outside the set the passes agree; its norm 12 counts: √(25 + 144) / √(100 + 144).
    config = Guidance(2, renorm=0.2)
    _, factor = combine(jnp.stack([cond, uncond]), 2.0, config, valid, jnp.array([144.0]))
    np.testing.assert_allclose(factor, [13 / np.sqrt(244)], rtol=1e-6)
    # uncond + 2·(cond − base) + 1.5·(base − uncond)
    config = Guidance(3, image_scale=1.5)
    guided, _ = combine(jnp.stack([cond, uncond, base]), 2.0, config, valid, None)
    np.testing.assert_allclose(guided, [[[6.0, 6.0]]])


def test_guidance_scale_grows_over_the_steps():
    config = GuidanceConfig(scale=5.0, min_scale=2.0)
    assert [config.scale_at(k, 3) for k in range(3)] == pytest.approx([3.0, 4.0, 5.0])
    assert GuidanceConfig(scale=5.0).scale_at(0, 3) == pytest.approx(5.0)


def test_noise_differs_by_frame_step_and_draw():
    noise = KeyedNoise(jax.random.split(jax.random.key(0), 2), 4, 3)
    seen = {
        np.asarray(value).tobytes()
        for value in (
            noise.initial(0, 0),
            noise.initial(0, 1),
            noise.initial(1, 0),
            noise.added(0, 0, 0),
            noise.added(0, 0, 1),
        )
    }
    assert len(seen) == 5


def test_impossible_requests_are_named():
    model, keys = make(CONFIG), jax.random.split(jax.random.key(9), 1)
    options = {"config": SAMPLING, "keys": keys}
    with pytest.raises(NovaError, match="frames is 0"):
        generate(model, FlowMatchingSchedule(), conditions(1), frames=0, **options)
    with pytest.raises(NovaError, match="given frames have shape"):
        given = jnp.zeros((1, 1, 4, 8, 3))
        generate(model, FlowMatchingSchedule(), conditions(1), frames=1, given=given, **options)
    with pytest.raises(NovaError, match="renorm is 2"):
        GuidanceConfig(renorm=2.0)


def test_what_the_kernel_cannot_do_is_said_before_programs_are_compiled(monkeypatch):
    """A head of width 32, on a machine that the kernel of TPUs would run on."""
    monkeypatch.setitem(api._KERNELS, "cpu", lambda: tpu)
    info = types.SimpleNamespace(vmem_capacity_bytes=2**27)
    monkeypatch.setattr(tpu.pltpu, "get_tpu_info", lambda: info)
    config = dataclasses.replace(SAMPLING, sampler="pallas")
    options = {"frames": 1, "config": config, "keys": jax.random.split(jax.random.key(0), 1)}
    with pytest.raises(NovaError, match='width is a multiple of 128 .* not 32 .* sampler "xla"'):
        generate(make(CONFIG), FlowMatchingSchedule(), conditions(1), **options)


@pytest.mark.parametrize("slots", [1, 2, 4, 9])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_given_frames_are_seen_as_if_they_had_been_drawn(slots, noise):
    video = jax.random.normal(jax.random.key(4), (2, 5, 8, 8, 3))
    keys, options = jax.random.split(jax.random.key(5), 2), {"slots": slots, "context_noise": noise}
    at_once = begin(CONFIG, conditions(2), None, keys, video, **options)
    one_by_one = begin(CONFIG, conditions(2), None, keys, **options)
    for frame in range(5):
        one_by_one = one_by_one.followed_by(video[:, frame], noise)
    np.testing.assert_allclose(at_once.seen, one_by_one.seen, atol=1e-6)
    np.testing.assert_array_equal(at_once.frame, one_by_one.frame)
