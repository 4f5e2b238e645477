"""Attention against JAX's own, and against the definition in half types."""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nova_jax.kernels import attention as module
from nova_jax.kernels.attention import attention, block_causal_mask, splash
from nova_jax.kernels.device import target
from nova_jax.plan.topology import Topology


def arrays(dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 8))
    return [jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("scores", [1, 2**24], ids=["head by head", "at once"])
@pytest.mark.parametrize("seen", ["all", "length", "mask"])
@pytest.mark.parametrize("causal", [False, True])
def test_meets_jax(scores, seen, causal, monkeypatch):
    monkeypatch.setattr(module, "_SCORES", scores)
    query, key, value = arrays()
    mask = {
        "all": None,
        "length": (jnp.arange(7) < 4)[None, None],
        "mask": jax.random.bernoulli(jax.random.key(4), 0.6, (2, 5, 7)).at[:, :, 0].set(True),
    }[seen]
    given = jnp.asarray(4) if seen == "length" else mask
    heads = None if mask is None else mask[:, None]
    wanted = jax.nn.dot_product_attention(query, key, value, mask=heads, is_causal=causal)
    got = attention(query, key, value, given, causal=causal)
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_compute_in_float32(dtype):
    half = arrays(dtype)
    got = attention(*half)
    assert got.dtype == dtype
    wanted = attention(*(x.astype(jnp.float32) for x in half)).astype(dtype)
    np.testing.assert_array_equal(got, wanted)


def test_gradients_meet_jax():
    query, key, value = arrays()
    ours = jax.grad(lambda *x: jnp.sum(attention(*x) ** 2), argnums=(0, 1, 2))(query, key, value)
    theirs = jax.grad(lambda *x: jnp.sum(jax.nn.dot_product_attention(*x) ** 2), argnums=(0, 1, 2))(
        query, key, value
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_blocks_see_themselves_and_those_before_them():
    """As the mask says, forward and backward."""
    ids = np.repeat(np.arange(4), [5, 3, 3, 1])
    mask = jnp.asarray(block_causal_mask(ids))[None]
    arrays = jax.random.normal(jax.random.key(0), (4, 2, 12, 3, 8))

    @functools.partial(jax.jit, static_argnames="blocks")
    def run(arrays, seen, blocks=None):
        *inputs, gradient = arrays
        y, back = jax.vjp(lambda *x: attention(*x, blocks or seen), *inputs)
        return y, *back(gradient)

    for got, wanted in zip(run(arrays, None, (5, 3, 3, 1)), run(arrays, mask), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "keys", "length", "blocks"),
    [(100, 300, None, None), (130, 200, 150, None), (200, 200, None, (90, 40, 40, 30))],
    ids=["all", "length", "blocks"],
)
def test_tiles_for_tpus_meet_the_definition(queries, keys, length, blocks):
    """Forward and backward, interpreted; sides that are no multiples of a tile."""
    shapes = ((2, queries, 3, 16), (2, keys, 3, 16), (2, keys, 3, 16), (2, queries, 3, 16))
    random = jax.random.split(jax.random.key(0), 4)
    *given, gradient = (jax.random.normal(k, s) for k, s in zip(random, shapes, strict=True))
    seen = blocks if length is None else jnp.asarray(length)
    known = None if length is None else jnp.asarray(length)

    @jax.jit
    def run(given, gradient):
        one, back = jax.vjp(lambda *x: attention(*x, seen), *given)
        other, forth = jax.vjp(
            lambda *x: splash(*x, length=known, blocks=blocks, interpret=True), *given
        )
        return (one, *back(gradient)), (other, *forth(gradient))

    for wanted, got in zip(*run(given, gradient), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def compiled_for(text: str, *arrays: tuple[int, ...], seen=None, length=False) -> str:
    """Forward and backward, in bfloat16, compiled for one device of a topology."""
    topology = Topology.parse(text)
    mesh = Mesh(np.array(topology.devices()[:1]), ("chip",))
    sharding = NamedSharding(mesh, PartitionSpec())
    given = [jax.ShapeDtypeStruct(shape, "bfloat16", sharding=sharding) for shape in arrays]
    known = jax.ShapeDtypeStruct((), "int32", sharding=sharding)

    def both(query, key, value, gradient, known):
        visible = known if length else seen
        return jax.vjp(lambda *x: attention(*x, visible), query, key, value)[1](gradient)

    with target(topology.machine.target), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(both).lower(*given, known).compile().as_text()


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which compiles for TPUs"
)
@pytest.mark.parametrize("blocks", [None, (300, 200, 100)])
def test_tiles_are_compiled_for_tpus(blocks, no_program_cache):
    text = compiled_for("v5e:2x2", *[(2, 600, 3, 64)] * 4, seen=blocks)
    assert text.count("tpu_custom_call") == 3  # forward, and two backward


@pytest.mark.skipif(
    os.environ.get("JAX_PLATFORMS") != "cpu"
    or importlib.util.find_spec("jax_plugins") is None
    or importlib.util.find_spec("jax_plugins.xla_cuda13") is None,
    reason="needs jax-cuda13-plugin, which compiles for GPUs, and JAX_PLATFORMS=cpu",
)
@pytest.mark.parametrize("tokens", [140, 141])
def test_flash_attention_is_compiled_for_gpus(tokens, no_program_cache):
    text = compiled_for("h100:1", *[(2, tokens, 3, 64)] * 4, length=True)
    assert "fmha" in text
