"""A transformer whose largest matrices are kept in 8 bits a value: half the memory of bfloat16.

A kernel W [i, o] of a block of the temporal encoder or the spatial decoder becomes integers q and a
scale a channel of the output, W ≈ q · s with s_o = max_i |W_io| / 127, rounded to the nearest
(symmetric, weights alone, by columns as in LLM.int8, arXiv 2208.07339). Products are
computed in the type of the computation, and scaled afterwards. The diffusion head, whose matrices
are a small part and run most often, norms, biases and embeddings stay as they are.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8

from nova_jax.models.layers import Linear
from nova_jax.models.nova import Nova

LARGEST = 127


def quantize(model: Nova) -> Nova:
    """The same model with the kernels of both transformers' blocks in 8 bits.

    Until `model` is let go, both are in memory.
    """
    quantized = nnx.clone(model)
    for stage in (quantized.temporal_encoder, quantized.spatial_decoder):
        for path, layer in nnx.iter_modules(stage):
            if isinstance(layer, Linear) and any("blocks" in str(name) for name in path):
                q, scale = _in_8_bits(layer.kernel.get_value())
                layer.kernel.set_value(q)
                axes = layer.kernel.get_metadata().get("logical_axes", ())
                layer.scale = nnx.Param(scale, logical_axes=axes[-1:])
    return quantized


@jax.jit
def _in_8_bits(
    kernel: Float[Array, "*b i o"],
) -> tuple[Int8[Array, "*b i o"], Float[Array, "*b o"]]:
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-2) / LARGEST
    # A channel of zeros stays one.
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(kernel / jnp.expand_dims(scale, -2)).astype(jnp.int8), scale
