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

from nova_jax.kernels.diffusion_sampler.reference import HeadWeights, Modulations
from nova_jax.models.config import NovaConfig
from nova_jax.models.embeddings import FREQUENCY_CHANNELS, sinusoid
from nova_jax.models.layers import BlockStack, LayerNorm, Projector, Remat, linear
from nova_jax.models.layout import constrain
from nova_jax.models.observe import observe

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
        self, x: Float[Array, "*b d"], condition: Float[Array, "*b d"]
    ) -> Float[Array, "*b d"]:
        """Maps tokens; `condition` is SiLU(feature + step embedding), the same for every block."""
        scale, shift, gate = jnp.split(self.modulation(condition), 3, axis=-1)
        u = self.mlp(self.pre_norm(x) * (1 + scale) + shift)
        return x + gate * self.norm(u)


class DiffusionHead(nnx.Module):
    """Predicts the schedule's target (noise − x for flow matching) for noisy tokens."""

    def __init__(
        self, config: NovaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs, remat: Remat, unroll: int
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
        observe("diffusion_head.condition", condition)
        condition = constrain(jax.nn.silu(condition), *_COPIES)
        h = self.patch_embed(x)
        observe("diffusion_head.patch_embed", h)
        h = self.blocks(h, condition)
        scale, shift = jnp.split(self.final_modulation(condition), 2, axis=-1)
        h = self.final_norm(h) * (1 + scale) + shift
        observe("diffusion_head.norm", h)
        return self.out(h)

    def weights(self) -> HeadWeights:
        """What the sampler's kernels compute with; the modulations are `modulations`."""
        embed: Any = self.patch_embed
        block: Any = self.blocks.block
        out: Any = self.out
        return HeadWeights(
            embed=embed.kernel[...],
            embed_bias=embed.bias[...],
            fc1=block.mlp.fc1.kernel[...],
            fc1_bias=block.mlp.fc1.bias[...],
            fc2=block.mlp.fc2.kernel[...],
            fc2_bias=block.mlp.fc2.bias[...],
            norm_scale=block.norm.scale[...],
            norm_bias=block.norm.bias[...],
            out=out.kernel[...],
            out_bias=out.bias[...],
            unroll=self.blocks.unroll,
        )

    def modulations(
        self, embedded: Float[Array, "r n d"], times: Float[Array, " s"]
    ) -> Modulations:
        """Projections of all blocks, before any token is there.

        They are of feature_embed(features), at S diffusion times from 0 to 1000.
        """
        condition = jax.nn.silu(embedded[None] + self.embed_step(times)[:, None, None])
        blocks = self.blocks.map(lambda block: block.modulation(condition))
        return Modulations(blocks, self.final_modulation(condition))
