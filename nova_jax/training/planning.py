"""What a run would cost on a machine that is not here: compile, read, estimate, rank.

The real training step, or generation's programs, are compiled ahead of time for a
`nova_jax.distributed.topology.Topology`. Memory is what the compiler laid out; FLOPs, memory
traffic and collectives are read from the compiled program (`nova_jax.distributed.hlo`). Time is a
roofline:

    compute   FLOPs / FLOP/s of matrix products
    memory    bytes read and written / bandwidth
    network   Σ over collectives: bytes a device sends / bandwidth of its group
    step      from max(compute, memory, network), all overlapped, to their sum, nothing overlapped

A device of n sends (n − 1)/n of the bytes of an all-gather, a reduce-scatter or an all-to-all,
twice that of an all-reduce, and all bytes of a permutation. Latencies are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from nova_jax.distributed import hlo
from nova_jax.distributed.mesh import (
    MESH_AXES,
    MeshConfig,
    batch_sharding,
    check_batch_size,
    make_mesh,
    partition_spec,
    replicated,
)
from nova_jax.distributed.topology import Topology
from nova_jax.errors import NovaError
from nova_jax.kernels.device import target
from nova_jax.models.layers import logical_axes
from nova_jax.models.nova import Conditions, Nova
from nova_jax.sampling import flops
from nova_jax.sampling.generate import generate_in_one
from nova_jax.sampling.schedules import schedule_from_dict
from nova_jax.training.config import TrainConfig
from nova_jax.training.optimizer import learning_rate_schedule, make_optimizer
from nova_jax.training.state import abstract_state
from nova_jax.training.step import abstract_batch, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A program on a topology; sizes are bytes of one device.

    Attributes:
        topology, mesh: where it runs.
        dtype: of the computation.
        sizes: what lies in memory from beginning to end, by name.
        temporaries: what the program needs besides: activations, gradients, buffers.
        costs: what a run of it does; None if it does not fit and so was not compiled to the end.
        model_flops: of the model, as `nova_jax.sampling.flops` counts, with nothing recomputed.
        network: seconds of all collectives.
        compile_seconds: how long compilation took.
    """

    topology: Topology
    mesh: Mesh
    dtype: str
    sizes: Mapping[str, int]
    temporaries: int
    costs: hlo.Costs | None
    model_flops: float
    network: float
    compile_seconds: float

    @property
    def peak(self) -> int:
        """The most memory in use."""
        return sum(self.sizes.values()) + self.temporaries

    @property
    def fits(self) -> bool:
        """Whether a device has as much memory."""
        return self.costs is not None and self.peak <= self.topology.machine.memory

    @property
    def seconds(self) -> dict[str, float]:
        """The parts of the roofline."""
        assert self.costs is not None
        machine = self.topology.machine
        return {
            "compute": self.costs.flops / machine.flops.get(self.dtype, math.inf),
            "memory": self.costs.bytes / machine.bandwidth,
            "network": self.network,
        }

    @property
    def overlapped(self) -> float:
        """Seconds of a run in which the slowest part hides the others."""
        return max(self.seconds.values())

    @property
    def serial(self) -> float:
        """Seconds of a run in which nothing is hidden."""
        return sum(self.seconds.values())

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilization of a run that takes so long."""
        return self.model_flops / seconds / self.topology.machine.flops.get(self.dtype, math.inf)


def plan_training(config: TrainConfig, topology: Topology, mesh_config: MeshConfig) -> Plan:
    """Compiles the training step of a run; see `batch_of` for which batch.

    Raises:
        NovaError: the mesh does not fit the topology or the batch.
    """
    model, (size, frames) = config.model, batch_of(config)
    mesh = make_mesh(topology.devices(), mesh_config)
    check_batch_size("data.batch_size", size, mesh, frames)
    optimizer = make_optimizer(config.optimizer, config.steps)
    blueprint, state = abstract_state(
        model,
        optimizer,
        mesh,
        freeze=config.optimizer.freeze,
        lora=config.lora,
        dtype=config.dtype,
        remat=config.remat,
        unroll=config.unroll,
    )
    step = make_train_step(
        blueprint,
        state,
        mesh=mesh,
        schedule=schedule_from_dict(config.schedule),
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(config.optimizer, config.steps),
        ema=config.ema,
        loss_repeat=config.loss_repeat,
        first_frame_loss=config.first_frame_loss,
        seed=config.seed,
    )
    batch = abstract_batch(model, mesh, size=size, frames=frames)
    sizes = {
        "parameters": device_bytes((state.params, state.frozen)),
        "optimizer": device_bytes(state.optimizer),
        "ema": device_bytes(state.ema),
        "batch": device_bytes(batch),
    }
    total = flops.of_training(model, batch=size, frames=frames, loss_repeat=config.loss_repeat)
    if config.lora is not None:
        total *= 2 / 3  # kernels have no gradients
    return compile_for(topology, mesh, step, (state, batch), sizes, config.dtype, total)


def batch_of(config: TrainConfig) -> tuple[int, int]:
    """(samples, frames) of a run's largest batches: its videos, or its pictures if it has none."""
    if config.model.frames > 1 and config.data.video_fraction == 0:
        return config.data.image_batch_size, 1
    return config.data.batch_size, config.clip_frames


def plan_generation(config: TrainConfig, topology: Topology, samples: int) -> Plan:
    """Compiles the generation of `samples` samples as one program, all frames and steps.

    The model is whole on every device, its parameters in the type of the computation; samples are
    shared, as `nova_jax.pipeline` does.

    Raises:
        NovaError: the devices cannot share so many samples.
    """
    model, sampling, dtype = config.model, config.sampling, jnp.dtype(config.dtype)
    frames = batch_of(config)[1]
    mesh = make_mesh(topology.devices())
    check_batch_size("--generate", samples, mesh)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Nova(model, rngs=nnx.Rngs(0), dtype=dtype)))

    def place(tree: Any, sharding: NamedSharding, kind: Any = None) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind or leaf.dtype, sharding=sharding),
            tree,
        )

    params = place(shapes, replicated(mesh), dtype)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), samples))
    keys = place(keys, batch_sharding(mesh))
    given: dict[str, Any] = abstract_batch(model, mesh, size=samples, frames=1)
    unused = {"latents"} if model.is_video else {"latents", "flow", "fps"}
    conditions = Conditions(**{name: v for name, v in given.items() if name not in unused})
    schedule = schedule_from_dict(config.schedule)

    def generate(params: Any, conditions: Conditions, keys: Any) -> Any:
        return generate_in_one(
            nnx.merge(graph, params),
            schedule,
            conditions,
            frames=frames,
            config=sampling,
            keys=keys,
        )

    total = flops.of_generation(
        model,
        batch=samples,
        passes=sampling.guidance.passes,
        frames=frames,
        ar_steps=sampling.num_inference_steps,
        diffusion_steps=sampling.num_diffusion_steps,
        condition_tokens=(model.text_length or 1) + 2 * model.is_video,
    )
    program = jax.jit(generate, out_shardings=batch_sharding(mesh))
    arguments = (params, conditions, keys)
    sizes = {"parameters": device_bytes(params), "conditions": device_bytes(arguments[1:])}
    amount = sum(total.values())
    return compile_for(topology, mesh, program, arguments, sizes, config.dtype, amount)


def compile_for(
    topology: Topology,
    mesh: Mesh,
    function: Any,
    arguments: Sequence[Any],
    sizes: Mapping[str, int],
    dtype: str,
    model_flops: float,
) -> Plan:
    """Compiles a jitted function for a mesh of a topology's devices.

    Args:
        topology, mesh: where it would run.
        function: what.
        arguments: abstract, with shardings.
        sizes: bytes of what is in memory anyway, arguments included.
        dtype: of the computation.
        model_flops: of the whole of one run, all devices.
    """
    began = time.monotonic()
    make = functools.partial(
        Plan,
        topology=topology,
        mesh=mesh,
        dtype=dtype,
        sizes=sizes,
        model_flops=model_flops / mesh.size,
    )
    with target(topology.machine.target), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = function.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needed := _out_of_memory(str(error))) is None:
            raise
        temporaries = max(0, needed - sum(sizes.values()))
        seconds = time.monotonic() - began
        return make(temporaries=temporaries, costs=None, network=0.0, compile_seconds=seconds)
    seconds = time.monotonic() - began
    memory = compiled.memory_analysis()
    costs = hlo.costs(compiled.as_text())
    # Results that do not take the place of arguments are new.
    extra = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return make(
        temporaries=memory.temp_size_in_bytes + extra + memory.generated_code_size_in_bytes,
        costs=costs,
        network=network_seconds(costs, topology, mesh),
        compile_seconds=seconds,
    )


def _out_of_memory(message: str) -> int | None:
    """Bytes that a program would have needed, from XLA's message that there are fewer."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"Used ([\d.]+)([KMGT]?) of|temporaries \(([\d.]+)([KMGT]?)\)", message)
    if found is None:
        return None
    number, unit = [group for group in found.groups() if group is not None]
    return int(float(number) * units[unit])


def network_seconds(costs: hlo.Costs, topology: Topology, mesh: Mesh) -> float:
    """Seconds of a program's collectives, one after the other."""
    devices = mesh.devices.ravel()
    total = 0.0
    for one, times in costs.collectives.items():
        group = [devices[position] for position in one.group]
        if len(group) > 1:
            sent = sent_bytes(one.kind, one.bytes, len(group))
            total += times * sent / topology.bandwidth(group)
    return total


def sent_bytes(kind: str, size: float, devices: int) -> float:
    """Bytes that each of so many devices sends in a collective of `size` bytes, on a ring."""
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) / devices


def device_bytes(tree: Any) -> int:
    """Bytes of abstract arrays on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


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
    mesh: Mesh,
    mesh_config: MeshConfig,
    shapes: Sequence[tuple[Any, tuple[int, ...]]],
) -> Estimate:
    model, machine = config.model, topology.machine
    size, frames = batch_of(config)
    data, fsdp, context, tensor = (mesh.shape[axis] for axis in MESH_AXES)
    itemsize = jnp.dtype(config.dtype).itemsize
    whole = kept = 0
    for names, shape in shapes:
        spec = partition_spec(names, shape, mesh)
        axes = [
            axis for part in spec if part for axis in ((part,) if isinstance(part, str) else part)
        ]
        kept += math.prod(shape) // math.prod(mesh.shape[axis] for axis in axes)
        whole += math.prod(shape)

    # Tokens of a device times width: once for each block they pass.
    samples = size / (data * fsdp)
    rows = samples * frames / context
    width, depth = model.width, model.spatial_decoder_size.depth
    temporal = (model.text_length or 1) + frames * model.indicator_tokens
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
    plain = machine.target.platform != "gpu" or itemsize == 4  # attention that keeps its scores
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
