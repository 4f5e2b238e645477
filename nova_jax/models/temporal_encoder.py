"""The temporal encoder: from the text and the frames before t to indicator features of frame t.

Section 3.2 of the paper (temporal autoregressive modelling, frame by frame).

Dimensions: B videos, T frames, h×w latent size, C latent channels, M temporal tokens a frame,
L condition tokens, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from nova_jax.kernels.attention import Seen, block_causal_mask
from nova_jax.models.attention import transformer
from nova_jax.models.config import NovaConfig
from nova_jax.models.embeddings import TimeEmbed, grid_positions, rotary_angles, space_embedding
from nova_jax.models.layers import LayerNorm, Remat, linear, patchify
from nova_jax.models.layout import constrain, ways
from nova_jax.models.observe import observe


class Mixer(nnx.Module):
    """Scaling-and-shift layer: frame t's features modulate frame 0's (section 3.3).

    (scale, shift) = Linear(Lowrank(SiLU(c_t)));  indicator_t = a · (1 + scale) + shift
    """

    def __init__(self, width: int, rank: int | None, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.lowrank = (
            linear(width, rank, ("embed", None), bias=False, dtype=dtype, rngs=rngs)
            if rank
            else None
        )
        # Starts at scale = shift = 0: every frame is first asked to look like frame 0.
        self.projection = linear(
            rank or width,
            2 * width,
            (None, "embed"),
            kernel_init=nnx.initializers.zeros,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, anchor: Float[Array, "*#b m d"], features: Float[Array, "*b m d"]
    ) -> Float[Array, "*b m d"]:
        """Indicator features of frames t > 0 from frame 0's (`anchor`) and their own."""
        hidden = jax.nn.silu(features)
        hidden = hidden if self.lowrank is None else self.lowrank(hidden)
        scale, shift = jnp.split(self.projection(hidden), 2, axis=-1)
        return anchor * (1 + scale) + shift


class TemporalEncoder(nnx.Module):
    """A transformer over frames, bidirectional inside a frame and causal between frames."""

    def __init__(
        self, config: NovaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs, remat: Remat, unroll: int
    ):
        size, width = config.temporal_encoder_size, config.width
        patch_dim = config.latent_channels * (config.temporal_patch * config.patch_size) ** 2
        self.config = config
        self.dtype = dtype
        self.patch_embed = linear(patch_dim, width, (None, "embed"), dtype=dtype, rngs=rngs)
        self.time_embed = (
            None if config.rotary else TimeEmbed(width, config.frames, dtype=dtype, rngs=rngs)
        )
        self.bos_token = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (width,)), logical_axes=("embed",)
        )
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs, "remat": remat, "unroll": unroll}
        options["name"] = "temporal_encoder.blocks"
        self.blocks = transformer(size, size.depth, ("batch", "sequence"), **options)
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        has_mixer = bool(config.mixer_rank)
        rank = max(config.mixer_rank or 0, 0)
        self.mixer = Mixer(width, rank, dtype=dtype, rngs=rngs) if has_mixer else None

    def embed_frames(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b t m d"]:
        """Patch embedding of frames, without positions.

        Rows and columns that fill no patch are left out, as a strided convolution does.
        """
        side = self.config.temporal_patch * self.config.patch_size
        rows, columns = self.config.temporal_grid
        x = self.patch_embed(patchify(latents[:, :, : rows * side, : columns * side], side))
        observe("temporal_encoder.patch_embed", x)
        return x

    def begin_of_video(self, batch: int) -> Float[Array, "{batch} 1 m d"]:
        """The learned token that stands where frame 0 has no frame before it."""
        shape = (batch, 1, self.config.indicator_tokens, self.config.width)
        return jnp.broadcast_to(self.bos_token[None, None, None].astype(self.dtype), shape)

    def add_positions(self, slots: Float[Array, "b t m d"]) -> Float[Array, "b t m d"]:
        """Adds time and space embeddings to all slots of a video."""
        if self.time_embed is None:
            return slots
        time = self.time_embed(slots.shape[1])
        space = jnp.asarray(space_embedding(self.config.temporal_grid, self.config.width))
        return slots + time[None, :, None].astype(self.dtype) + space[None, None].astype(self.dtype)

    def rotary(
        self, slots: int, condition_tokens: int, padding: int = 0
    ) -> Float[Array, "1 s r"] | None:
        """Rotary angles of condition tokens, at the origin, then of all slots of a video."""
        if not self.config.rotary:
            return None
        positions = jnp.asarray(grid_positions(self.config.temporal_grid))[None]
        times = jnp.arange(slots)[:, None, None] * jnp.asarray([[[1, 0, 0]]])
        positions = rearrange(positions + times, "t m p -> (t m) p")
        positions = jnp.pad(positions, ((condition_tokens, padding), (0, 0)))
        return rotary_angles(positions[None], self.config.temporal_encoder_size.head_dim)

    def mask(self, slots: int, condition_tokens: int, padding: int = 0) -> Seen:
        """`blocks_of` written out as a mask; what looks into a sequence's parts needs it."""
        tokens = condition_tokens + slots * self.config.indicator_tokens
        if slots == 1:
            return jnp.asarray(tokens) if padding else None
        ids = np.repeat(np.arange(slots), self.config.indicator_tokens)
        ids = np.pad(np.pad(ids, (condition_tokens, 0)), (0, padding), constant_values=slots)
        return jnp.asarray(block_causal_mask(ids))[None]

    def blocks_of(self, slots: int, condition_tokens: int) -> tuple[int, ...]:
        """Lengths of the blocks of block-causal attention: condition and slot 0, slot 1, ..."""
        tokens = self.config.indicator_tokens
        return (condition_tokens + tokens, *[tokens] * (slots - 1))

    def sequence(
        self,
        latents: Float[Array, "b t h w c"],
        condition: Float[Array, "b l d"],
        known: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b s d"]:
        """What the first block sees: [condition | begin of video | frame 0 | … | frame T−2].

        A slot that is not `known` is begin of video without a position, as in the guidance pass
        that sees no frames.
        """
        batch, frames = latents.shape[:2]
        slots = bare = self.begin_of_video(batch)
        if frames > 1:
            slots = jnp.concatenate([slots, self.embed_frames(latents[:, :-1])], axis=1)
        slots = self.add_positions(slots)
        if known is not None:
            slots = jnp.where(known[..., None, None], slots, bare)
        return jnp.concatenate([condition, rearrange(slots, "b t m d -> b (t m) d")], axis=1)

    def mix(self, features: Float[Array, "b t m d"]) -> Float[Array, "b t m d"]:
        """Applies the scaling-and-shift layer to frames 1.., where the model has one."""
        if self.mixer is None or features.shape[1] == 1:
            return features
        anchor = features[:, :1]
        mixed = self.mixer(anchor, features[:, 1:])
        observe("temporal_encoder.mixer", mixed)
        return jnp.concatenate([anchor, mixed], axis=1)

    def __call__(
        self,
        latents: Float[Array, "b t h w c"],
        condition: Float[Array, "b l d"],
        known: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t m d"]:
        """Indicator features of all frames of a video at once, see `sequence`."""
        frames, length = latents.shape[1], condition.shape[1]
        x = self.sequence(latents, condition, known)
        tokens = x.shape[1]
        seen: Seen = self.blocks_of(frames, length)
        # Devices that share a sequence need it divisible: by tokens that no other one sees.
        padding = -tokens % ways("sequence")
        if ways("sequence") > 1:
            x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
            seen = self.mask(frames, length, padding)
        x = constrain(x, "batch", "sequence", None)
        x = self.blocks(x, self.rotary(frames, length, padding=padding), seen)
        features = self.norm(x[:, length:tokens])
        observe("temporal_encoder.norm", features)
        return self.mix(rearrange(features, "b (t m) d -> b t m d", t=frames))
