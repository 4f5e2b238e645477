"""Denoising one set of tokens: the S diffusion steps of one AR step.

Dimensions: G guidance passes, B samples, n tokens of the set (padded), N of the frame, P values.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nova_jax.kernels.diffusion_sampler.api import Implementation, sample
from nova_jax.kernels.diffusion_sampler.reference import (
    Guidance,
    Outside,
    State,
    update_outside,
)
from nova_jax.models import layout
from nova_jax.models.diffusion_head import DiffusionHead
from nova_jax.models.layers import patchify
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.keys import noise_key
from nova_jax.sampling.order import to_reveal_order
from nova_jax.sampling.schedules import SamplingSteps

# A number that the host knows, or only the program.
Index = int | Int[Array, ""]
# The same, or one for each sample.
Indices = Index | Int[Array, " b"]


@runtime_checkable
class NoiseSource(Protocol):
    """Where a generation's Gaussian noise comes from; both sources are pytrees."""

    def initial(self, frame: Indices, step: Index) -> Float[Array, "b N p"]:
        """Noise that AR step `step` of generated frame `frame` starts from, in reveal order."""
        ...

    def added(self, frame: Indices, step: Index, draw: Index) -> Float[Array, "b N p"]:
        """Noise of the `draw`-th noisy diffusion step of that AR step, in reveal order."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyedNoise:
    """Noise from one random key a sample, so that a sample does not depend on its batch.

    Attributes:
        keys: see `nova_jax.sampling.keys.noise_keys`.
        tokens, token_dim: N, P.
    """

    keys: Key[Array, " b"]
    tokens: int = dataclasses.field(metadata={"static": True})
    token_dim: int = dataclasses.field(metadata={"static": True})

    def initial(self, frame: Indices, step: Index) -> Float[Array, "b N p"]:
        """See `NoiseSource`."""
        return self.added(frame, step, -1)

    def added(self, frame: Indices, step: Index, draw: Index) -> Float[Array, "b N p"]:
        """See `NoiseSource`."""

        def normal(key: Key[Array, ""], frame: Index) -> Float[Array, "N p"]:
            key = noise_key(key, frame, step, draw)
            return jax.random.normal(key, (self.tokens, self.token_dim))

        return jax.vmap(normal, in_axes=(0, 0 if jnp.ndim(frame) else None))(self.keys, frame)


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
    order: Int[Array, "b N"]
    steps: int = dataclasses.field(metadata={"static": True})
    draws: int = dataclasses.field(metadata={"static": True})
    patch: int = dataclasses.field(metadata={"static": True})

    def initial(self, frame: Indices, step: Index) -> Float[Array, "b N p"]:
        """See `NoiseSource`."""
        image = _rows(self.images, frame * self.steps + step)
        return to_reveal_order(patchify(image, self.patch), self.order)

    def added(self, frame: Indices, step: Index, draw: Index) -> Float[Array, "b N p"]:
        """See `NoiseSource`."""
        assert self.step_images is not None, "the schedule adds noise; step_images is missing"
        image = _rows(self.step_images, (frame * self.steps + step) * self.draws + draw)
        return to_reveal_order(patchify(image, self.patch), self.order)


def _rows(images: Float[Array, "n b h w c"], index: Indices) -> Float[Array, "b h w c"]:
    """One image a sample, by one number for all or one for each."""
    return images[index, jnp.arange(images.shape[1])] if jnp.ndim(index) else images[index]


def denoise_set(
    head: DiffusionHead,
    features: Float[Array, "gb n d"],
    noise: NoiseSource,
    frame: Indices,
    step: Index,
    start: Index,
    count: Index,
    steps: SamplingSteps,
    guidance: GuidanceConfig,
    scale: float | Float[Array, ""],
    implementation: Implementation = "auto",
) -> Float[Array, "b n p"]:
    """Draws the tokens of one set from noise, given their features.

    Args:
        head, noise, steps, guidance: what all sets of a generation share.
        features: features of the set's tokens, guidance passes stacked on the batch axis; the
            rows from `count` on are padding.
        frame, step: which AR step this is, for the noise source.
        start, count: the set's slice of the reveal order.
        scale: g of this AR step.
        implementation: of the loop over diffusion steps.
    """
    width, draws, total = features.shape[1], steps.noise_draws, len(steps.time)

    def slice_set(frame_tokens: Float[Array, "*s b N p"]) -> Float[Array, "*s b n p"]:
        room = [(0, 0)] * (frame_tokens.ndim - 2) + [(0, width), (0, 0)]
        return jax.lax.dynamic_slice_in_dim(jnp.pad(frame_tokens, room), start, width, axis=-2)

    initial, added = noise.initial(frame, step), None
    if draws:
        # Steps without noise come last, and have a weight of zero.
        added = jax.lax.map(lambda draw: noise.added(frame, step, draw), jnp.arange(draws))
        added = jnp.pad(added, ((0, total - draws), *[(0, 0)] * 3))
    outside = None
    if guidance.rule.renormalized:
        index = jnp.arange(initial.shape[1])
        is_outside = ((index < start) | (index >= start + count))[:, None]
        vectors = initial[None] if added is None else jnp.concatenate([initial[None], added])
        vectors = jnp.where(is_outside, vectors, 0.0)
        gram = jnp.einsum("vbnp,wbnp->bvw", vectors, vectors)
        outside = Outside(jnp.zeros(gram.shape[:2]).at[:, 0].set(1.0), gram)
    state = (slice_set(initial), outside)
    added = None if added is None else slice_set(added)
    weights, condition = head.weights(), head.feature_embed(features)
    if implementation == "auto" and layout.in_use():
        implementation = "xla"  # a kernel needs the whole model

    def run(state: State, first: int, last: int, rule: Guidance) -> State:
        if first == last:
            return state
        return sample(
            weights,
            head.modulations,
            condition[: rule.passes * initial.shape[0]],
            state,
            steps.part(first, last),
            rule,
            scale=scale,
            count=count,
            first=first,
            noise=None if added is None else added[first:last],
            implementation=implementation,
        )

    # Outside the interval of guidance the conditional pass alone is run.
    first, end = guidance.interval(np.asarray(steps.time)) if guidance.passes > 1 else (0, total)
    tokens, _ = run((state[0], None), 0, first, Guidance(passes=1))
    tokens, _ = run((tokens, _unguided(outside, steps, first)), first, end, guidance.rule)
    tokens, _ = run((tokens, None), end, total, Guidance(passes=1))
    return tokens


def _unguided(outside: Outside | None, steps: SamplingSteps, count: int) -> Outside | None:
    """What is outside the set after the first `count` steps, none of which has guidance."""
    if outside is None:
        return None
    columns = (steps.keep, steps.move, steps.noise_scale)
    for step in range(count):
        row = (jnp.asarray(column[step]) for column in columns)
        outside = update_outside(outside, None, jnp.asarray(step), *row)
    return outside
