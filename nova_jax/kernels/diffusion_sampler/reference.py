"""The diffusion sampling loop in plain JAX: what every other implementation must compute.

S steps take a set of tokens from noise to data (paper, section 3.4; arXiv 2406.11838):

    x ← keep[s] · x + move[s] · guided(head(x, c, s)) + noise_scale[s] · noise[s]

The head sees the step and a token's feature c only through SiLU(c + τ(s)), which does not depend
on x: the (scale, shift, gate) of all blocks and steps are projected before the loop, with three
fifths of the head's weights (`Modulations`). What is left in the loop are two D×D products a block
(`HeadWeights`).

Dimensions: S steps, L blocks, G guidance passes, B samples, n tokens, P values of a token, D width,
V noise vectors that tokens outside the set are sums of.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int


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
    def noise_scale(self) -> Any: ...  # noqa: D102


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
class HeadWeights:
    """What the diffusion head does to tokens, its modulations apart.

    It is embed; of each block h + gate · LN(fc2(SiLU(fc1(LN₀(h)(1 + scale) + shift)))); then
    out(LN₀(h)(1 + scale) + shift). LN₀ has ε = 1e-6 and no parameters, LN has ε = 1e-5.

    Attributes:
        embed, out: the first and the last linear map, with their biases.
        fc1, fc2: the blocks' linear maps, stacked, with their biases.
        norm_scale, norm_bias: of the blocks' LN, stacked.
        unroll: blocks per iteration where blocks are a loop.
    """

    embed: Float[Array, "p d"]
    embed_bias: Float[Array, " d"]
    fc1: Float[Array, "l d d"]
    fc1_bias: Float[Array, "l d"]
    fc2: Float[Array, "l d d"]
    fc2_bias: Float[Array, "l d"]
    norm_scale: Float[Array, "l d"]
    norm_bias: Float[Array, "l d"]
    out: Float[Array, "d p"]
    out_bias: Float[Array, " p"]
    unroll: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def depth(self) -> int:
        """L."""
        return self.fc1.shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.fc1.shape[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Modulations:
    """(scale, shift, gate) of every block and (scale, shift) of the last norm, for all steps.

    Their type is that of the computation.
    """

    blocks: Float[Array, "l s gb n d3"]
    final: Float[Array, "s gb n d2"]


State = tuple[Float[Array, "b n p"], Outside | None]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["head", "modulations", "state", "steps", "scale", "valid", "first", "noise"],
    meta_fields=["guidance"],
)
@dataclasses.dataclass(frozen=True)
class Work:
    """What an implementation is asked for: to take a set of tokens through some steps; a pytree.

    Attributes:
        head, modulations: the diffusion head, at these steps.
        state: the tokens of the set, and what is outside of it.
        steps: these steps' coefficients.
        guidance, scale: the rule and its g.
        valid: 1 for tokens of the set, 0 for padding.
        first: index of the first of these steps, for what is outside.
        noise: of these steps; None where no step adds any.
    """

    head: HeadWeights
    modulations: Modulations
    state: State
    steps: Steps
    guidance: Guidance
    scale: Float[Array, ""] | float
    valid: Float[Array, " n"]
    first: Int[Array, ""] | int = 0
    noise: Float[Array, "s b n p"] | None = None


def predict(
    head: HeadWeights,
    x: Float[Array, "b n p"],
    passes: int,
    blocks: Float[Array, "l gb n d3"],
    final: Float[Array, "gb n d2"],
) -> Float[Array, "gb n p"]:
    """The head's prediction for the same tokens in G passes, in the type of the modulations."""
    dtype = final.dtype

    def linear(x: Float[Array, "b n i"], kernel: Array, bias: Array) -> Float[Array, "b n o"]:
        return x.astype(dtype) @ kernel.astype(dtype) + bias.astype(dtype)[None, None]

    def block(h: Array, row: tuple[Array, ...]) -> tuple[Array, None]:
        modulation, fc1, fc1_bias, fc2, fc2_bias, norm_scale, norm_bias = row
        scale, shift, gate = jnp.split(modulation, 3, axis=-1)
        u = jax.nn.silu(linear(_normalized(h, 1e-6) * (1 + scale) + shift, fc1, fc1_bias))
        u = linear(u, fc2, fc2_bias)
        return h + gate * _normalized(u, 1e-5, norm_scale, norm_bias), None

    h = jnp.concatenate([linear(x, head.embed, head.embed_bias)] * passes, axis=0)
    stacked = (head.fc1, head.fc1_bias, head.fc2, head.fc2_bias, head.norm_scale, head.norm_bias)
    h, _ = jax.lax.scan(block, h, (blocks, *stacked), unroll=min(head.unroll, head.depth))
    scale, shift = jnp.split(final, 2, axis=-1)
    return linear(_normalized(h, 1e-6) * (1 + scale) + shift, head.out, head.out_bias)


def _normalized(
    x: Float[Array, "b n d"],
    epsilon: float,
    scale: Float[Array, " d"] | None = None,
    bias: Float[Array, " d"] | None = None,
) -> Float[Array, "b n d"]:
    """`nova_jax.models.layers.LayerNorm`: in float32, the variance in two passes."""
    wide = x.astype(jnp.float32)
    centered = wide - jnp.mean(wide, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + epsilon)
    y = centered * (factor if scale is None else factor * scale[None, None])
    return (y if bias is None else y + bias[None, None]).astype(x.dtype)


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
    noise_scale: Float[Array, ""],
) -> Outside:
    """The part outside the set after a step; vector 1 + `step` is the step's noise, if any."""
    grown = keep + move * (1.0 if factor is None else factor[:, None])
    weights = outside.weights * grown
    added = jnp.arange(weights.shape[1]) == 1 + step
    return dataclasses.replace(outside, weights=weights + noise_scale * added[None])


def sample(work: Work) -> State:
    """Runs steps; see `nova_jax.kernels.diffusion_sampler.api.sample`."""
    head, modulations, steps, guidance = work.head, work.modulations, work.steps, work.guidance

    def body(state: State, row: tuple[Array, ...]) -> tuple[State, None]:
        (x, outside), (index, keep, move, noise_scale) = state, row
        at_step: Callable[[Array, int], Array] = lambda array, axis: (  # noqa: E731
            jax.lax.dynamic_index_in_dim(array, index, axis, keepdims=False)
        )
        at_this = at_step(modulations.blocks, 1), at_step(modulations.final, 0)
        prediction = predict(head, x, guidance.passes, *at_this)
        prediction = rearrange(
            prediction.astype(jnp.float32), "(g b) n p -> g b n p", g=guidance.passes
        )
        norm2 = None if outside is None else outside.norm2
        guided, factor = combine(prediction, work.scale, guidance, work.valid, norm2)
        x = keep * x + move * guided
        if work.noise is not None:
            x = x + noise_scale * at_step(work.noise, 0)
        if outside is not None:
            outside = update_outside(outside, factor, work.first + index, keep, move, noise_scale)
        return (x, outside), None

    count = modulations.final.shape[0]
    columns = tuple(jnp.asarray(column) for column in (steps.keep, steps.move, steps.noise_scale))
    state, _ = jax.lax.scan(body, work.state, (jnp.arange(count), *columns))
    return state
