"""The matrix peak of the machine, which other benchmarks compare with."""

import time

import jax
import jax.numpy as jnp


def measured_peak(dtype: jnp.dtype) -> float:
    """FLOP/s of a large matrix product, best of five."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
