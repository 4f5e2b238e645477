"""The spatial decoder: a masked autoencoder that sees some tokens of a frame and describes all.

Section 3.3 of the paper (spatial autoregressive modelling, set by set). Tokens come in
*reveal order*: a sample's permutation is fixed, so its visible tokens are always a prefix.

Dimensions: B frames, N tokens of a frame, V ≤ N padded visible tokens, M indicator features,
P values of a token, S = M + N, R rotary angles of a head, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from nova_jax.kernels.attention import Seen
from nova_jax.models.attention import Block, KeyValues, transformer
from nova_jax.models.config import NovaConfig
from nova_jax.models.embeddings import grid_positions, rotary_angles, space_embedding
from nova_jax.models.layers import BlockStack, LayerNorm, Remat, linear

# Keys and values of a frame's M + N tokens in both halves of the blocks.
Known = tuple[KeyValues, KeyValues]


class SpatialDecoder(nnx.Module):
    """First half of the blocks on visible tokens only, second half on all tokens."""

    def __init__(
        self, config: NovaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs, remat: Remat, unroll: int
    ):
        size, width = config.spatial_decoder_size, config.width
        self.config, self.dtype = config, dtype
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.patch_embed = linear(config.token_dim, width, (None, "embed"), **options)
        self.mask_token = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (width,)), logical_axes=("embed",)
        )
        halves = (size.depth // 2, size.depth - size.depth // 2)
        options |= {"remat": remat, "unroll": unroll}
        layout = ("frames", None)
        stacks = ("encoder_blocks", "decoder_blocks")
        self.encoder_blocks, self.decoder_blocks = (
            transformer(size, depth, layout, name=f"spatial_decoder.{name}", **options)
            for depth, name in zip(halves, stacks, strict=True)
        )
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)

    def space(self, order: Int[Array, "b n"]) -> Float[Array, "b n d"] | None:
        """Sine-cosine positions in reveal order, None for a rotary model."""
        if self.config.rotary:
            return None
        table = jnp.asarray(space_embedding(self.config.grid, self.config.width))
        return table[order].astype(self.dtype)

    def rotary(self, order: Int[Array, "b n"]) -> Float[Array, "b s r"] | None:
        """Rotary angles of the M indicator features, at the origin, and of tokens in order."""
        if not self.config.rotary:
            return None
        positions = jnp.asarray(grid_positions(self.config.grid))[order]
        positions = jnp.pad(positions, ((0, 0), (self.config.indicator_tokens, 0), (0, 0)))
        return rotary_angles(positions, self.config.spatial_decoder_size.head_dim)

    def mask_tokens(self, order: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """The learned mask token with positions, for every place of the frame."""
        mask = self.mask_token[None, None].astype(self.dtype)
        space = self.space(order)
        if space is None:
            return jnp.broadcast_to(mask, (*order.shape, mask.shape[-1]))
        return mask + space

    def embed_visible(
        self, visible: Float[Array, "b v p"], order: Int[Array, "b n"]
    ) -> Float[Array, "b v d"]:
        """Embeds the first V tokens in reveal order and adds their positions."""
        x = self.patch_embed(visible)
        space = self.space(order[:, : visible.shape[1]])
        return x if space is None else x + space

    def __call__(
        self,
        visible: Float[Array, "b v p"],
        num_visible: Int[Array, ""] | int,
        order: Int[Array, "b n"],
        indicators: Float[Array, "b m d"],
        only: tuple[Int[Array, ""], int] | None = None,
    ) -> Float[Array, "b q d"]:
        """Features of all Q = N tokens, in reveal order, or of those that are asked for.

        Args:
            visible: the first V tokens in reveal order; those from `num_visible` on are padding.
            num_visible: how many are visible.
            order: reveal order, a permutation of the row-major token indices.
            indicators: the temporal encoder's features of this frame.
            only: first and number of the tokens that are asked for; the last block runs for them
                alone. What reaches past token N is padding.
        """
        m, v = indicators.shape[1], visible.shape[1]
        x, rotary = self.mask_tokens(order), self.rotary(order)
        if v > 0:
            seen = jnp.concatenate([indicators, self.embed_visible(visible, order)], axis=1)
            rotary_seen = None if rotary is None else rotary[:, : m + v]
            seen = self.encoder_blocks(seen, rotary_seen, jnp.asarray(m + num_visible))
            indicators = seen[:, :m]
            is_visible = (jnp.arange(v) < num_visible)[None, :, None]
            x = jnp.concatenate([jnp.where(is_visible, seen[:, m:], x[:, :v]), x[:, v:]], axis=1)
        else:
            rotary_seen = None if rotary is None else rotary[:, :m]
            indicators = self.encoder_blocks(indicators, rotary_seen, None)
        x = jnp.concatenate([indicators, x], axis=1)
        if only is None:
            x = self.decoder_blocks(x, rotary, None)
            return self.norm(x[:, m:])
        x, last = self.decoder_blocks.all_but_last(x, rotary, None)
        first, count = only
        return self.norm(last(x, rotary, None, only=(m + first, count)))

    def unknown(self, batch: int) -> Known:
        """What is known of frames before their first AR step."""
        size, tokens = self.config.spatial_decoder_size, self.config.num_tokens
        tokens += self.config.indicator_tokens
        stacks = (self.encoder_blocks, self.decoder_blocks)
        first, second = (
            KeyValues.zeros(size, stack.depth, batch, tokens, self.dtype) for stack in stacks
        )
        return first, second

    def revise(
        self,
        known: Known,
        visible: Float[Array, "b v p"],
        num_visible: Int[Array, ""] | int,
        order: Int[Array, "b n"],
        indicators: Float[Array, "b m d"],
        only: tuple[Int[Array, ""], int],
        first: Int[Array, ""] | int,
        most: int,
    ) -> tuple[Float[Array, "b q d"], Known]:
        """Features of tokens, from a part of a frame: the rest is as it was known before.

        Of all of the frame it is what `__call__` gives.

        Args:
            known: keys and values of the frame.
            visible: tokens from number `first` on in reveal order.
            num_visible: how many of the frame are visible; others are padding.
            order: the part of reveal order that is mapped anew, from number `first` on, V or more.
            indicators: all of them, if the part is the whole, or none.
            only: first and number of the tokens that are asked for, counted in the frame.
            first: of the part.
            most: bound on `num_visible`.

        Returns:
            The features, and what is known now.
        """
        m, v = indicators.shape[1], visible.shape[1]
        before = self.config.indicator_tokens
        place = 0 if m else before + first
        x, rotary = self.mask_tokens(order), self.rotary(order)
        rotary = None if rotary is None else rotary[:, before - m :]
        seen = jnp.concatenate([indicators, self.embed_visible(visible, order)], axis=1)
        seen, encoder = _revise(
            self.encoder_blocks,
            known[0],
            seen,
            place,
            before + most,
            None if rotary is None else rotary[:, : m + v],
            jnp.asarray(before + num_visible),
        )
        is_visible = (first + jnp.arange(v) < num_visible)[None, :, None]
        shown = jnp.where(is_visible, seen[:, m:], x[:, :v])
        x = jnp.concatenate([seen[:, :m], shown, x[:, v:]], axis=1)
        asked = (jnp.asarray(m + only[0] - first), only[1])
        total = before + self.config.num_tokens
        x, decoder = _revise(
            self.decoder_blocks, known[1], x, place, total, rotary, None, only=asked
        )
        return self.norm(x), (encoder, decoder)


def _revise(
    blocks: BlockStack,
    known: KeyValues,
    x: Float[Array, "b s d"],
    first: Int[Array, ""] | int,
    total: int,
    rotary: Float[Array, "b s r"] | None,
    seen: Seen,
    only: tuple[Int[Array, ""], int] | None = None,
) -> tuple[Float[Array, "b q d"], KeyValues]:
    """A part of a sequence through all blocks, see `nova_jax.models.attention.Block.revise`."""
    part = (first, total, rotary, seen)
    carry, last = blocks.all_but_last((x, jnp.asarray(0), known), *part, call=Block.revise)
    x, _, known = last.revise(carry, *part, only)
    return x, known
