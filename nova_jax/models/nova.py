"""NOVA, the whole transformer: conditions → temporal encoder → spatial decoder → diffusion head.

arXiv 2412.14169, figure 2. This file only joins the stages; each has a file of its own.

Dimensions: B videos, T frames, N spatial tokens and M indicator features of a frame, L text
tokens, C latent channels, P = C·p·p values of a token, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nova_jax.models.config import NovaConfig
from nova_jax.models.diffusion_head import DiffusionHead
from nova_jax.models.embeddings import DEFAULT_FPS, LabelEmbed, MotionEmbed, TextEmbed
from nova_jax.models.layers import BlockStack, Remat, patchify
from nova_jax.models.layout import constrain
from nova_jax.models.observe import observe
from nova_jax.models.spatial_decoder import SpatialDecoder
from nova_jax.models.temporal_encoder import TemporalEncoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditions:
    """What a batch of samples is conditioned on.

    Attributes:
        text: prompt features; rows from `text_length` on are ignored.
        text_length: rows of each prompt; 0 is the unconditional prompt.
        flow: motion score, mean optical flow of the clip; None for no motion tokens.
        fps: frames per second; None for the default of 12 where `flow` is given.
        label: class label, `num_classes` for none; of class-conditional models only.
    """

    text: Float[Array, "b l e"] | None = None
    text_length: Int[Array, " b"] | None = None
    flow: Float[Array, " b"] | None = None
    fps: Float[Array, " b"] | None = None
    label: Int[Array, " b"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What the temporal encoder sees of videos, where that is not the videos themselves.

    Attributes:
        latents: the frames.
        known: its slots that show the frame before them, see `TemporalEncoder.sequence`.
    """

    latents: Float[Array, "b t h w c"]
    known: Bool[Array, "b t"]


class Nova(nnx.Module):
    """The NOVA transformer.

    Args:
        config: sizes and options.
        rngs: random streams for the initial parameters (stream ``params``).
        dtype: type of the computation; parameters, softmax, norms and losses stay float32.
        remat: what blocks recompute in the backward pass instead of keeping it, to save memory:
            nothing, all but their matrix products ("dots"), or everything ("full").
        unroll: blocks per iteration of the compiled loop over depth. 1 compiles fastest; on CPUs
            larger values run faster.
    """

    def __init__(
        self,
        config: NovaConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        remat: Remat = "none",
        unroll: int = 1,
    ):
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        width = config.width
        self.config, self.dtype = config, dtype
        dim, classes = config.text_dim, config.num_classes
        self.text_embed = None if dim is None else TextEmbed(dim, width, **options)
        self.label_embed = None if classes is None else LabelEmbed(classes, width, **options)
        self.motion_embed = MotionEmbed(width, **options) if config.is_video else None
        options |= {"remat": remat, "unroll": unroll}
        self.temporal_encoder = TemporalEncoder(config, **options)
        self.spatial_decoder = SpatialDecoder(config, **options)
        self.diffusion_head = DiffusionHead(config, **options)

    def resized(self, latent_size: tuple[int, int]) -> "Nova":
        """The same model on the same arrays, for latent frames of (h, w).

        Positions are computed, not learned. A model that has this size already is returned itself.

        Raises:
            NovaError: tokens do not fit the size.
        """
        if latent_size == self.config.latent_size:
            return self
        model = nnx.clone(self)
        config = dataclasses.replace(self.config, latent_size=latent_size)
        for part in (model, model.temporal_encoder, model.spatial_decoder):
            part.config = config
        return model

    def unrolled(self, unroll: int) -> "Nova":
        """The same model on the same arrays, with so many blocks per iteration over depth."""
        model = nnx.clone(self)
        for _, part in nnx.iter_modules(model):
            if isinstance(part, BlockStack):
                part.unroll = unroll
        return model

    def embed_conditions(self, conditions: Conditions) -> Float[Array, "b l d"]:
        """Condition tokens: text, or a class label; then motion score and frame rate."""
        if self.text_embed is not None:
            assert conditions.text is not None and conditions.text_length is not None
            tokens = self.text_embed(conditions.text, conditions.text_length)
        else:
            assert self.label_embed is not None and conditions.label is not None
            tokens = self.label_embed(conditions.label)
        observe("label_embed" if self.text_embed is None else "text_embed", tokens)
        if self.motion_embed is None or conditions.flow is None:
            return tokens
        flow, fps = conditions.flow, conditions.fps
        fps = jnp.full_like(flow, DEFAULT_FPS) if fps is None else fps
        return jnp.concatenate([tokens, self.motion_embed(flow, fps)], axis=1)

    def tokens(self, latents: Float[Array, "*b h w c"]) -> Float[Array, "*b n p"]:
        """Latent frames as spatial tokens, row-major."""
        return patchify(latents, self.config.patch_size)

    def __call__(
        self,
        latents: Float[Array, "b t h w c"],
        conditions: Conditions,
        order: Int[Array, "f n"],
        num_visible: Int[Array, ""],
        context: Context | None = None,
    ) -> Float[Array, "f n d"]:
        """Features that the diffusion head denoises from (training), F = B·T frames.

        Args:
            latents: whole videos; frame t is described from frames before it.
            conditions: text or label, and motion.
            order: reveal order of each frame, rows b·T + t.
            num_visible: tokens of each frame that are visible, at most `max_visible_tokens`.
            context: what the temporal encoder sees of the videos; all of `latents` by default.

        Returns:
            Features of all tokens in reveal order.
        """
        condition = self.embed_conditions(conditions)
        observe("the condition tokens", condition)
        before, known = (latents, None) if context is None else (context.latents, context.known)
        indicators = self.temporal_encoder(before, condition, known)
        observe("temporal_encoder", indicators)
        tokens = rearrange(self.tokens(latents), "b t n p -> (b t) n p")
        tokens, order = constrain(tokens, "frames", None, None), constrain(order, "frames", None)
        visible = order[:, : self.config.max_visible_tokens, None]
        return self.spatial_decoder(
            jnp.take_along_axis(tokens, visible, axis=1),
            num_visible,
            order,
            constrain(rearrange(indicators, "b t m d -> (b t) m d"), "frames", None, None),
        )
