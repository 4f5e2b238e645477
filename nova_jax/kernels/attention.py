"""Softmax attention: which implementation runs where.

    cpu    plain, in float32, a few heads at a time: `jax.nn`'s takes twice the time, all the
           memory at once, and no float16
    gpu    cuDNN's flash attention for half types from compute capability 8.0 on, else `jax.nn`'s
           plain one
    tpu    JAX's splash attention (Pallas) for bfloat16 where scores are many: they never leave
           the chip, and of blocks what is not seen is skipped; else `jax.nn`'s plain one

A program for several platforms (`nova_jax.export`) holds the plain one of each.

Dimensions: B sequences, S queries, T keys, K heads, H channels of a head.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from nova_jax.kernels.device import compute_capability, platform

# What queries see of the keys. A mask [B, S, T]; the number of keys that are not padding; the
# lengths of blocks of tokens, each of which sees itself and all blocks before it; None: all.
Seen = Bool[Array, "#b #s t"] | Int[Array, ""] | tuple[int, ...] | None
# Most scores that are there at once on a CPU, unless one head has more: 64 MB.
_SCORES = 2**24
# Blocks from which on a CPU computes all scores, of which half is hidden: pieces would each hold
# copies of their keys.
_PIECES = 16
# Scores of a sequence and head from which on a TPU computes them tile by tile; the unit of a tile's
# side, which a TPU's lanes set, and the most that it may be.
_TILED, _LANES, _TILE = 512 * 512, 128, 512


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
    length = mask = blocks = None
    if isinstance(seen, tuple):
        blocks = seen
    elif seen is not None and jnp.ndim(seen) == 0:
        length = seen
    else:
        mask = seen
    # Wider heads are those of autoencoders: one, once a picture.
    flash = mask is None and query.shape[-1] <= 128
    many = query.shape[1] * key.shape[1] >= _TILED
    if flash and many and not causal and query.dtype == jnp.bfloat16 and platform() == "tpu":
        return splash(query, key, value, length=length, blocks=blocks)
    if blocks is not None and len(blocks) > _PIECES and platform() == "cpu":
        mask = jnp.asarray(block_causal_mask(np.repeat(np.arange(len(blocks)), blocks)))[None]
        blocks = None
    if blocks is not None:
        # Nothing of what is not seen is computed, and no piece needs a mask.
        pieces = [
            attention(query[:, end - size : end], key[:, :end], value[:, :end])
            for size, end in zip(blocks, itertools.accumulate(blocks), strict=True)
        ]
        return jnp.concatenate(pieces, axis=1)
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if half and flash and compute_capability() >= 8:
        count, lengths, queries = query.shape[1], None, None
        if length is not None:
            # With lengths cuDNN differentiates even numbers of queries and keys only.
            query, key, value = (
                jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
                for x in (query, key, value)
            )
            lengths = jnp.full(key.shape[0], length, jnp.int32)
            queries = jnp.full(key.shape[0], count, jnp.int32)
        y = jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=causal,
            query_seq_lengths=queries,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )
        return y[:, :count]
    if length is not None:
        mask = (jnp.arange(key.shape[1]) < length)[None, None]
    if causal:
        below = jnp.tril(jnp.ones((1, query.shape[1], key.shape[1]), bool))
        mask = below if mask is None else mask & below
    if platform() == "any":
        arrays = (query, key, value, mask)
        return jax.lax.platform_dependent(*arrays, cpu=_on_cpu, default=_elsewhere)
    return (_on_cpu if platform() == "cpu" else _elsewhere)(query, key, value, mask)


def score_bytes(sequences: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
    """Bytes of the scores that `attention` has at once, for numbers of so many bytes."""
    every = sequences * heads * queries * keys
    if platform() == "cpu":
        return 4 * min(every, max(_SCORES, queries * keys))
    in_tiles = itemsize < 4 and (compute_capability() >= 8 or platform() == "tpu")
    return 0 if in_tiles else 2 * 4 * every


def block_causal_mask(block_ids: Int[np.ndarray, " s"]) -> Bool[np.ndarray, "s s"]:
    """Each token sees its own block and all earlier ones: mask[i, j] = id[i] ≥ id[j]."""
    return block_ids[:, None] >= block_ids[None, :]


def splash(
    query: Float[Array, "b s k h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    *,
    length: Int[Array, ""] | None = None,
    blocks: tuple[int, ...] | None = None,
    interpret: bool = False,
) -> Float[Array, "b s k h"]:
    """JAX's splash attention, for TPUs; see `attention`.

    Args:
        query, key, value: of one type.
        length: how many keys there are before padding.
        blocks: lengths of blocks of tokens, each of which sees itself and all blocks before it.
        interpret: run on any device, slowly.
    """
    # Loads Pallas for TPUs, which nothing else needs.
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    channels, queries, keys = query.shape[-1], query.shape[1], key.shape[1]
    rows, columns = (-(-n // _LANES) * _LANES for n in (queries, keys))
    # What pads the queries sees the keys too: a softmax over nothing is not a number.
    mask = np.zeros((1, rows, columns), bool)
    mask[..., :keys] = True
    if blocks is not None:
        mask[0, :queries, :keys] = block_causal_mask(np.repeat(np.arange(len(blocks)), blocks))
    side_q, side_k = (
        max(n for n in range(_LANES, _TILE + 1, _LANES) if size % n == 0)
        for size in (rows, columns)
    )
    sizes = library.BlockSizes(
        block_q=side_q, block_kv=side_k, block_kv_compute=side_k,
        block_q_dkv=side_q, block_kv_dkv=side_k, block_kv_dkv_compute=side_k,
        block_q_dq=side_q, block_kv_dq=side_k,
    )  # fmt: skip
    kernel = library.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
    segments = None
    if length is not None:
        padding = (jnp.arange(columns) >= length).astype(jnp.int32)
        segments = library.SegmentIds(q=jnp.zeros(rows, jnp.int32), kv=padding)

    def padded(x: Float[Array, "b n k h"], size: int) -> Float[Array, "b*k 1 {size} h"]:
        by_head = rearrange(x, "b n k h -> (b k) 1 n h")
        return jnp.pad(by_head, ((0, 0), (0, 0), (0, size - x.shape[1]), (0, 0)))

    q = padded(query * channels**-0.5, rows)
    k, v = padded(key, columns), padded(value, columns)
    y = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(q, k, v)
    return rearrange(y[:, 0, :queries], "(b k) s h -> b s k h", k=query.shape[2])


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
        arrays: tuple[
            Float[Array, "s h"],
            Float[Array, "t h"],
            Float[Array, "t h"],
            Bool[Array, "#s t"] | None,
        ],
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
