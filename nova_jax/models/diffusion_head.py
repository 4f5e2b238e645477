"""The diffusion head: an MLP that denoises every token on its own, given that token's feature.

Section 3.4 of the paper (per-token diffusion, after MAR, arXiv 2406.11838).

Dimensions: * any batch axes, P = C·p·p values of a token, D the head's width, Z the feature's.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nova_jax.models.config import NovaConfig
from nova_jax.models.embeddings import FREQUENCY_CHANNELS, sinusoid
from nova_jax.models.layers import BlockStack, LayerNorm, Projector, Remat, linear
from nova_jax.models.layout import constrain

# Axes of noisy copies of frames' tokens, in training; see `nova_jax.models.layout`.
_COPIES = (None, "frames", None, None)

_ZEROS, _ORTHOGONAL = nnx.initializers.zeros, nnx.initializers.orthogonal()


class HeadBlock(nnx.Module):
    """(scale, shift, gate) = Linear(SiLU(c)); x ← x + gate · LN(mlp(LN₀(x)(1 + scale) + shift))."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.pre_norm = LayerNorm(width, epsilon=1e-6, affine=False, **options)
        self.modulation = linear(width, 3 * width, ("embed", "mlp"), kernel_init=_ZEROS, **options)
        self.mlp = Projector(width, width, width, **options)
        self.norm = LayerNorm(width, **options)

    def __call__(
        self,
        x: Float[Array, "*b d"],
        condition: Float[Array, "*b d"] | None,
        modulation: Float[Array, "*b 3*d"] | None = None,
    ) -> Float[Array, "*b d"] | tuple[Float[Array, "*b d"], None]:
        """Maps tokens to tokens.

        Args:
            x: the tokens.
            condition: SiLU(feature embedding + step embedding), the same for every block.
            modulation: in its place (scale, shift, gate), already projected.

        Returns:
            x, or (x, None) for a given modulation, as `BlockStack` has it.
        """
        if modulation is not None:
            return self._apply(x, modulation), None
        assert condition is not None
        return self._apply(x, self.modulation(condition))

    def _apply(
        self, x: Float[Array, "*b d"], modulation: Float[Array, "*b 3*d"]
    ) -> Float[Array, "*b d"]:
        scale, shift, gate = jnp.split(modulation, 3, axis=-1)
        u = self.mlp(self.pre_norm(x) * (1 + scale) + shift)
        return x + gate * self.norm(u)


class DiffusionHead(nnx.Module):
    """Predicts the schedule's target (noise − x for flow matching) for noisy tokens."""

    def __init__(
        self,
        config: NovaConfig,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        remat: Remat = "none",
        unroll: int = 1,
    ):
        size, width = config.diffusion_head_size, config.diffusion_head_size.width
        self.dtype, self.depth, self.width = dtype, size.depth, width
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.patch_embed = linear(
            config.token_dim, width, (None, "embed"), kernel_init=_ORTHOGONAL, **options
        )
        self.feature_embed = Projector(config.width, width, width, **options)
        self.step_embed = Projector(FREQUENCY_CHANNELS, width, width, **options)
        self.blocks = BlockStack(
            lambda rngs: HeadBlock(width, dtype=dtype, rngs=rngs),
            size.depth,
            rngs=rngs,
            remat=remat,
            unroll=unroll,
            name="diffusion_head.blocks",
            axes=_COPIES,
        )
        self.final_norm = LayerNorm(width, epsilon=1e-6, affine=False, **options)
        self.final_modulation = linear(
            width, 2 * width, ("embed", "mlp"), kernel_init=_ZEROS, **options
        )
        self.out = linear(width, config.token_dim, ("embed", None), **options)
        if config.token_dim <= width:
            # With every block switched off by its zero modulation, the head starts as
            # out(LN₀(patch_embed(x))) = x / rms(x): already the noise, wherever tokens are mostly
            # noise. Learning that identity from random maps would be the first part of training.
            identity = self.patch_embed.kernel.get_value().T * math.sqrt(config.token_dim / width)
            self.out.kernel.set_value(identity)

    @property
    def modulation_dims(self) -> int:
        """Values that a token's condition is projected to, all blocks and the last norm."""
        return (3 * self.depth + 2) * self.width

    def embed_step(self, time: Float[Array, "*b"]) -> Float[Array, "*b d"]:
        """Embedding of the network's diffusion time, 0 to 1000; cosines before sines."""
        sin, cos = sinusoid(time)
        return self.step_embed(jnp.concatenate([cos, sin], axis=-1))

    def __call__(
        self, x: Float[Array, "*b p"], condition: Float[Array, "*b d"]
    ) -> Float[Array, "*b p"]:
        """Prediction for noisy tokens.

        Args:
            x: the tokens' noisy values.
            condition: feature_embed(features) + embed_step(time). The two are separate methods so
                that a feature is embedded once for all its noisy copies and sampling steps, and a
                timestep once for all tokens.
        """
        condition = constrain(jax.nn.silu(condition), *_COPIES)
        h, _ = self.blocks(self.patch_embed(x), condition)
        return self._project(h, self.final_modulation(condition))

    def denoise(
        self,
        x: Float[Array, "b n p"],
        passes: int,
        blocks: Float[Array, "l {passes}*b n {3*self.width}"],
        final: Float[Array, "{passes}*b n {2*self.width}"],
    ) -> Float[Array, "{passes}*b n p"]:
        """The same for G passes over the same tokens, whose modulations are already projected."""
        h = jnp.concatenate([self.patch_embed(x)] * passes, axis=0)
        h, _ = self.blocks(h, None, per_block=blocks)
        return self._project(h, final)

    def _project(
        self, h: Float[Array, "*b d"], modulation: Float[Array, "*b 2*d"]
    ) -> Float[Array, "*b p"]:
        scale, shift = jnp.split(modulation, 2, axis=-1)
        return self.out(self.final_norm(h) * (1 + scale) + shift)
