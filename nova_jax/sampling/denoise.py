"""Denoising one set of tokens: the S diffusion steps of one AR step.

Dimensions: G guidance passes, B samples, n tokens of the set (padded), N of the frame, P values.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from nova_jax.models.diffusion_head import DiffusionHead
from nova_jax.models.layers import patchify
from nova_jax.sampling.guidance import GuidanceConfig, combine
from nova_jax.sampling.order import to_reveal_order
from nova_jax.sampling.schedules import SamplingSteps

# Tokens of the set and, where guidance is renormalized, those outside it.
_Carry = tuple[Array, Array | None]


class NoiseSource(Protocol):
    """Where a generation's Gaussian noise comes from; both sources are pytrees."""

    def initial(self, frame: int | Array, step: int | Array) -> Float[Array, "b n p"]:
        """Noise that AR step `step` of generated frame `frame` starts from, in reveal order."""
        ...

    def added(
        self, frame: int | Array, step: int | Array, draw: int | Array
    ) -> Float[Array, "b n p"]:
        """Noise of the `draw`-th noisy diffusion step of that AR step, in reveal order."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyedNoise:
    """Noise from one random key a sample, so that a sample does not depend on its batch."""

    keys: Key[Array, "b"]
    tokens: int = dataclasses.field(metadata={"static": True})
    token_dim: int = dataclasses.field(metadata={"static": True})

    def initial(self, frame: int | Array, step: int | Array) -> Float[Array, "b n p"]:
        """See `NoiseSource`."""
        return self.added(frame, step, -1)

    def added(
        self, frame: int | Array, step: int | Array, draw: int | Array
    ) -> Float[Array, "b n p"]:
        """See `NoiseSource`."""

        def normal(key: Key[Array, ""]) -> Float[Array, "n p"]:
            for index in (frame, step, draw + 1):
                key = jax.random.fold_in(key, index)
            return jax.random.normal(key, (self.tokens, self.token_dim))

        return jax.vmap(normal)(self.keys)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GivenNoise:
    """Recorded noise, for reproducing a trajectory of another implementation.

    Attributes:
        images: [frames · K, B, h, w, C], noise images in the order they were drawn.
        step_images: [frames · K · draws, B, h, w, C], noise of the diffusion steps.
        order: reveal order of each sample.
        steps, draws: AR steps of a frame, noisy diffusion steps of an AR step.
        patch: side of a token.
    """

    images: Float[Array, "fk b h w c"]
    step_images: Float[Array, "fkd b h w c"] | None
    order: Int[Array, "b n"]
    steps: int = dataclasses.field(metadata={"static": True})
    draws: int = dataclasses.field(metadata={"static": True})
    patch: int = dataclasses.field(metadata={"static": True})

    def initial(self, frame: int | Array, step: int | Array) -> Float[Array, "b n p"]:
        """See `NoiseSource`."""
        image = self.images[frame * self.steps + step]
        return to_reveal_order(patchify(image, self.patch), self.order)

    def added(
        self, frame: int | Array, step: int | Array, draw: int | Array
    ) -> Float[Array, "b n p"]:
        """See `NoiseSource`."""
        assert self.step_images is not None, "the schedule adds noise; step_images is missing"
        image = self.step_images[(frame * self.steps + step) * self.draws + draw]
        return to_reveal_order(patchify(image, self.patch), self.order)


def predict(
    head: DiffusionHead,
    x: Float[Array, "b n p"],
    condition: Float[Array, "gb n d"],
    passes: int,
) -> Float[Array, "g b n p"]:
    """The head's float32 prediction for the same tokens under each pass's condition."""
    stacked = jnp.concatenate([x] * passes, axis=0)
    prediction = head(stacked, condition).astype(jnp.float32)
    return rearrange(prediction, "(g b) n p -> g b n p", g=passes)


def denoise_set(
    head: DiffusionHead,
    features: Float[Array, "gb n d"],
    noise: NoiseSource,
    frame: int | Array,
    step: int | Array,
    start: int | Array,
    count: int | Array,
    steps: SamplingSteps,
    guidance: GuidanceConfig,
    scale: float | Float[Array, ""],
) -> Float[Array, "b n p"]:
    """Draws the tokens of one set from noise, given their features.

    Args:
        head: the diffusion head.
        features: features of the set's tokens, guidance passes stacked on the batch axis; the
            rows from `count` on are padding.
        noise: the noise source.
        frame, step: which AR step this is, for the noise source.
        start, count: the set's slice of the reveal order.
        steps: the sampling steps.
        guidance, scale: the guidance options and g of this AR step.
    """
    width, passes = features.shape[1], guidance.passes
    condition = head.feature_embed(features)
    valid = (jnp.arange(width) < count).astype(jnp.float32)

    def slice_set(frame_tokens: Float[Array, "b n p"]) -> Float[Array, "b n p"]:
        padded = jnp.pad(frame_tokens, ((0, 0), (0, width), (0, 0)))
        return jax.lax.dynamic_slice_in_dim(padded, start, width, axis=1)

    initial = noise.initial(frame, step)
    x = slice_set(initial)
    # Tokens outside the set are never denoised: their "prediction" is their own value, in every
    # pass. Only the norms of guidance renormalisation see them, so only then are they carried.
    index = jnp.arange(initial.shape[1])
    outside = ((index < start) | (index >= start + count))[None, :, None]
    rest = jnp.where(outside, initial, 0.0) if guidance.renormalized else None

    def run(carry: _Carry, first: int, last: int, options: GuidanceConfig) -> _Carry:
        batch = carry[0].shape[0]
        active = condition[: options.passes * batch]
        times = head.embed_step(jnp.asarray(steps.time[first:last]))

        def body(carry: _Carry, row: tuple[Array, ...]) -> tuple[_Carry, None]:
            (x, rest), (index, time, keep, move, spread) = carry, row
            predictions = predict(head, x, active + time[None, None], options.passes)
            norm2 = None if rest is None else jnp.sum(rest**2, axis=(1, 2))
            guided, factor = combine(predictions, scale, options, valid, norm2)
            x = keep * x + move * guided
            if rest is not None:
                guided_rest = rest if factor is None else rest * factor[:, None, None]
                rest = keep * rest + move * guided_rest
            if steps.noise_draws:
                added = noise.added(frame, step, jnp.minimum(index, steps.noise_draws - 1))
                x = x + spread * slice_set(added)
                rest = None if rest is None else rest + spread * jnp.where(outside, added, 0.0)
            return (x, rest), None

        rows = (
            jnp.arange(first, last),
            times,
            *(jnp.asarray(v[first:last]) for v in (steps.keep, steps.move, steps.spread)),
        )
        return jax.lax.scan(body, carry, rows)[0]

    total = len(steps.time)
    guided_steps = total
    if passes > 1 and guidance.trunc:
        guided_steps = int(np.count_nonzero(steps.time >= guidance.trunc))
    carry = run((x, rest), 0, guided_steps, guidance) if guided_steps else (x, rest)
    if guided_steps < total:
        plain = dataclasses.replace(guidance, scale=1.0)
        carry = run(carry, guided_steps, total, plain)
    return carry[0]
