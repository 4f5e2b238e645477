"""The transformer block of both encoders.

Dimensions: B samples, S tokens, Q of them that are asked for, T keys, K heads, H head channels, R
rotary angles of a head, D width.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from nova_jax.kernels.attention import Seen, attention
from nova_jax.models.config import StageSize
from nova_jax.models.embeddings import apply_rotary
from nova_jax.models.layers import BlockStack, LayerNorm, Projector, gelu, linear
from nova_jax.models.layout import AxisNames, split

# Branches are normalised after, so that each starts with this share of its weight: at 1, a few
# untrained blocks drown the tokens' positions and conditions. Swin V2 (arXiv 2111.09883) uses 0.
BRANCH_SCALE = 0.2


def rows(
    x: Float[Array, "b s *d"], first: Int[Array, ""] | int, count: int
) -> Float[Array, "b {count} *d"]:
    """Tokens first .. first + count, with zeros after the last one."""
    room = jnp.zeros_like(x, shape=(x.shape[0], count, *x.shape[2:]))
    return jax.lax.dynamic_slice_in_dim(jnp.concatenate([x, room], axis=1), first, count, axis=1)


class Attention(nnx.Module):
    """Multi-head attention with one biased qkv projection; softmax in float32.

    `layout` names the axes of sequences and of their tokens, see `nova_jax.models.layout`.
    """

    def __init__(self, size: StageSize, layout: AxisNames, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads, self.layout = size.heads, layout
        axes = ("embed", "heads")
        self.qkv = linear(size.width, 3 * size.width, axes, dtype=dtype, rngs=rngs)
        self.out = linear(size.width, size.width, axes[::-1], dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        rotary: Float[Array, "#b s r"] | None,
        seen: Seen,
        only: tuple[Int[Array, ""], int] | None = None,
    ) -> Float[Array, "b q d"]:
        """Attends over x.

        Args:
            x: the tokens.
            rotary: rotary angles of x's tokens, None for none.
            seen: which keys queries see, as `nova_jax.kernels.attention` takes it.
            only: the first and the number of those tokens whose output is asked for; by default
                all. What reaches past the last token is padding.
        """
        qkv = rearrange(self.qkv(x), "b s (n k h) -> n b s k h", n=3, k=self.heads)
        query, key, value = qkv[0], qkv[1], qkv[2]
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        if only is not None:
            query = rows(query, *only)
        y = self._attend(query, key, value, seen)
        return self.out(rearrange(y, "b s k h -> b s (k h)"))

    def _attend(
        self,
        query: Float[Array, "b q k h"],
        key: Float[Array, "b t k h"],
        value: Float[Array, "b t k h"],
        seen: Seen,
    ) -> Float[Array, "b q k h"]:
        """Every device for its own sequences, queries and heads, over all keys."""
        sequences, queries = self.layout
        keys = (sequences, None, "heads", None)
        names: list[AxisNames] = [(sequences, queries, "heads", None), keys, keys]
        if seen is None or isinstance(seen, tuple):
            return split(partial(attention, seen=seen), names)(query, key, value)
        names.append((None, queries, None)[: jnp.ndim(seen)])
        return split(attention, names)(query, key, value, seen)


class Block(nnx.Module):
    """x ← x + LN(attention(x));  x ← x + LN(mlp(x)): normalised after each branch."""

    def __init__(self, size: StageSize, layout: AxisNames, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = size.width
        self.attention = Attention(size, layout, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(width, initial_scale=BRANCH_SCALE, dtype=dtype, rngs=rngs)
        self.mlp = Projector(width, 4 * width, width, activation=gelu, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, initial_scale=BRANCH_SCALE, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        rotary: Float[Array, "#b s r"] | None = None,
        seen: Seen = None,
        only: tuple[Int[Array, ""], int] | None = None,
    ) -> Float[Array, "b q d"]:
        """Maps all tokens; with `only`, see `Attention`, gives just those."""
        x, branch = x if only is None else rows(x, *only), self.attention(x, rotary, seen, only)
        x = x + self.norm1(branch)
        return x + self.norm2(self.mlp(x))


def transformer(
    size: StageSize,
    depth: int,
    layout: AxisNames,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    **options: Any,
) -> BlockStack:
    """`depth` transformer blocks of the given size's width and heads, scanned.

    `layout` names the axes of sequences and of their tokens, see `nova_jax.models.layout`; options
    are those of `BlockStack`.
    """

    def make_block(rngs: nnx.Rngs) -> Block:
        return Block(size, layout, dtype=dtype, rngs=rngs)

    return BlockStack(make_block, depth, rngs=rngs, axes=(*layout, None), **options)
