"""Generation frame by frame, each frame set by set (paper, sections 3.2 to 3.4).

For each frame: one pass of the temporal encoder over the frame before it, with a key-value
cache, then K AR steps of the spatial decoder and the diffusion head. Three compiled programs do
it: the temporal encoder on frame 0 and the conditions, the same on any later frame, and a frame's
whole set-by-set loop, without a word to the host in between. Or all of it is one program, with
frames as a loop too: what is exported.

Dimensions: B samples, G guidance passes, T frames, N tokens of a frame, M indicator features.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from nova_jax.errors import NovaError
from nova_jax.kernels.diffusion_sampler.api import choose
from nova_jax.models import flops
from nova_jax.models.attention import KVCache
from nova_jax.models.config import NovaConfig
from nova_jax.models.layers import unpatchify
from nova_jax.models.nova import Conditions, Nova
from nova_jax.sampling.denoise import KeyedNoise, NoiseSource, denoise_set
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.keys import context_keys, noise_keys, order_keys
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.order import Bucket, bucket_steps, reveal_order, set_sizes, to_row_major
from nova_jax.sampling.schedules import Schedule


def unconditional(conditions: Conditions, config: NovaConfig) -> Conditions:
    """The same conditions without text or class; motion stays."""
    if config.num_classes is not None:
        assert conditions.label is not None
        return dataclasses.replace(
            conditions, label=jnp.full_like(conditions.label, config.num_classes)
        )
    assert conditions.text_length is not None
    return dataclasses.replace(conditions, text_length=jnp.zeros_like(conditions.text_length))


def stack_passes(
    conditions: Conditions, negative: Conditions, guidance: GuidanceConfig
) -> Conditions:
    """Conditions of all guidance passes, stacked on the batch axis."""
    passes = [conditions, negative, negative][: guidance.passes]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=0), *passes)


def begin(
    model: Nova, conditions: Conditions, cache: KVCache, *, guidance: GuidanceConfig, frames: int
) -> tuple[Float[Array, "gb m d"], KVCache]:
    """Frame 0's indicator features, from the stacked conditions of all passes."""
    encoder = model.temporal_encoder
    condition = model.embed_conditions(conditions)
    bare = encoder.begin_of_video(condition.shape[0])
    slot = _without_frame(encoder.add_positions(bare, frames), bare, guidance)
    return encoder.decode(slot[:, 0], condition, jnp.zeros((), jnp.int32), cache)


def advance(
    model: Nova,
    latents: Float[Array, "b h w c"],
    anchor: Float[Array, "gb m d"],
    frame: Int[Array, ""],
    cache: KVCache,
    *,
    guidance: GuidanceConfig,
    frames: int,
) -> tuple[Float[Array, "gb m d"], KVCache]:
    """Indicator features of frame 1 or later.

    Args:
        model, guidance, frames: see `generate`.
        latents: the frame before.
        anchor: frame 0's indicator features, which the mixer modulates.
        frame: index of the frame.
        cache: the temporal encoder's keys and values, guidance passes stacked on the batch axis.
    """
    encoder = model.temporal_encoder
    slot = encoder.add_positions(encoder.embed_frames(latents[:, None]), frames, frame)
    slot = jnp.concatenate([slot] * guidance.passes, axis=0)
    slot = _without_frame(slot, encoder.begin_of_video(slot.shape[0]), guidance)
    features, cache = encoder.decode(slot[:, 0], None, frame, cache)
    return features if encoder.mixer is None else encoder.mixer(anchor, features), cache


def look_back(
    model: Nova,
    conditions: Conditions,
    negative: Conditions | None,
    before: Float[Array, "b s h w c"],
    *,
    guidance: GuidanceConfig,
) -> Float[Array, "gb m d"]:
    """Indicator features of the frame after some, which are looked at anew.

    Args:
        model, guidance, negative: see `generate`.
        before: the first frame, and those right before the one that is described, as the temporal
            encoder sees them.
    """
    negative = unconditional(conditions, model.config) if negative is None else negative
    condition = model.embed_conditions(stack_passes(conditions, negative, guidance))
    # Room for the frame that is described; what is in it is not looked at.
    latents = jnp.pad(before, ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    latents = jnp.concatenate([latents] * guidance.passes)
    # The second of three passes sees no frames, see `_without_frame`.
    pass_of_row = np.repeat(np.arange(guidance.passes), len(before))
    known = jnp.asarray(pass_of_row != 1) | (guidance.passes < 3)
    known = jnp.broadcast_to(known[:, None], latents.shape[:2])
    return model.temporal_encoder(latents, condition, known)[:, -1]


def _without_frame(
    slot: Float[Array, "gb 1 m d"], bare: Float[Array, "gb 1 m d"], guidance: GuidanceConfig
) -> Float[Array, "gb 1 m d"]:
    """Replaces the frame input of the second pass by the bare begin-of-video token."""
    if guidance.passes < 3:
        return slot
    batch = slot.shape[0] // 3
    return slot.at[batch : 2 * batch].set(bare[batch : 2 * batch])


def generate_frame(
    model: Nova,
    indicators: Float[Array, "gb m d"],
    order: Int[Array, "b n"],
    noise: NoiseSource,
    frame: int | Int[Array, ""],
    schedule: Schedule,
    sampling: SamplingConfig,
) -> Float[Array, "b h w c"]:
    """Latents of one frame, filled set by set.

    Args:
        model, schedule, sampling: see `generate`.
        indicators: the temporal encoder's features, guidance passes stacked on the batch axis.
        order, noise: each sample's reveal order, and where its noise comes from.
        frame: index among the generated frames, for the noise source.
    """
    config, guidance, batch = model.config, sampling.guidance, order.shape[0]
    sizes = set_sizes(config.num_tokens, sampling.num_inference_steps)
    steps = schedule.sampling_steps(sampling.num_diffusion_steps, sampling.flow_shift)
    orders = jnp.concatenate([order] * guidance.passes, axis=0)
    buckets = bucket_steps(sizes, functools.partial(flops.ar_step, config, len(steps.time)))
    # A padded set may reach past the frame's end; the room behind it takes the surplus.
    room = max(bucket.width for bucket in buckets)
    tokens = jnp.zeros((batch, config.num_tokens + room, config.token_dim))

    for bucket in buckets:

        def ar_step(
            tokens: Float[Array, "b n p"], row: tuple[Int[Array, ""], ...], bucket: Bucket = bucket
        ) -> tuple[Float[Array, "b n p"], None]:
            step, start, count = row
            visible = jnp.concatenate([tokens[:, : bucket.prefix]] * guidance.passes, axis=0)
            features = model.spatial_decoder(
                visible, start, orders, indicators, only=(start, bucket.width)
            )
            new = denoise_set(
                model.diffusion_head,
                features,
                noise,
                frame,
                step,
                start,
                count,
                steps,
                guidance,
                guidance.scale_at(step, len(sizes)),
                sampling.sampler,
            )
            return jax.lax.dynamic_update_slice_in_dim(tokens, new, start, axis=1), None

        indices = bucket.first + np.arange(len(bucket.counts))
        rows = (indices, np.asarray(bucket.starts), np.asarray(bucket.counts))
        tokens, _ = jax.lax.scan(ar_step, tokens, jax.tree.map(jnp.asarray, rows))
    tokens = to_row_major(tokens[:, : config.num_tokens], order)
    return unpatchify(tokens, config.patch_size, config.grid)


class Parallelism(Protocol):
    """How devices share a program; part of the program, so it must be hashable."""

    def __call__(self, function: Callable[..., Any], in_axes: Any, out_axes: Any) -> Any:
        """`function` of all samples, out of one of any number of samples.

        Args:
            function: of arrays; it gives the same for a sample whatever the others are.
            in_axes, out_axes: as `jax.vmap` takes them: which axis has the samples' rows.
        """


def single_device(function: Callable[..., Any], in_axes: Any, out_axes: Any) -> Any:
    """The `Parallelism` of one device."""
    return function


def _start(
    model: Nova,
    conditions: Conditions,
    negative: Conditions | None,
    guidance: GuidanceConfig,
    frames: int,
) -> tuple[Float[Array, "gb m d"], KVCache]:
    """Frame 0's indicator features, and a cache with room for the whole video."""
    config = model.config
    negative = unconditional(conditions, config) if negative is None else negative
    stacked = stack_passes(conditions, negative, guidance)
    condition_tokens = config.text_length or 1
    if config.is_video and conditions.flow is not None:
        condition_tokens += 2
    rows = jax.tree.leaves(stacked)[0].shape[0]
    cache = model.temporal_encoder.empty_cache(rows, frames, condition_tokens)
    return begin(model, stacked, cache, guidance=guidance, frames=frames)


def _program(
    function: Callable[..., Any], in_axes: tuple[Any, ...], out_axes: Any, **options: Any
) -> Callable[..., Any]:
    """`function` of a model, arrays and constants by name, to be compiled for a model in two parts.

    The axes are those of the arrays and the results, see `Parallelism`; options are `jax.jit`'s.
    """

    @functools.partial(jax.jit, static_argnums=0, static_argnames=_CONSTANTS, **options)
    def program(
        graph: Any, params: Any, *arrays: Any, parallelism: Parallelism, **constants: Any
    ) -> Any:
        def run(params: Any, *arrays: Any) -> Any:
            return function(nnx.merge(graph, params), *arrays, **constants)

        return parallelism(run, (None, *in_axes), out_axes)(params, *arrays)

    return program


_CONSTANTS = ("guidance", "frames", "schedule", "sampling", "parallelism")
_CACHE_AXES: Any = KVCache(key=1, value=1, length=None)  # type: ignore[arg-type]
_begin_program = _program(_start, (0, 0), (0, _CACHE_AXES))
_look_back_program = _program(look_back, (0, 0, 0), 0)
_advance_program = _program(advance, (0, 0, None, _CACHE_AXES), (0, _CACHE_AXES), donate_argnums=5)
_frame_program = _program(generate_frame, (0, 0, 0, None), 0)


@functools.partial(jax.jit, static_argnames=("config", "frames"))
def _draws(
    config: NovaConfig, keys: Key[Array, " b"], frames: int
) -> tuple[Int[Array, "b n"], KeyedNoise, Int[Array, " t"]]:
    """Reveal order and noise of each sample; numbers of the frames, on the same devices."""
    noise = KeyedNoise(noise_keys(keys), config.num_tokens, config.token_dim)
    return reveal_order(order_keys(keys), config.num_tokens), noise, jnp.arange(frames)


def generate(
    model: Nova,
    schedule: Schedule,
    conditions: Conditions,
    *,
    frames: int,
    config: SamplingConfig,
    keys: Key[Array, " b"],
    negative: Conditions | None = None,
    given: Float[Array, "b g h w c"] | None = None,
    order: Int[Array, "b n"] | None = None,
    noise: NoiseSource | None = None,
    on_frame: Callable[[int], None] | None = None,
    parallelism: Parallelism = single_device,
) -> Float[Array, "b t h w c"]:
    """Draws images (one frame) or videos.

    Args:
        model: the transformer.
        schedule: the diffusion schedule it was trained with.
        conditions: one row a sample.
        frames: T, latent frames; may exceed the length the model was trained with.
        config: sampling options.
        keys: one random key a sample; all of a sample's randomness comes from its own key.
        negative: conditions of the unconditional passes; by default no text, no class.
        given: the first latent frames, such as an image's, which are kept and not drawn.
        order: reveal orders, drawn from the keys by default.
        noise: noise source, drawn from the keys by default.
        on_frame: called with the number of finished frames after each.
        parallelism: how devices share the samples, see
            `nova_jax.distributed.mesh.SampleParallelism`.

    Returns:
        Latents, float32.

    Raises:
        NovaError: if the sampler does not run here, `frames` is not positive, or `given` is
            longer or not of this model.
    """
    size, guidance, batch = model.config, config.guidance, keys.shape[0]
    if frames < 1:
        raise NovaError(f"frames is {frames}; a video has at least 1")
    prefix = 0 if given is None else given.shape[1]
    shape = (batch, prefix, *size.latent_size, size.latent_channels)
    if given is not None and (given.shape != shape or prefix > frames):
        raise NovaError(
            f"given frames have shape {given.shape}; this model needs {shape}, of {frames} frames"
        )
    own_order, own_noise, counted = _draws(size, keys, frames)
    order = own_order if order is None else order
    noise = own_noise if noise is None else noise
    graph, params = nnx.split(model)

    def fill(params: Any, indicators: Any, number: Any) -> Float[Array, "b h w c"]:
        static = {"schedule": schedule, "sampling": config, "parallelism": parallelism}
        return _frame_program(graph, params, indicators, order, noise, number, **static)

    if choose(config.sampler) == "pallas":
        # What the kernel cannot do it says here, before the programs are compiled.
        rows = (guidance.passes * batch, size.indicator_tokens, size.width)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        jax.eval_shape(fill, params, jax.ShapeDtypeStruct(rows, model.dtype), number)
    window = min(frames, config.window or frames)
    options: Any = {"guidance": guidance, "frames": window, "parallelism": parallelism}
    video = [] if given is None else list(jnp.unstack(given.astype(jnp.float32), axis=1))
    seen: list[Array] = []  # the frames, as the temporal encoder sees them
    # Numbers wait on the devices: nothing goes there, or comes back, while frames are made.
    numbers = jnp.unstack(counted)
    for frame in range(frames):
        if frame:
            last = video[frame - 1]
            level = config.context_noise
            seen.append(_noised(last, keys, numbers[frame - 1], level=level) if level else last)
        if frame == 0:
            anchor, cache = _begin_program(graph, params, conditions, negative, **options)
            indicators = anchor
        elif frame < window:
            indicators, cache = _advance_program(
                graph, params, seen[-1], anchor, numbers[frame], cache, **options
            )
        else:
            before = jnp.stack([seen[0], *seen[frame - window + 2 :]], axis=1)
            looking = {"guidance": guidance, "parallelism": parallelism}
            indicators = _look_back_program(graph, params, conditions, negative, before, **looking)
        if frame >= prefix:
            video.append(fill(params, indicators, numbers[frame - prefix]))
        if on_frame is not None:
            jax.block_until_ready(video[frame])
            on_frame(frame + 1)
    return jnp.stack(video, axis=1)


def with_noise(
    latents: Float[Array, "*b h w c"],
    level: float | Float[Array, "*b 1 1 1"],
    noise: Float[Array, "*b h w c"],
) -> Float[Array, "*b h w c"]:
    """(1 − level)·latents + level·noise: how frames are noised that others are made from."""
    return (1 - level) * latents + level * noise


@functools.partial(jax.jit, static_argnames="level")
def _noised(
    latents: Float[Array, "b h w c"], keys: Key[Array, " b"], frame: Int[Array, ""], level: float
) -> Float[Array, "b h w c"]:
    """A frame as later ones see it, with noise of each sample's own key."""
    normal = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))
    return with_noise(latents, level, normal(context_keys(keys, frame)))


def generate_in_one(
    model: Nova,
    schedule: Schedule,
    conditions: Conditions,
    *,
    frames: int,
    config: SamplingConfig,
    keys: Key[Array, " b"],
    negative: Conditions | None = None,
) -> Float[Array, "b t h w c"]:
    """`generate` as one traced program, whose size and compile time do not grow with frames.

    Raises:
        NovaError: an option asks for what it does not do.
    """
    if config.context_noise:
        raise NovaError(
            f"context_noise is {config.context_noise:g}, which one program of all frames does not "
            "do; set it to 0, or generate frame by frame"
        )
    if config.window and frames > config.window:
        raise NovaError(
            f"{frames} latent frames go beyond the window of {config.window}, which one program of "
            "all frames does not do; ask for fewer, set window to None, or generate frame by frame"
        )
    order, noise, numbers = _draws(model.config, keys, frames)
    options: Any = {"guidance": config.guidance, "frames": frames}
    anchor, cache = _start(model, conditions, negative, **options)

    def one_frame(carry: tuple[Array, KVCache], frame: Array) -> tuple[Any, Array]:
        indicators, cache = carry
        latents = generate_frame(model, indicators, order, noise, frame, schedule, config)
        if frames > 1:
            carry = jax.lax.cond(
                frame + 1 < frames,
                lambda cache: advance(model, latents, anchor, frame + 1, cache, **options),
                lambda cache: (indicators, cache),
                cache,
            )
        return carry, latents

    _, video = jax.lax.scan(one_frame, (anchor, cache), numbers)
    return video.swapaxes(0, 1)
