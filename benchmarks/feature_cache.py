"""Times a frame with keys and values kept between AR steps, against one without, in turn.

    python benchmarks/feature_cache.py --size=240x384 --ar_steps=32 --diffusion_steps=5 --rounds=5

Random weights, guidance, one sample. Beside the time on the clock stands that of the process on all
of its CPUs, which other programs lengthen less. FLOPs are counted from the sizes, without padding.
"""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx
from sizes import TEXT_DIM, TEXT_LEN, config_of_flags

from nova_jax.models import Conditions, Nova, flops
from nova_jax.sampling.frames import compiled_step
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.sampling.state import begin

AR_STEPS = flags.DEFINE_integer("ar_steps", 32, "K, AR steps of a frame.")
DIFFUSION_STEPS = flags.DEFINE_integer("diffusion_steps", 5, "S, diffusion steps of an AR step.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed frames of each.")
CACHES = flags.DEFINE_list("caches", ["1", "2", "4", "8"], "AR steps from one full to the next.")


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    config, keys = config_of_flags(1), jax.random.split(jax.random.key(0), 1)
    model = Nova(config, rngs=nnx.Rngs(0))
    conditions = Conditions(
        text=jax.random.normal(jax.random.key(1), (1, TEXT_LEN.value, TEXT_DIM.value)),
        text_length=jnp.full(1, TEXT_LEN.value),
    )
    plain = SamplingConfig(AR_STEPS.value, DIFFUSION_STEPS.value, GuidanceConfig(scale=5.0))
    caches = [None, *map(int, CACHES.value)]
    ways = {cache: dataclasses.replace(plain, feature_cache=cache) for cache in caches}
    state = begin(config, conditions, None, keys, slots=1)
    frames = {
        cache: compiled_step(model, state, FlowMatchingSchedule(), way)
        for cache, way in ways.items()
    }
    spent: dict[int | None, list[tuple[float, float]]] = {cache: [] for cache in ways}
    for round in range(ROUNDS.value + 1):
        for cache, frame in frames.items():
            began, busy = time.perf_counter(), time.process_time()
            jax.block_until_ready(frame(state, None))
            if round:  # the first one compiles
                seconds = time.perf_counter() - began, time.process_time() - busy
                spent[cache].append(seconds)
    print(f"{'feature_cache':14} {'GFLOP':>8} {'seconds':>8} {'of CPUs':>8} {'faster':>7}")
    for cache, way in ways.items():
        work = flops.of_generation(
            config,
            batch=1,
            passes=2,
            slots=1,
            sets=way.sets(config.num_tokens, 1),
            diffusion_steps=DIFFUSION_STEPS.value,
            condition_tokens=config.condition_tokens,
            feature_cache=cache,
        )
        clock, busy = (statistics.median(column) for column in zip(*spent[cache], strict=True))
        pairs = zip(spent[None], spent[cache], strict=True)
        faster = statistics.median(one[1] / other[1] for one, other in pairs)
        total = sum(work.values()) / 1e9
        print(f"{cache or 'off'!s:14} {total:8.1f} {clock:8.2f} {busy:8.2f} {faster:7.2f}")


if __name__ == "__main__":
    app.run(main)
