"""Times the temporal encoder's attention in training: under a mask, and block after block.

    python benchmarks/attention.py --arch=vit_d16w768,vit_d32w768,mlp_d3w1280 --size=240x384 \
        --text_len=256 --frames=9

One layer's attention on random data, forward and with gradients. The two are called in turn, and
the least of the times is taken.
"""

import functools
import time

import jax
import numpy as np
from absl import app, flags
from flax import nnx
from sizes import TEXT_LEN, config_of_flags

from nova_jax.kernels.attention import attention
from nova_jax.models import Nova

FRAMES = flags.DEFINE_integer("frames", 9, "Latent frames.")
BATCH = flags.DEFINE_integer("batch", 1, "Videos.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the computation.")
CALLS = flags.DEFINE_integer("calls", 10, "Timed calls of each.")


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    config = config_of_flags(FRAMES.value)
    size = config.temporal_encoder_size
    encoder = nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0))).temporal_encoder
    shape = FRAMES.value, TEXT_LEN.value + 2
    ways = {"mask": encoder.mask(*shape), "blocks": encoder.blocks_of(*shape)}
    tokens = sum(ways["blocks"])
    rows = (4, BATCH.value, tokens, size.heads, size.head_dim)
    *inputs, gradient = jax.random.normal(jax.random.key(0), rows, DTYPE.value)

    def forward(inputs, gradient, seen):
        return attention(*inputs, seen)

    def both(inputs, gradient, seen):
        return jax.vjp(lambda *x: attention(*x, seen), *inputs)[1](gradient)

    print(f"device {jax.devices()[0].device_kind}, JAX {jax.__version__}, {DTYPE.value}")
    print(f"{BATCH.value} x {tokens} tokens, {size.heads} heads of {size.head_dim}")
    compiled, results = {}, {}
    for function in (forward, both):
        for name, seen in ways.items():
            began = time.perf_counter()
            run = jax.jit(functools.partial(function, seen=seen)).lower(inputs, gradient).compile()
            compiled[function.__name__, name] = run, time.perf_counter() - began
            results[function.__name__, name] = run(inputs, gradient)
        pair = (results[function.__name__, name] for name in ways)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2), *pair)
    seconds = {key: [] for key in compiled}
    for _call in range(CALLS.value):
        for key, (run, _seconds) in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(run(inputs, gradient))
            seconds[key].append(time.perf_counter() - began)
    for (function, name), (run, compilation) in compiled.items():
        memory = run.memory_analysis().temp_size_in_bytes / 2**20
        print(
            f"{function:8} {name:7} {1000 * min(seconds[function, name]):8.1f} ms, compiled in "
            f"{compilation:.1f} s, {memory:.0f} MiB of temporaries"
        )


if __name__ == "__main__":
    app.run(main)
