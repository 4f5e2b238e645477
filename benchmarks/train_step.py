"""Times one training step on random data.

    python benchmarks/train_step.py --arch=vit_d4w256,vit_d8w256,mlp_d3w256 --size=128x192 \
        --frames=3 --batch=4 --text_len=32 --dtype=float32

Forward, backward and AdamW on latents of stride 8 with 4 channels. The first call, which compiles,
is reported apart. FLOPs are counted by hand from the matrix products of the model, padding
included, three times the forward pass; the machine's peak is measured on a large matrix product.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from flax import nnx
from peak import measured_peak
from sizes import TEXT_DIM, TEXT_LEN, config_of_flags

from nova_jax.huge_pages import restart_with_huge_pages
from nova_jax.models import Conditions, Nova, NovaConfig
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.training.loss import draw, training_loss
from nova_jax.training.optimizer import OptimizerConfig, make_optimizer, split_model

FRAMES = flags.DEFINE_integer("frames", 3, "Latent frames.")
BATCH = flags.DEFINE_integer("batch", 4, "Videos.")
LOSS_REPEAT = flags.DEFINE_integer("loss_repeat", 4, "Noise draws of each frame.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the computation.")
STEPS = flags.DEFINE_integer("steps", 10, "Timed steps.")
UNROLL = flags.DEFINE_integer("unroll", 0, "Blocks per loop iteration; 0: all on CPU, else 1.")
REMAT = flags.DEFINE_bool("remat", False, "Recompute blocks in the backward pass.")


def forward_flops(config: NovaConfig, batch: int, frames: int, repeat: int) -> float:
    """Multiply-adds x 2 of one forward pass."""
    d, n, m = config.width, config.num_tokens, config.indicator_tokens
    rows = batch * frames

    def blocks(depth: int, tokens: int) -> float:
        return depth * (12 * d * d * tokens + 2 * d * tokens * tokens)

    text = config.text_length or 1
    temporal = batch * blocks(config.temporal_encoder_size.depth, text + 2 + m * frames)
    depth = config.spatial_decoder_size.depth
    spatial = blocks(depth // 2, m + config.max_visible_tokens)
    spatial += blocks(depth - depth // 2, m + n)
    head, width = config.diffusion_head_size.depth, config.diffusion_head_size.width
    per_token = 5 * width * width * head + 2 * width * width + 2 * width * config.token_dim
    shared = d * width + width * width
    return 2 * (temporal + rows * (spatial + n * (repeat * per_token + shared)))


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    config = config_of_flags(FRAMES.value)
    dtype = jnp.dtype(DTYPE.value)
    unroll = UNROLL.value or (64 if jax.default_backend() == "cpu" else 1)
    model = Nova(config, rngs=nnx.Rngs(0), dtype=dtype, remat=REMAT.value, unroll=unroll)
    graph, params, frozen = split_model(model, config)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    state = optimizer.init(params)
    schedule = FlowMatchingSchedule()
    batch, frames = BATCH.value, FRAMES.value
    keys = jax.random.split(jax.random.key(0), 2)
    latents = jax.random.normal(keys[0], (batch, frames, *config.latent_size, 4))
    conditions = Conditions(
        text=jax.random.normal(keys[1], (batch, TEXT_LEN.value, TEXT_DIM.value)),
        text_length=jnp.full(batch, TEXT_LEN.value),
        flow=jnp.full(batch, 5.0),
        fps=jnp.full(batch, 12.0),
    )

    def step(params, state, index):
        draws = draw(
            config,
            schedule,
            jax.random.fold_in(jax.random.key(1), index),
            batch=batch,
            frames=frames,
            loss_repeat=LOSS_REPEAT.value,
        )

        def loss_of(params):
            model = nnx.merge(graph, params, frozen)
            return training_loss(model, schedule, latents, conditions, draws)[0]

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    step = jax.jit(step, donate_argnums=(0, 1))
    began = time.perf_counter()
    params, state, loss = jax.block_until_ready(step(params, state, 0))
    compiled = time.perf_counter() - began
    seconds = []
    for index in range(1, STEPS.value + 1):
        began = time.perf_counter()
        params, state, loss = jax.block_until_ready(step(params, state, index))
        seconds.append(time.perf_counter() - began)
    flops = 3 * forward_flops(config, batch, frames, LOSS_REPEAT.value)
    median, peak = statistics.median(seconds), measured_peak(dtype)
    print(f"device           {jax.devices()[0].device_kind}, JAX {jax.__version__}, {DTYPE.value}")
    print(f"parameters       {sum(x.size for x in jax.tree.leaves(params)):,} trained")
    print(f"first call       {compiled:.1f} s, compilation included")
    print(f"step             {median:.3f} s median, {min(seconds):.3f} to {max(seconds):.3f}")
    print(f"FLOPs            {flops / 1e9:.1f} GFLOP a step, {flops / median / 1e9:.0f} GFLOP/s")
    share = 100 * flops / median / peak
    print(f"measured peak    {peak / 1e9:.0f} GFLOP/s, {share:.0f} % of it used")
    print(f"loss             {float(loss):.4f}")


if __name__ == "__main__":
    restart_with_huge_pages()
    app.run(main)
