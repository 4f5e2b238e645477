"""The diffusion sampling loop in plain JAX: what every other implementation must compute.

S steps take a set of tokens from noise to data (paper, section 3.4; arXiv 2406.11838):

    x ← keep[s] · x + move[s] · guided(head(x, c, s)) + spread[s] · noise[s]

The head sees the step and a token's feature c only through SiLU(c + τ(s)), which does not depend
on x: the (scale, shift, gate) of all blocks and steps are one matrix product before the loop,
three fifths of the head's weights. What is left in the loop are two D×D products a block.

Dimensions: S steps, L blocks, G guidance passes, B samples, n tokens, P values of a token, D width,
V noise vectors that tokens outside the set are sums of.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from nova_jax.models.diffusion_head import DiffusionHead


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How the predictions of the passes are combined.

    Passes: [conditional], [conditional | unconditional], or with `image_scale` [conditional | no
    text, no frame | no text].

    Attributes:
        passes: G.
        renorm: lower bound, at most 1, of the factor that takes the guided prediction back to
            the conditional one's norm (arXiv 2305.08891, section 3.4, clamped). 1: off.
        image_scale: s of + s·(no text − no text, no frame). None or 0: off.
    """

    passes: int
    renorm: float = 1.0
    image_scale: float | None = None

    @property
    def renormalized(self) -> bool:
        """Whether the guided prediction's norm is bounded."""
        return self.passes > 1 and self.renorm < 1


class Steps(Protocol):
    """Coefficients of some steps; see `nova_jax.sampling.schedules.SamplingSteps`, a pytree."""

    @property
    def time(self) -> Any: ...  # noqa: D102
    @property
    def keep(self) -> Any: ...  # noqa: D102
    @property
    def move(self) -> Any: ...  # noqa: D102
    @property
    def spread(self) -> Any: ...  # noqa: D102


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outside:
    """The frame's tokens outside the set, which count in the norms of renormalization only.

    Nothing is predicted for them: their "prediction" is their own value in every pass, so they stay
    sums of the vectors they start with and are added to, and their norm is that of a few weights.

    Attributes:
        weights: of those vectors, now.
        gram: inner products of those vectors: the initial noise, then each step's noise if any.
    """

    weights: Float[Array, "b v"]
    gram: Float[Array, "b v v"]

    @property
    def norm2(self) -> Float[Array, " b"]:
        """Squared norm."""
        return jnp.einsum("bv,bvw,bw->b", self.weights, self.gram, self.weights)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Modulations:
    """(scale, shift, gate) of every block and (scale, shift) of the last norm, for all steps."""

    blocks: Float[Array, "l s gb n d3"]
    final: Float[Array, "s gb n d2"]


State = tuple[Float[Array, "b n p"], Outside | None]


@dataclasses.dataclass(frozen=True)
class Work:
    """What an implementation is asked for: to take a set of tokens through some steps.

    Attributes:
        head: the diffusion head; its modulations are taken from `modulations`.
        modulations: for these steps.
        state: the tokens of the set, and what is outside of it.
        steps: these steps' coefficients.
        guidance, scale: the rule and its g.
        valid: 1 for tokens of the set, 0 for padding.
        first: index of the first of these steps, for what is outside.
        noise: of these steps; None where no step adds any.
    """

    head: DiffusionHead
    modulations: Modulations
    state: State
    steps: Steps
    guidance: Guidance
    scale: Float[Array, ""] | float
    valid: Float[Array, " n"]
    first: Int[Array, ""] | int = 0
    noise: Float[Array, "s b n p"] | None = None


def modulate(
    head: DiffusionHead, features: Float[Array, "gb n d"], times: Float[Array, " s"]
) -> Modulations:
    """All projections of SiLU(c + τ(s)), for features that `head.feature_embed` gave."""
    hidden = jax.nn.silu(features[None] + head.embed_step(times)[:, None, None])
    blocks = head.blocks.map(lambda block: block.modulation(hidden))
    return Modulations(blocks, head.final_modulation(hidden))


def combine(
    predictions: Float[Array, "g b n p"],
    scale: Float[Array, ""] | float,
    guidance: Guidance,
    valid: Float[Array, " n"],
    outside_norm2: Float[Array, " b"] | None,
) -> tuple[Float[Array, "b n p"], Float[Array, " b"] | None]:
    """Combines the passes' predictions.

    Args:
        predictions: one slice a pass.
        scale: g of uncond + g·(cond − uncond).
        guidance: the rule.
        valid: 1 for tokens of the set, 0 for padding, which does not count in norms.
        outside_norm2: squared norm of what the passes agree on outside the set; needed and used
            for `renorm` only.

    Returns:
        The prediction, and the factor by which the part outside the set is scaled.
    """
    if guidance.passes == 1:
        return predictions[0], None
    cond, uncond, base = predictions[0], predictions[1], predictions[-1]
    guided = uncond + scale * (cond - base)
    factor = None
    if guidance.renormalized:
        assert outside_norm2 is not None
        norm2 = lambda x: jnp.sum(  # noqa: E731
            jnp.where(valid[None, :, None] > 0, x, 0.0) ** 2, axis=(1, 2)
        )
        ratio = jnp.sqrt(norm2(cond) + outside_norm2) / jnp.sqrt(norm2(guided) + outside_norm2)
        factor = jnp.clip(ratio, guidance.renorm, 1.0)
        guided = guided * factor[:, None, None]
    if guidance.image_scale:
        guided = guided + guidance.image_scale * (base - uncond)
    return guided, factor


def update_outside(
    outside: Outside,
    factor: Float[Array, " b"] | None,
    step: Int[Array, ""],
    keep: Float[Array, ""],
    move: Float[Array, ""],
    spread: Float[Array, ""],
) -> Outside:
    """The part outside the set after a step; vector 1 + `step` is the step's noise, if any."""
    grown = keep + move * (1.0 if factor is None else factor[:, None])
    weights = outside.weights * grown
    added = jnp.arange(weights.shape[1]) == 1 + step
    return dataclasses.replace(outside, weights=weights + spread * added[None])


def sample(work: Work) -> State:
    """Runs steps; see `nova_jax.kernels.diffusion_sampler.api.sample`."""
    head, modulations, steps, guidance = work.head, work.modulations, work.steps, work.guidance

    def body(state: State, row: tuple[Array, ...]) -> tuple[State, None]:
        (x, outside), (index, keep, move, spread) = state, row
        at_step: Callable[[Array, int], Array] = lambda array, axis: (  # noqa: E731
            jax.lax.dynamic_index_in_dim(array, index, axis, keepdims=False)
        )
        prediction = head.denoise(
            x, guidance.passes, at_step(modulations.blocks, 1), at_step(modulations.final, 0)
        )
        prediction = rearrange(
            prediction.astype(jnp.float32), "(g b) n p -> g b n p", g=guidance.passes
        )
        norm2 = None if outside is None else outside.norm2
        guided, factor = combine(prediction, work.scale, guidance, work.valid, norm2)
        x = keep * x + move * guided
        if work.noise is not None:
            x = x + spread * at_step(work.noise, 0)
        if outside is not None:
            outside = update_outside(outside, factor, work.first + index, keep, move, spread)
        return (x, outside), None

    count = modulations.final.shape[0]
    columns = tuple(jnp.asarray(column) for column in (steps.keep, steps.move, steps.spread))
    state, _ = jax.lax.scan(body, work.state, (jnp.arange(count), *columns))
    return state
