"""Times the diffusion sampler alone, every implementation side by side, over token counts.

    python benchmarks/sampler.py --heads=mlp_d3w1280 --tokens=1,22,44,128 --dtype=bfloat16

Random weights and features, S steps of flow matching with guidance. An implementation that does not
run on this machine, or not at a size, is listed with the reason.
"""

import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx
from heads import BATCH, HEADS, config_of_head, make_head
from peak import measured_peak

from nova_jax.errors import NovaError
from nova_jax.kernels.diffusion_sampler.api import checked, sample
from nova_jax.kernels.diffusion_sampler.reference import Guidance
from nova_jax.models import flops
from nova_jax.models.diffusion_head import DiffusionHead
from nova_jax.sampling.schedules import FlowMatchingSchedule

TOKENS = flags.DEFINE_list("tokens", ["1", "22", "44", "128"], "Tokens of a set.")
STEPS = flags.DEFINE_integer("diffusion_steps", 25, "S.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "Type of weights and computation."
)
CALLS = flags.DEFINE_integer("calls", 10, "Timed calls.")


def milliseconds(head: DiffusionHead, tokens: int, implementation: str) -> float:
    """Median of a call."""
    checked(implementation)
    steps = FlowMatchingSchedule().sampling_steps(STEPS.value)
    graph, state = nnx.split(head)

    @jax.jit
    def run(state, features, x):
        head = nnx.merge(graph, state)
        options = {"scale": 5.0, "implementation": implementation}
        work = (head.weights(), head.modulations, features, (x, None))
        return sample(*work, steps, Guidance(2), **options)[0]

    features = jnp.ones((2 * BATCH.value, tokens, head.width), DTYPE.value)
    x = jax.random.normal(jax.random.key(0), (BATCH.value, tokens, 16))
    jax.block_until_ready(run(state, features, x))
    seconds = []
    for _ in range(CALLS.value):
        began = time.perf_counter()
        jax.block_until_ready(run(state, features, x))
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    dtype = jnp.dtype(DTYPE.value)
    peak = measured_peak(dtype)
    print(f"device {jax.devices()[0].device_kind}, JAX {jax.__version__}, {dtype}")
    print(f"measured peak {peak / 1e9:.0f} GFLOP/s")
    print(f"{'head':12} {'tokens':>6} {'floor ms':>9}  xla ms  pallas ms")
    for size in HEADS.value:
        config, head = config_of_head(size), make_head(size, DTYPE.value)
        for tokens in map(int, TOKENS.value):
            work = 2 * BATCH.value * tokens * flops.head_token(config, STEPS.value)
            row = f"{size:12} {tokens:6} {1000 * work / peak:9.2f}"
            for implementation in ("xla", "pallas"):
                try:
                    row += f"  {milliseconds(head, tokens, implementation):.2f}"
                except NovaError as error:
                    row += f"  ({error})"
            print(row, flush=True)


if __name__ == "__main__":
    app.run(main)
