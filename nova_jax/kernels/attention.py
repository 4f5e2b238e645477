"""Softmax attention: which implementation runs where.

    cpu    plain, in float32, a few heads at a time: `jax.nn`'s takes twice the time, all the
           memory at once, and no float16
    gpu    cuDNN's flash attention for half types from compute capability 8.0 on, else `jax.nn`'s
           plain one
    tpu    `jax.nn`'s

A program for several platforms (`nova_jax.export`) holds the plain one of each.

Dimensions: B sequences, S queries, T keys, K heads, H channels of a head.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from nova_jax.kernels.device import compute_capability, platform

# What queries see of the keys. A mask [B, S, T]; the number of keys that are not padding; the
# lengths of blocks of tokens, each of which sees itself and all blocks before it; None: all.
Seen = Bool[Array, "#b #s t"] | Int[Array, ""] | tuple[int, ...] | None
# Most scores that are there at once on a CPU, unless one head has more: 64 MB.
_SCORES = 2**24


def attention(
    query: Float[Array, "b s k h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    seen: Seen = None,
    *,
    causal: bool = False,
) -> Float[Array, "b s k h"]:
    """softmax(q·k / √H)·v, with a float32 softmax.

    Args:
        query, key, value: of one type.
        seen: what queries may see: a mask, how many keys there are before padding, or blocks.
        causal: query i sees the keys up to i, of those.
    """
    if isinstance(seen, tuple):
        # Nothing of what is not seen is computed, and no piece needs a mask.
        pieces = [
            attention(query[:, end - size : end], key[:, :end], value[:, :end])
            for size, end in zip(seen, itertools.accumulate(seen), strict=True)
        ]
        return jnp.concatenate(pieces, axis=1)
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    length = seen if seen is not None and jnp.ndim(seen) == 0 else None
    no_mask = seen is None or length is not None
    if half and no_mask and query.shape[-1] <= 128 and compute_capability() >= 8:
        lengths = queries = None
        if length is not None:
            lengths = jnp.full(key.shape[0], length, jnp.int32)
            queries = jnp.full(key.shape[0], query.shape[1], jnp.int32)
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=causal,
            query_seq_lengths=queries,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )
    mask = seen if length is None else (jnp.arange(key.shape[1]) < length)[None, None]
    if causal:
        below = jnp.tril(jnp.ones((1, query.shape[1], key.shape[1]), bool))
        mask = below if mask is None else mask & below
    if platform() == "any":
        arrays = (query, key, value, mask)
        return jax.lax.platform_dependent(*arrays, cpu=_on_cpu, default=_elsewhere)
    return (_on_cpu if platform() == "cpu" else _elsewhere)(query, key, value, mask)


def _elsewhere(
    query: Float[Array, "b s k h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    mask: Bool[Array, "#b #s t"] | None,
) -> Float[Array, "b s k h"]:
    heads = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=heads)


def _on_cpu(
    query: Float[Array, "b s k h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    mask: Bool[Array, "#b #s t"] | None,
) -> Float[Array, "b s k h"]:
    batch, queries, heads, channels = query.shape
    if mask is not None:
        mask = jnp.broadcast_to(mask, (batch, mask.shape[1], key.shape[1]))
        mask = jnp.repeat(mask, heads, axis=0)

    def one(
        arrays: tuple[Array, Array, Array, Array | None],
    ) -> Float[Array, "s h"]:
        q, k, v, seen = arrays
        scores = q @ k.T / math.sqrt(channels)
        scores = scores if seen is None else jnp.where(seen, scores, jnp.finfo(q.dtype).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        return weights @ v / weights.sum(axis=-1, keepdims=True)

    by_head = [
        rearrange(x, "b s k h -> (b k) s h").astype(jnp.float32) for x in (query, key, value)
    ]
    at_once = max(1, _SCORES // (queries * key.shape[1]))
    if at_once >= batch * heads:
        y = jax.vmap(one)((*by_head, mask))
    else:
        y = jax.lax.map(one, (*by_head, mask), batch_size=at_once)
    return rearrange(y, "(b k) s h -> b s k h", k=heads).astype(query.dtype)
