"""Which meshes a run may have on a machine, and a guess at each: what is worth compiling.

Memory, compute and network are counted from the sizes of the model and the batch alone;
`nova_jax.plan.compile` compiles, and knows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from nova_jax.distributed.mesh import MESH_AXES, MeshConfig, MeshLayout, check_batch_size, make_mesh
from nova_jax.errors import NovaError
from nova_jax.models import flops
from nova_jax.models.config import NovaConfig
from nova_jax.models.layers import logical_axes
from nova_jax.models.layout import AxisNames
from nova_jax.models.nova import Nova
from nova_jax.plan.topology import Topology
from nova_jax.training.config import TrainConfig

#: Samples of a batch that a plan may have.
MOST_SAMPLES = 2**20


def batch_of(config: TrainConfig) -> tuple[int, int]:
    """(samples, frames) of a run's largest batches: its videos, or its pictures if it has none.

    Raises:
        NovaError: they are larger than any that was ever trained with; 32 bits count their tokens.
    """
    name, frames = "batch_size", config.clip_frames
    if config.model.frames > 1 and config.data.video_fraction == 0:
        name, frames = "image_batch_size", 1
    size = getattr(config.data, name)
    if size > MOST_SAMPLES:
        raise NovaError(f"data.{name} is {size:,}; plans are made for {MOST_SAMPLES:,} at most")
    return size, frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A guess at a mesh, from sizes alone, that says which ones are worth compiling.

    Attributes:
        mesh: its shape.
        memory: bytes of one device.
        overlapped, serial: as `Plan` has them, without memory traffic.
    """

    mesh: MeshConfig
    memory: float
    overlapped: float
    serial: float


def estimates(config: TrainConfig, topology: Topology) -> list[Estimate]:
    """All meshes that the topology and the batch allow, best first, those that may fit before all.

    Tensor stays within eight devices and divides the heads. Rules are the recipe's.

    Raises:
        NovaError: there is none.
    """
    devices = topology.devices()
    size, frames = batch_of(config)
    shapes = _parameter_shapes(config.model)
    divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
    found = []
    for fsdp, context, tensor in itertools.product(divisors, repeat=3):
        if tensor > 8 or config.model.spatial_decoder_size.heads % tensor:
            continue
        if len(devices) % (fsdp * context * tensor) or context > max(1, frames):
            continue
        sizes = MeshConfig(fsdp=fsdp, context=context, tensor=tensor, rules=config.mesh.rules)
        try:
            mesh = make_mesh(devices, sizes)
            check_batch_size("data.batch_size", size, mesh, frames)
        except NovaError:
            continue
        found.append(_estimate(config, topology, mesh, shapes))
    if not found:
        raise NovaError(
            f"data.batch_size {size} cannot be split over {topology} by any mesh; use a multiple "
            f"of {len(devices)}"
        )
    room = topology.machine.memory
    return sorted(found, key=lambda e: (e.memory > room, e.overlapped, e.serial))


def _parameter_shapes(config: NovaConfig) -> list[tuple[AxisNames, tuple[int, ...]]]:
    """Axes and sizes of every parameter."""
    model = nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0)))
    return [
        (logical_axes(variable), variable.get_value().shape)
        for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    ]


class _Blocks(NamedTuple):
    """Equal blocks of the model: how many, a device's tokens, their width, and what each sees."""

    depth: int
    tokens: float
    width: int
    keys: int


def _estimate(
    config: TrainConfig,
    topology: Topology,
    mesh: MeshLayout,
    shapes: Sequence[tuple[AxisNames, tuple[int, ...]]],
) -> Estimate:
    size, frames = batch_of(config)
    blocks = _blocks(config, mesh)
    itemsize = jnp.dtype(config.dtype).itemsize
    whole = sum(math.prod(shape) for _, shape in shapes)
    kept = sum(math.prod(mesh.sharding(names, s).shard_shape(s)) for names, s in shapes)
    # Parameters, gradients, two moments and the average; what is computed with.
    memory = kept * (4 * 4 + 4 + itemsize) + _activations(config, topology, mesh, blocks)

    recomputed = {"none": 3, "dots": 3, "full": 4}[config.remat] / 3
    total = flops.of_training(
        config.model, batch=size, frames=frames, loss_repeat=config.loss_repeat
    )
    peak = topology.machine.flops.get(config.dtype, math.inf)
    compute = recomputed * total / mesh.size / peak

    def seconds(axis: str, kind: str, amount: float) -> float:
        line = np.moveaxis(mesh.devices, MESH_AXES.index(axis), 0)[:, 0, 0, 0]
        return topology.seconds(kind, amount, line.tolist())

    # As `RULES` has it: parameters split by fsdp and tensor, what is between blocks by the others.
    fsdp, tensor, context = (mesh.shape[axis] for axis in ("fsdp", "tensor", "context"))
    carried = sum(b.depth * b.tokens * b.width for b in blocks) * itemsize
    network = seconds("data", "all-reduce", 4 * whole / fsdp / tensor)
    network += 2 * seconds("fsdp", "all-gather", itemsize * whole / tensor)
    network += seconds("fsdp", "reduce-scatter", 4 * whole / tensor)
    network += 2 * seconds("tensor", "all-reduce", 2 * carried)
    temporal = blocks[0]
    gathered = 2 * temporal.depth * temporal.tokens * context * temporal.width * itemsize
    network += 3 * seconds("context", "all-gather", gathered)
    return Estimate(
        mesh=MeshConfig(**mesh.shape, rules=config.mesh.rules),
        memory=memory,
        overlapped=max(compute, network),
        serial=compute + network,
    )


def _blocks(config: TrainConfig, mesh: MeshLayout) -> list[_Blocks]:
    """The blocks of a training step, the temporal encoder's first."""
    model, (size, frames) = config.model, batch_of(config)
    clips, rows = size / mesh.ways("batch"), size * frames / mesh.ways("frames")
    width, depth = model.width, model.spatial_decoder_size.depth
    temporal = model.condition_tokens + frames * model.indicator_tokens
    seen = model.indicator_tokens + model.max_visible_tokens
    everything = model.indicator_tokens + model.num_tokens
    head, drawn = model.diffusion_head_size, config.loss_repeat * rows * model.num_tokens
    encoded = clips / mesh.ways("sequence") * temporal
    return [
        _Blocks(model.temporal_encoder_size.depth, encoded, width, temporal),
        _Blocks(depth // 2, rows * seen, width, seen),
        _Blocks(depth - depth // 2, rows * everything, width, everything),
        _Blocks(head.depth, drawn, head.width, 0),
    ]


def _activations(
    config: TrainConfig, topology: Topology, mesh: MeshLayout, blocks: Sequence[_Blocks]
) -> float:
    """Bytes of what waits for the backward pass."""
    itemsize = jnp.dtype(config.dtype).itemsize
    heads, tensor = config.model.spatial_decoder_size.heads, mesh.ways("mlp")
    # Attention that keeps its scores: on CPUs, and in float32.
    scores = 5 * heads * (topology.machine.target.platform == "cpu" or itemsize == 4)
    carried = sum(b.depth * b.tokens * b.width for b in blocks) * itemsize
    # Of one block, all that its backward pass reads: some 17 values a token and channel.
    full = [b.tokens * (17 * b.width * itemsize + scores * b.keys) / tensor for b in blocks]
    if config.remat == "none":
        return sum(b.depth * one for b, one in zip(blocks, full, strict=True))
    return carried * (1 + 8 / tensor if config.remat == "dots" else 1) + max(full)
