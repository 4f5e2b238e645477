"""What a run would cost on a machine that is not here, by compiling it.

The real training step, or generation's programs, are compiled ahead of time for a
`nova_jax.plan.topology.Topology`. Memory is what the compiler laid out; FLOPs, memory traffic and
collectives are read from the compiled program (`nova_jax.plan.costs`). Time is a roofline:

    compute   FLOPs / FLOP/s of matrix products
    memory    bytes read and written / bandwidth
    network   Σ over collectives: bytes a device sends / bandwidth of its group
    step      from max(compute, memory, network), all overlapped, to their sum, nothing overlapped

Latencies are left out. `nova_jax.plan.estimate` guesses the same without compiling.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from nova_jax.data.batch import abstract_batch
from nova_jax.distributed.memory import device_bytes
from nova_jax.distributed.mesh import (
    MeshConfig,
    MeshLayout,
    SampleParallelism,
    batch_sharding,
    check_batch_size,
    make_mesh,
    replicated,
)
from nova_jax.kernels.device import target
from nova_jax.models import flops
from nova_jax.models.nova import Conditions, Nova
from nova_jax.plan.costs import Costs, read_costs
from nova_jax.plan.estimate import batch_of
from nova_jax.plan.topology import Topology
from nova_jax.sampling.keys import seed_key
from nova_jax.sampling.schedules import schedule_from_dict
from nova_jax.sampling.video import generate_in_one
from nova_jax.training.config import TrainConfig
from nova_jax.training.programs import make_programs
from nova_jax.training.state import TrainState
from nova_jax.training.step import TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A program on a topology; sizes are bytes of one device.

    Attributes:
        topology, mesh: where it runs.
        dtype: of the computation.
        sizes: what lies in memory from beginning to end, by name.
        temporaries: what the program needs besides: activations, gradients, buffers.
        costs: what a run of it does; None if it does not fit and so was not compiled to the end.
        model_flops: of the model, as `nova_jax.models.flops` counts, with nothing recomputed.
        network: seconds of all collectives.
        compile_seconds: how long compilation took.
    """

    topology: Topology
    mesh: Mesh
    dtype: str
    sizes: Mapping[str, int]
    temporaries: int
    costs: Costs | None
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
    size, frames = batch_of(config)
    mesh = make_mesh(topology.devices(), mesh_config)
    check_batch_size("data.batch_size", size, mesh, frames)
    step, state, batch = abstract_training(config, mesh)
    sizes = {
        "parameters": device_bytes((state.params, state.frozen)),
        "optimizer": device_bytes(state.optimizer),
        "ema": device_bytes(state.ema),
        "batch": device_bytes(batch),
    }
    total = flops.of_training(
        config.model, batch=size, frames=frames, loss_repeat=config.loss_repeat
    )
    if config.lora is not None:
        total *= 2 / 3  # kernels have no gradients
    return compile_for(topology, mesh.mesh, step, (state, batch), sizes, config.dtype, total)


def abstract_training(
    config: TrainConfig, mesh: MeshLayout
) -> tuple[TrainStep, TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """The training step of a run, and what it takes without its values: the state and a batch."""
    programs = make_programs(config, mesh)
    size, frames = batch_of(config)
    batch = abstract_batch(
        config.model,
        size=size,
        frames=frames,
        text_dtype=config.dataset.text_dtype,
        sharding=batch_sharding(mesh),
    )
    return programs.step, programs.state, batch


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

    params = jax.tree.map(lambda leaf: leaf.update(dtype=dtype, sharding=replicated(mesh)), shapes)
    keys = jax.eval_shape(lambda: jax.vmap(seed_key)(jnp.arange(samples)))
    keys = keys.update(sharding=batch_sharding(mesh))
    given: dict[str, Any] = abstract_batch(
        model, size=samples, frames=1, sharding=batch_sharding(mesh)
    )
    unused = {"latents"} if model.is_video else {"latents", "flow", "fps"}
    conditions = Conditions(**{name: v for name, v in given.items() if name not in unused})
    schedule = schedule_from_dict(config.schedule)

    def generate(params: Any, conditions: Conditions, keys: Any) -> Any:
        options = {"frames": frames, "config": sampling, "keys": keys}
        return generate_in_one(nnx.merge(graph, params), schedule, conditions, **options)

    total = flops.of_generation(
        model,
        batch=samples,
        passes=sampling.guidance.passes,
        slots=sampling.slots(frames),
        sets=sampling.sets(model.num_tokens, frames),
        diffusion_steps=sampling.num_diffusion_steps,
        condition_tokens=model.condition_tokens,
        feature_cache=sampling.feature_cache,
    )
    program = jax.jit(SampleParallelism(mesh, whole=True)(generate, (None, 0, 0), 0))
    arguments = (params, conditions, keys)
    sizes = {"parameters": device_bytes(params), "conditions": device_bytes(arguments[1:])}
    amount = sum(total.values())
    return compile_for(topology, mesh.mesh, program, arguments, sizes, config.dtype, amount)


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

    Unless these are CPUs, JAX keeps nothing in its cache of programs: what is compiled for devices
    that are not here can be written there, and not be read.

    Args:
        topology, mesh, sizes, dtype: of the `Plan`.
        function, arguments: what is compiled; arguments are abstract, with shardings.
        model_flops: of the whole of one run, all devices.
    """
    make = functools.partial(
        Plan,
        topology=topology,
        mesh=mesh,
        dtype=dtype,
        sizes=sizes,
        model_flops=model_flops / mesh.size,
    )
    machine, began = topology.machine, time.monotonic()
    with target(machine.target), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = function.lower(*arguments)
    here = machine.target.platform == "cpu"
    try:
        with contextlib.nullcontext() if here else _no_program_cache():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needed := _out_of_memory(str(error))) is None:
            raise
        temporaries = max(0, needed - sum(sizes.values()))
        seconds = time.monotonic() - began
        return make(temporaries=temporaries, costs=None, network=0.0, compile_seconds=seconds)
    seconds = time.monotonic() - began
    memory, costs = compiled.memory_analysis(), read_costs(compiled.as_text())
    # Results that do not take the place of arguments are new.
    extra = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return make(
        temporaries=memory.temp_size_in_bytes + extra + memory.generated_code_size_in_bytes,
        costs=costs,
        network=network_seconds(costs, topology, mesh),
        compile_seconds=seconds,
    )


@contextlib.contextmanager
def _no_program_cache() -> Iterator[None]:
    """Has JAX neither read nor write its cache of compiled programs, which it asks for once."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


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


def network_seconds(costs: Costs, topology: Topology, mesh: Mesh) -> float:
    """Seconds of a program's collectives, one after the other."""
    devices = mesh.devices.ravel()
    return sum(
        times * topology.seconds(one.kind, one.bytes, [devices[i] for i in one.group])
        for one, times in costs.collectives.items()
    )
