"""The transformer block of both encoders.

Dimensions: B samples, S tokens, Q of them that are asked for, T keys, K heads, H head channels, R
rotary angles of a head, D width, L blocks.
"""

from __future__ import annotations

import dataclasses
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of a sequence in each block, so that a part of it can be mapped alone."""

    key: Float[Array, "b l t k h"]
    value: Float[Array, "b l t k h"]

    @classmethod
    def zeros(
        cls, size: StageSize, depth: int, batch: int, tokens: int, dtype: DTypeLike
    ) -> KeyValues:
        """Those of a sequence of which nothing is known, in `depth` blocks."""
        shape = (batch, depth, tokens, size.heads, size.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def updated(
        self,
        block: Int[Array, ""],
        key: Float[Array, "b s k h"],
        value: Float[Array, "b s k h"],
        first: Int[Array, ""] | int,
    ) -> KeyValues:
        """With those of the tokens from `first` on in one block."""

        def put(all_of: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice(all_of, new[:, None], (0, block, first, 0, 0))

        return KeyValues(put(self.key, key), put(self.value, value))

    def of(
        self, block: Int[Array, ""], tokens: int
    ) -> tuple[Float[Array, "b {tokens} k h"], Float[Array, "b {tokens} k h"]]:
        """Those of the first so many tokens in one block."""

        def pick(all_of: Array) -> Array:
            size = (all_of.shape[0], 1, tokens, *all_of.shape[3:])
            return jax.lax.dynamic_slice(all_of, (0, block, 0, 0, 0), size)[:, 0]

        return pick(self.key), pick(self.value)


class Attention(nnx.Module):
    """Multi-head attention with one biased qkv projection; softmax in float32.

    `layout` names the axes of sequences and of their tokens, see `nova_jax.models.layout`.
    """

    def __init__(self, size: StageSize, layout: AxisNames, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads, self.layout = size.heads, layout
        axes = ("embed", "heads")
        self.qkv = linear(size.width, 3 * size.width, axes, dtype=dtype, rngs=rngs)
        self.out = linear(size.width, size.width, axes[::-1], dtype=dtype, rngs=rngs)

    def project(
        self, x: Float[Array, "b s d"], rotary: Float[Array, "#b s r"] | None
    ) -> tuple[
        Float[Array, "b s k h"],
        Float[Array, "b s k h"],
        Float[Array, "b s k h"],
    ]:
        """Queries, keys and values of tokens, at their rotary angles; None for none."""
        qkv = rearrange(self.qkv(x), "b s (n k h) -> n b s k h", n=3, k=self.heads)
        query, key, value = qkv[0], qkv[1], qkv[2]
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        return query, key, value

    def __call__(
        self,
        query: Float[Array, "b q k h"],
        key: Float[Array, "b t k h"],
        value: Float[Array, "b t k h"],
        seen: Seen,
    ) -> Float[Array, "b q d"]:
        """Attends; which keys queries see is as `nova_jax.kernels.attention` takes it."""
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
        """Maps tokens.

        Args:
            x: the tokens.
            rotary: rotary angles of x's tokens, None for none.
            seen: which keys queries see, as `nova_jax.kernels.attention` takes it.
            only: the first and the number of those tokens whose output is asked for; by default
                all. What reaches past the last token is padding.
        """
        query, key, value = self.attention.project(x, rotary)
        return self._add(x, query, key, value, seen, only)

    def revise(
        self,
        carry: tuple[Float[Array, "b s d"], Int[Array, ""], KeyValues],
        first: Int[Array, ""] | int,
        total: int,
        rotary: Float[Array, "#b s r"] | None,
        seen: Seen,
        only: tuple[Int[Array, ""], int] | None = None,
    ) -> tuple[Float[Array, "b q d"], Int[Array, ""], KeyValues]:
        """Maps a part of a sequence, which sees itself and what is known of the rest.

        Args:
            carry: the tokens, this block's number, and keys and values of the whole sequence.
            first: where in it the tokens are.
            total: how many of the sequence's first tokens there are to be seen.
            rotary, seen: as `__call__` takes them, of the tokens and of all that is seen.
            only: as `__call__` takes it, counted from the first of the tokens.

        Returns:
            What the next block takes.
        """
        x, number, known = carry
        query, key, value = self.attention.project(x, rotary)
        known = known.updated(number, key, value, first)
        x = self._add(x, query, *known.of(number, total), seen, only)
        return x, number + 1, known

    def _add(
        self,
        x: Float[Array, "b s d"],
        query: Float[Array, "b s k h"],
        key: Float[Array, "b t k h"],
        value: Float[Array, "b t k h"],
        seen: Seen,
        only: tuple[Int[Array, ""], int] | None,
    ) -> Float[Array, "b q d"]:
        """Adds both branches to the tokens that are asked for."""
        if only is not None:
            x, query = rows(x, *only), rows(query, *only)
        x = x + self.norm1(self.attention(query, key, value, seen))
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
