"""Times training steps on random data, on any mesh of this machine's devices.

    python benchmarks/train_step.py --arch=vit_d4w256,vit_d8w256,mlp_d3w256 --size=128x192 \
        --frames=3 --batch=4 --text_len=32 --dtype=float32
    JAX_NUM_CPU_DEVICES=8 python benchmarks/train_step.py --batch=8 --mesh=data:8 --mesh=fsdp:4

The step is the training loop's own: forward, backward, AdamW, EMA and the check for finite numbers,
on latents of stride 8 with 4 channels. The first call, which compiles, is reported apart. FLOPs are
counted from the sizes, three times the forward pass, with nothing recomputed. The peak is the
machine's where it is known (docs/plans.md), else measured on a large matrix product.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from peak import measured_peak
from sizes import TEXT_DIM, TEXT_LEN, config_of_flags

from nova_jax.distributed.machines import machine_of
from nova_jax.distributed.mesh import (
    MeshConfig,
    check_batch_size,
    make_mesh,
    shard_batch,
)
from nova_jax.models import flops
from nova_jax.sampling.schedules import FlowMatchingSchedule
from nova_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
)
from nova_jax.training.state import state_maker
from nova_jax.training.step import Trainer, make_train_step

FRAMES = flags.DEFINE_integer("frames", 3, "Latent frames.")
BATCH = flags.DEFINE_integer("batch", 4, "Videos, over all devices.")
LOSS_REPEAT = flags.DEFINE_integer("loss_repeat", 4, "Noise draws of each frame.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the computation.")
STEPS = flags.DEFINE_integer("steps", 10, "Timed steps.")
UNROLL = flags.DEFINE_integer("unroll", 0, "Blocks per loop iteration; 0: all on CPU, else 1.")
REMAT = flags.DEFINE_enum(
    "remat", "none", ["none", "dots", "full"], "What blocks recompute in the backward pass."
)
MESH = flags.DEFINE_multi_string("mesh", ["data:1"], "Such as data:2,fsdp:4; several are compared.")


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    config, dtype = config_of_flags(FRAMES.value), jnp.dtype(DTYPE.value)
    work = flops.of_training(
        config, batch=BATCH.value, frames=FRAMES.value, loss_repeat=LOSS_REPEAT.value
    )
    device = jax.devices()[0]
    machine = machine_of(device)
    peak = measured_peak(dtype) if machine is None else machine.flops[DTYPE.value]
    origin = "measured" if machine is None else "stated"
    print(f"device {device.device_kind}, JAX {jax.__version__}, {DTYPE.value}, remat {REMAT.value}")
    print(f"{work / 1e9:.1f} GFLOP a step; peak {peak / 1e9:.0f} GFLOP/s, {origin}\n")
    print("mesh                      devices  first call, s  step, s: median (range)    MFU   loss")
    for text in MESH.value:
        sizes = MeshConfig.parse(text)
        count = (sizes.data or 1) * sizes.fsdp * sizes.context * sizes.tensor
        first, seconds, loss = timed(config, dtype, jax.devices()[:count], sizes)
        median = statistics.median(seconds)
        # Devices that are parts of one CPU share its peak.
        share = work / median / (peak * (1 if machine is None else count))
        spread = f"{median:.3f} ({min(seconds):.3f}-{max(seconds):.3f})"
        print(f"{text:25} {count:7} {first:14.1f}  {spread:24} {100 * share:4.0f} %  {loss:.4f}")


def timed(config, dtype, devices, sizes):
    """Seconds of the first step, of each later one, and the last loss."""
    mesh = make_mesh(devices, sizes)
    check_batch_size("--batch", BATCH.value, mesh, FRAMES.value)
    recipe = OptimizerConfig()
    optimizer = make_optimizer(recipe, 1000)
    options = {"remat": REMAT.value, "dtype": dtype}
    options["unroll"] = UNROLL.value or (64 if jax.default_backend() == "cpu" else 1)
    blueprint, _, create = state_maker(config, optimizer, mesh, **options)
    state = create({})
    trainer = Trainer(
        blueprint=blueprint,
        mesh=mesh,
        schedule=FlowMatchingSchedule(),
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(recipe, 1000),
        loss_repeat=LOSS_REPEAT.value,
        seed=1,
    )
    step = make_train_step(trainer, state)
    rng, size = np.random.default_rng(0), BATCH.value
    shape = (size, FRAMES.value, *config.latent_size, config.latent_channels)
    batch = {
        "latents": rng.standard_normal(shape, np.float32),
        "text": rng.standard_normal((size, TEXT_LEN.value, TEXT_DIM.value), np.float32),
        "text_length": np.full(size, TEXT_LEN.value, np.int32),
        "flow": np.full(size, 5.0, np.float32),
        "fps": np.full(size, 12.0, np.float32),
    }
    batch = shard_batch(batch, mesh)
    times = []
    for _ in range(STEPS.value + 1):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - began)
    return times[0], times[1:], float(metrics["loss"])


if __name__ == "__main__":
    app.run(main)
