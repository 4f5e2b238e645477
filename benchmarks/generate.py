"""Times generation with random weights.

    python benchmarks/generate.py --size=240x384 --frames=2 --ar_steps=4 --diffusion_steps=25 \
        --arch=vit_d16w768,vit_d32w768,mlp_d3w1280 --text_len=256 --mixer_rank=24 --batch=1 \
        --dtype=float32

Latents of stride 8 with 4 channels; frames are latent frames. FLOPs are those of the matrix
products that the result needs, counted from the sizes, without padding; the machine's peak is
measured on a large matrix product. The stages are timed in programs of their own, so that their
sum is not exactly the whole.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx
from peak import measured_peak
from sizes import TEXT_DIM, TEXT_LEN, config_of_flags

from nova_jax.kernels.diffusion_sampler.api import sample
from nova_jax.models import Conditions, Nova, flops
from nova_jax.sampling.frames import describe
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.order import bucket_steps, set_sizes
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.sampling.state import begin
from nova_jax.sampling.video import generate

FRAMES = flags.DEFINE_integer("frames", 4, "Latent frames.")
AR_STEPS = flags.DEFINE_integer("ar_steps", 16, "K, AR steps of a frame.")
DIFFUSION_STEPS = flags.DEFINE_integer("diffusion_steps", 25, "S, diffusion steps of an AR step.")
BATCH = flags.DEFINE_integer("batch", 1, "Videos.")
GUIDANCE = flags.DEFINE_float("guidance", 5.0, "Guidance scale.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "Type of parameters and computation."
)
SAMPLER = flags.DEFINE_enum("sampler", "auto", ["auto", "xla", "pallas"], "Of diffusion steps.")
CALLS = flags.DEFINE_integer("calls", 3, "Timed calls.")
STAGES = flags.DEFINE_bool("stages", True, "Also time each stage, in programs of its own.")
UNROLL = flags.DEFINE_integer("unroll", 1, "Blocks per iteration of the loops over depth.")


def seconds_of(function: Callable[[], Any], calls: int) -> list[float]:
    """Seconds of each call, ready results included."""
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - began)
    return seconds


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    config = config_of_flags(FRAMES.value)
    dtype, batch, frames = jnp.dtype(DTYPE.value), BATCH.value, FRAMES.value

    @jax.jit
    def parameters() -> nnx.State:
        model = Nova(config, rngs=nnx.Rngs(0), dtype=dtype, unroll=UNROLL.value)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(model))

    abstract = nnx.eval_shape(
        lambda: Nova(config, rngs=nnx.Rngs(0), dtype=dtype, unroll=UNROLL.value)
    )
    model = nnx.merge(nnx.graphdef(abstract), parameters())
    schedule = FlowMatchingSchedule()
    sampling = SamplingConfig(
        AR_STEPS.value,
        DIFFUSION_STEPS.value,
        GuidanceConfig(scale=GUIDANCE.value),
        sampler=SAMPLER.value,
    )
    text = jax.random.normal(jax.random.key(1), (batch, TEXT_LEN.value, TEXT_DIM.value))
    conditions = Conditions(
        text=text,
        text_length=jnp.full(batch, TEXT_LEN.value),
        flow=jnp.full(batch, 5.0) if config.is_video else None,
        fps=jnp.full(batch, 12.0) if config.is_video else None,
    )
    keys = jax.random.split(jax.random.key(0), batch)

    def whole() -> jax.Array:
        return generate(model, schedule, conditions, frames=frames, config=sampling, keys=keys)

    first = seconds_of(whole, 1)[0]
    seconds = seconds_of(whole, CALLS.value)
    median, peak = statistics.median(seconds), measured_peak(dtype)
    needed = flops.of_generation(
        config,
        batch=batch,
        passes=sampling.guidance.passes,
        slots=sampling.slots(frames),
        sets=sampling.sets(config.num_tokens, frames),
        diffusion_steps=DIFFUSION_STEPS.value,
        condition_tokens=TEXT_LEN.value + 2 * config.is_video,
    )
    total = sum(needed.values())
    print(f"device          {jax.devices()[0].device_kind}, JAX {jax.__version__}, {DTYPE.value}")
    print(f"parameters      {sum(x.size for x in jax.tree.leaves(nnx.state(model))):,}")
    print(f"first call      {first:.1f} s, compilation {first - median:.1f} s of it")
    print(f"a call          {median:.3f} s median, {min(seconds):.3f} to {max(seconds):.3f}")
    print(f"FLOPs           {total / 1e9:.1f} GFLOP, {total / median / 1e9:.0f} GFLOP/s")
    print(
        f"measured peak   {peak / 1e9:.0f} GFLOP/s, {100 * total / median / peak:.0f} % of it used"
    )
    if not STAGES.value:
        return
    print(f"{'stage':22} {'GFLOP':>8} {'seconds':>8} {'GFLOP/s':>8}")
    for stage, spent in stages(model, conditions, sampling, frames).items():
        rate = needed[stage] / spent / 1e9
        print(f"{stage:22} {needed[stage] / 1e9:8.1f} {spent:8.3f} {rate:8.0f}")


def stages(
    model: Nova, conditions: Conditions, sampling: SamplingConfig, frames: int
) -> dict[str, float]:
    """Seconds of each stage over a whole generation, each in programs of its own."""
    config, guidance = model.config, sampling.guidance
    schedule = FlowMatchingSchedule()
    steps = schedule.sampling_steps(sampling.num_diffusion_steps)
    graph, params = nnx.split(model)
    batch = conditions.text_length.shape[0]
    rows = guidance.passes * batch
    keys = jax.random.split(jax.random.key(0), batch)
    state = begin(config, conditions, None, keys, slots=sampling.slots(frames))

    @jax.jit
    def temporal(params: Any) -> jax.Array:
        return describe(nnx.merge(graph, params), state, guidance)

    features = temporal(params)
    order = jnp.tile(jnp.arange(config.num_tokens)[None], (rows, 1))
    sizes = set_sizes(config.num_tokens, sampling.num_inference_steps)
    step_cost = functools.partial(flops.ar_step, config, sampling.num_diffusion_steps)
    buckets = bucket_steps(sizes, step_cost)

    @jax.jit
    def spatial(params: Any, tokens: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)
        total = jnp.zeros(())
        for bucket in buckets:

            def body(total, row, bucket=bucket):
                start = row
                visible = tokens[:, : bucket.prefix]
                drawn = model.spatial_decoder(
                    visible, start, order, features, only=(start, bucket.width)
                )
                return total + drawn.astype(jnp.float32).sum(), None

            total, _ = jax.lax.scan(body, total, jnp.asarray(bucket.starts))
        return total

    @jax.jit
    def head(params: Any, x: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)
        total = jnp.zeros(())
        for bucket in buckets:

            def body(total, row, bucket=bucket):
                condition = jnp.zeros((rows, bucket.width, config.width), model.dtype)
                condition = model.diffusion_head.feature_embed(condition)
                x_set = x[:, : bucket.width] + row
                drawn, _ = sample(
                    model.diffusion_head.weights(),
                    model.diffusion_head.modulations,
                    condition,
                    (x_set, None),
                    steps,
                    guidance.rule,
                    scale=guidance.scale,
                )
                return total + drawn.sum(), None

            total, _ = jax.lax.scan(body, total, jnp.arange(len(bucket.counts), dtype=jnp.float32))
        return total

    tokens = jnp.zeros((rows, config.num_tokens, config.token_dim))
    x = jnp.zeros((batch, config.num_tokens + 8, config.token_dim))
    results = {}
    for name, function, repeats in (
        ("temporal encoder", lambda: temporal(params), frames),
        ("spatial decoder", lambda: spatial(params, tokens), frames),
        ("diffusion head", lambda: head(params, x), frames),
    ):
        seconds_of(function, 1)
        results[name] = repeats * min(seconds_of(function, 2))
    return results


if __name__ == "__main__":
    app.run(main)
