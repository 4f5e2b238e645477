"""Phi-2, the language model whose last hidden states are the released models' text features.

Attention and MLP run side by side on one normalized input; positions are rotary, in a part of each
head's channels; attention is causal, so padding at the end changes nothing before it.

Dimensions: B prompts, L tokens, D width, K heads, H head channels.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from nova_jax.errors import NovaError
from nova_jax.kernels.attention import attention
from nova_jax.models.layers import BlockStack, LayerNorm, linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhiConfig:
    """What ``text_encoder/config.json`` says, by its names there.

    Fields of a single possible value are what Phi-2 does not have otherwise.
    """

    model_type: Literal["phi"] = "phi"
    hidden_act: Literal["gelu_new"] = "gelu_new"
    qk_layernorm: Literal[False] = False
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10000.0
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        heads = self.num_attention_heads
        if self.num_key_value_heads not in (None, heads):
            raise NovaError(
                f"num_key_value_heads is {self.num_key_value_heads}; only {heads}, as many as "
                "num_attention_heads, is known"
            )

    @property
    def head_dim(self) -> int:
        """H."""
        return self.hidden_size // self.num_attention_heads


def rotate(x: Float[Array, "b l k h"], config: PhiConfig) -> Float[Array, "b l k h"]:
    """Turns the first r channels of every head by position: channel i pairs with i + r/2."""
    r = int(config.head_dim * config.partial_rotary_factor)
    frequencies = 1.0 / config.rope_theta ** (jnp.arange(0, r, 2, dtype=jnp.float32) / r)
    angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * frequencies[None]
    cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b, rest = x[..., : r // 2], x[..., r // 2 : r], x[..., r:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


class PhiBlock(nnx.Module):
    """x + attention(LN(x)) + mlp(LN(x)), one norm for both."""

    def __init__(self, config: PhiConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, inner = config.hidden_size, config.intermediate_size
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.config = config
        self.norm = LayerNorm(d, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.query = linear(d, d, ("embed", "heads"), **options)
        self.key = linear(d, d, ("embed", "heads"), **options)
        self.value = linear(d, d, ("embed", "heads"), **options)
        self.out = linear(d, d, ("heads", "embed"), **options)
        self.fc1 = linear(d, inner, ("embed", "mlp"), **options)
        self.fc2 = linear(inner, d, ("mlp", "embed"), **options)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Maps features to features."""
        u = self.norm(x)
        heads = self.config.num_attention_heads
        query, key, value = (
            rearrange(projection(u), "b l (k h) -> b l k h", k=heads)
            for projection in (self.query, self.key, self.value)
        )
        query, key = rotate(query, self.config), rotate(key, self.config)
        y = attention(query, key, value, causal=True)
        y = self.out(rearrange(y, "b l k h -> b l (k h)"))
        return x + y + self.fc2(jax.nn.gelu(self.fc1(u), approximate=True))


class Phi(nnx.Module):
    """Token ids to last hidden states, after the final norm; blocks are scanned."""

    def __init__(self, config: PhiConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        d, depth = config.hidden_size, config.num_hidden_layers
        self.embed = nnx.Embed(config.vocab_size, d, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.blocks = BlockStack(
            lambda rngs: PhiBlock(config, dtype=dtype, rngs=rngs), depth, rngs=rngs
        )
        self.norm = LayerNorm(d, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Encodes; positions count from 0."""
        x = self.blocks(self.embed(tokens))
        return self.norm(x)
