"""Which meshes a run may have on a machine, and a guess at each: what is worth compiling.

Memory, compute and network are counted from the sizes of the model and the batch alone;
`nova_jax.plan.compile` compiles, and knows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from nova_jax.distributed.mesh import MESH_AXES, MeshConfig, MeshLayout, check_batch_size, make_mesh
from nova_jax.errors import NovaError
from nova_jax.models import flops
from nova_jax.models.layers import logical_axes
from nova_jax.models.nova import Nova
from nova_jax.plan.topology import Topology
from nova_jax.training.config import TrainConfig


def batch_of(config: TrainConfig) -> tuple[int, int]:
    """(samples, frames) of a run's largest batches: its videos, or its pictures if it has none."""
    if config.model.frames > 1 and config.data.video_fraction == 0:
        return config.data.image_batch_size, 1
    return config.data.batch_size, config.clip_frames


def sent_bytes(kind: str, size: float, devices: int) -> float:
    """Bytes that each device of a ring sends in a collective of `size` bytes.

    (n − 1)/n of them in an all-gather, a reduce-scatter or an all-to-all, twice that in an
    all-reduce, all of them in a permutation.
    """
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) / devices


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

    Sides are powers of two times what is left; tensor stays within eight devices and divides the
    heads.
    """
    devices = topology.devices()
    size, frames = batch_of(config)
    shapes = _parameter_shapes(config)
    found = []
    for fsdp, context, tensor in itertools.product(_divisors(len(devices)), repeat=3):
        inner = fsdp * context * tensor
        model = config.model
        if len(devices) % inner or tensor > 8 or context > max(1, frames):
            continue
        if model.spatial_decoder_size.heads % tensor:
            continue
        mesh_config = MeshConfig(
            data=len(devices) // inner, fsdp=fsdp, context=context, tensor=tensor
        )
        try:
            mesh = make_mesh(devices, mesh_config)
            check_batch_size("data.batch_size", size, mesh, frames)
        except NovaError:
            continue
        found.append(_estimate(config, topology, mesh, mesh_config, shapes))
    if not found:
        raise NovaError(
            f"data.batch_size {size} cannot be split over {topology} by any mesh; use a multiple "
            f"of {len(devices)}"
        )
    room = topology.machine.memory
    return sorted(found, key=lambda e: (e.memory > room, e.overlapped, e.serial))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _parameter_shapes(config: TrainConfig) -> list[tuple[Any, tuple[int, ...]]]:
    model = nnx.eval_shape(lambda: Nova(config.model, rngs=nnx.Rngs(0)))
    return [
        (logical_axes(variable), variable.get_value().shape)
        for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    ]


def _estimate(
    config: TrainConfig,
    topology: Topology,
    mesh: MeshLayout,
    mesh_config: MeshConfig,
    shapes: Sequence[tuple[Any, tuple[int, ...]]],
) -> Estimate:
    model, machine = config.model, topology.machine
    size, frames = batch_of(config)
    data, fsdp, context, tensor = (mesh.shape[axis] for axis in MESH_AXES)
    itemsize = jnp.dtype(config.dtype).itemsize
    whole = kept = 0
    for names, shape in shapes:
        spec = mesh.partition_spec(names, shape)
        axes = [
            axis for part in spec if part for axis in ((part,) if isinstance(part, str) else part)
        ]
        kept += math.prod(shape) // math.prod(mesh.shape[axis] for axis in axes)
        whole += math.prod(shape)

    # Tokens of a device times width: once for each block they pass.
    samples = size / (data * fsdp)
    rows = samples * frames / context
    width, depth = model.width, model.spatial_decoder_size.depth
    temporal = model.condition_tokens + frames * model.indicator_tokens
    seen = model.indicator_tokens + model.max_visible_tokens
    everything = model.indicator_tokens + model.num_tokens
    blocks = [
        (model.temporal_encoder_size.depth, samples / context * temporal, width, temporal),
        (depth // 2, rows * seen, width, seen),
        (depth - depth // 2, rows * everything, width, everything),
        (
            model.diffusion_head_size.depth,
            config.loss_repeat * rows * model.num_tokens,
            model.diffusion_head_size.width,
            0,
        ),
    ]
    heads = model.spatial_decoder_size.heads
    plain = machine.target.platform == "cpu" or itemsize == 4  # attention that keeps its scores
    carried = sum(d * tokens * wide for d, tokens, wide, _ in blocks) * itemsize
    # Of one block, all that its backward pass reads: some 17 values a token and channel.
    full = [
        tokens * (17 * wide * itemsize + plain * 5 * heads * keys * (keys > 0)) / tensor
        for _, tokens, wide, keys in blocks
    ]
    if config.remat == "none":
        activations = sum(d * one for (d, *_), one in zip(blocks, full, strict=True))
    elif config.remat == "dots":
        activations = carried * (1 + 8 / tensor) + max(full)
    else:
        activations = carried + max(full)
    memory = kept * (4 * 4 + 4 + itemsize) + activations

    recomputed = {"none": 3, "dots": 3, "full": 4}[config.remat] / 3
    total = flops.of_training(model, batch=size, frames=frames, loss_repeat=config.loss_repeat)
    compute = recomputed * total / mesh.size / machine.flops.get(config.dtype, math.inf)

    def seconds(axis: str, kind: str, amount: float) -> float:
        line = np.moveaxis(mesh.devices, MESH_AXES.index(axis), 0)[:, 0, 0, 0].tolist()
        if len(line) == 1:
            return 0.0
        return sent_bytes(kind, amount, len(line)) / topology.bandwidth(list(line))

    network = seconds("data", "all-reduce", 4 * whole / fsdp / tensor)
    network += 2 * seconds("fsdp", "all-gather", itemsize * whole / tensor)
    network += seconds("fsdp", "reduce-scatter", 4 * whole / tensor)
    network += 2 * seconds("tensor", "all-reduce", 2 * carried)
    depth, tokens, wide, _ = blocks[0]
    network += 3 * seconds("context", "all-gather", depth * 2 * tokens * context * wide * itemsize)
    return Estimate(
        mesh=mesh_config,
        memory=memory,
        overlapped=max(compute, network),
        serial=compute + network,
    )
