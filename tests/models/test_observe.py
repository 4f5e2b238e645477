"""What is seen is what a place gives, through scan, remat and grad; unseen, it costs nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nova_jax.models.layers import BlockStack, linear
from nova_jax.models.observe import hand_on, observe, observed

X = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)


def make_stack(**options):
    def make_block(rngs):
        return linear(4, 4, dtype=jnp.float32, rngs=rngs)

    return BlockStack(make_block, 3, rngs=nnx.Rngs(0), name="stack", **options)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_blocks_are_seen_one_by_one_next_to_the_gradient(remat):
    graph, params = nnx.split(make_stack(remat=remat))

    def loss_of(params, x):
        def run(x):
            observe("before", x)
            return nnx.merge(graph, params)(x)

        y, places = observed(run)(x)
        return jnp.sum(y**2), places

    def gradients_of(params, x):
        gradients, places = jax.grad(loss_of, has_aux=True)(params, x)
        hand_on(places)
        return gradients

    gradients, places = jax.jit(observed(gradients_of, lambda x: x))(params, X)
    assert list(places) == ["before", "stack.0", "stack.1", "stack.2"]
    y = X
    kernel, bias = np.asarray(params["block"]["kernel"]), np.asarray(params["block"]["bias"])
    for i in range(3):
        y = y @ kernel[i] + bias[i]
        np.testing.assert_allclose(places[f"stack.{i}"], y, rtol=1e-5, atol=1e-6)
    # Of the last bias, the gradient of Σ y² is 2 Σ y.
    np.testing.assert_allclose(gradients["block"]["bias"][-1], 2 * y.sum(0), rtol=1e-5, atol=1e-5)


def test_only_what_is_looked_for_is_kept():
    def finite(x):
        return jnp.isfinite(x).all()

    graph, params = nnx.split(make_stack())
    params["block"]["bias"] = params["block"]["bias"].at[1, 2].set(jnp.inf)
    _, places = jax.jit(observed(lambda x: nnx.merge(graph, params)(x), finite))(X)
    assert {name: bool(flag) for name, flag in places.items()} == {
        "stack.0": True,
        "stack.1": False,
        "stack.2": False,
    }


def test_unobserved_the_program_is_the_same():
    def plain(x):
        return x * 2 + 1

    def named(x):
        y = x * 2
        observe("doubled", y)
        return y + 1

    assert str(jax.make_jaxpr(named)(X)) == str(jax.make_jaxpr(plain)(X))
    y, places = observed(named)(X)
    assert not places
    np.testing.assert_array_equal(y, X * 2 + 1)
