"""The sampler's kernel for GPUs, compiled for one that is not here and executed on a CPU.

    work of a case  →  its inputs and grid, as `pallas_call` is given them
                    →  the PTX that XLA and Triton make of it, in a process of its own
                    →  every program of the grid in `kernels/ptx/emulator.cpp`, in any order

Run as a script it is the process that compiles: `python emulated.py CASE`.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nova_jax.kernels.device import target
from nova_jax.kernels.diffusion_sampler import gpu, reference
from nova_jax.models import NovaConfig
from nova_jax.models.diffusion_head import DiffusionHead
from nova_jax.plan.topology import Topology
from nova_jax.sampling.schedules import FlowMatchingSchedule

VALUES = 16  # of a token
REST = 40  # vectors of tokens outside the set have so many values


@dataclasses.dataclass(frozen=True)
class Case:
    """What the kernel is asked for.

    Attributes:
        head: size of the diffusion head.
        dtype: of the computation.
        device: that it is compiled for, as `nova_jax.plan.topology` names it.
        batch, tokens, steps: B, tokens of a set with padding, S.
        guidance: passes, lower bound of renormalization, guidance by the frame before.
        noise: whether steps add noise.
        processors: multiprocessors that it may use; None for all of the device's.
    """

    head: str = "mlp_d2w128"
    dtype: str = "float32"
    device: str = "a100-80g"
    batch: int = 2
    tokens: int = 16
    steps: int = 3
    guidance: tuple[int, float, float | None] = (2, 1.0, None)
    noise: bool = False
    processors: int | None = None

    @functools.cached_property
    def topology(self) -> Topology:
        """The device, described."""
        return Topology.parse(f"{self.device}:1")

    @property
    def limits(self) -> dict[str, int]:
        """What the kernel may use of the device."""
        machine = self.topology.machine
        processors = self.processors or machine.processors
        return {"processors": processors, "shared": machine.on_chip}

    @functools.cached_property
    def valid(self) -> np.ndarray:
        """Which tokens are no padding."""
        return (np.arange(self.tokens) < self.tokens - 3).astype(np.float32)


def make_head(case: Case) -> DiffusionHead:
    """A head of the case, whose other stages do not matter."""
    config = NovaConfig(
        latent_size=(60, 96),
        temporal_encoder="vit_d1w64",
        spatial_decoder="vit_d2w64",
        diffusion_head=case.head,
        text_dim=32,
        text_length=8,
    )
    return DiffusionHead(config, dtype=case.dtype, rngs=nnx.Rngs(0), remat="none", unroll=1)


def arrays(case: Case) -> tuple[Any, dict[str, np.ndarray]]:
    """The head without its parameters, and random parameters and inputs."""
    head = nnx.eval_shape(lambda: make_head(case))
    graph, state = nnx.split(head)
    draw = np.random.default_rng(0)

    def parameter(leaf: Any) -> np.ndarray:
        scale = 0.5 / np.sqrt(leaf.shape[-2]) if leaf.ndim > 1 else 0.1
        return (scale * draw.standard_normal(leaf.shape)).astype(case.dtype)

    state = jax.tree.map(parameter, state)
    passes, rows = case.guidance[0], (case.batch, case.tokens)
    features = draw.standard_normal((passes * rows[0], rows[1], head.width))
    vectors = draw.standard_normal((case.batch, 1 + case.steps * case.noise, REST))
    inputs = {
        "state": state,
        "features": features.astype(case.dtype),
        "x": draw.standard_normal((*rows, VALUES)).astype(np.float32),
        "gram": np.einsum("bvk,bwk->bvw", vectors, vectors).astype(np.float32),
    }
    if case.noise:
        inputs["noise"] = draw.standard_normal((case.steps, *rows, VALUES)).astype(np.float32)
    return graph, inputs


def work_of(case: Case, graph: Any, inputs: dict[str, Any]) -> reference.Work:
    """What any implementation of the loop takes."""
    head = nnx.merge(graph, inputs["state"])
    steps = FlowMatchingSchedule().sampling_steps(case.steps)
    if case.noise:  # flow matching adds none; here it does, so that all of the kernel runs
        scale = np.linspace(0.5, 0.1, case.steps).astype(np.float32)
        steps = dataclasses.replace(steps, noise_scale=scale)
    guidance, outside = reference.Guidance(*case.guidance), None
    if guidance.renormalized:
        weights = jnp.zeros(inputs["gram"].shape[:2]).at[:, 0].set(1.0)
        outside = reference.Outside(weights, inputs["gram"])
    return reference.Work(
        head.weights(),
        head.modulations(inputs["features"], jnp.asarray(steps.time)),
        (inputs["x"], outside),
        steps,
        guidance,
        5.0,
        jnp.asarray(case.valid),
        noise=inputs.get("noise"),
    )


def compile_case(case: Case) -> None:
    """Compiles the kernel for the case's device; XLA is told where its PTX goes."""
    graph, inputs = arrays(case)
    mesh = Mesh(np.array(case.topology.devices()[:1]), ("d",))

    def run(inputs: dict[str, Any]) -> Any:
        return gpu.sample(work_of(case, graph, inputs), **case.limits)[0]

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    # Triton's lowering asks for the kind of device.
    kind = case.topology.machine.target
    with target(kind), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jax.jit(run).lower(jax.tree.map(abstract, inputs)).compile()


def ptx_of(case: Case, folder: Path) -> str:
    """The PTX of the case's kernel."""
    settings = {
        "XLA_FLAGS": f"--xla_dump_to={folder}/dump --xla_dump_emitter_re=.*",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    described = json.dumps(dataclasses.asdict(case))
    # With these flags nothing may be compiled for the CPU: a process of its own.
    done = subprocess.run(
        [sys.executable, __file__, described],
        capture_output=True,
        text=True,
        env=os.environ | settings,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    name = ".visible .entry diffusion_sampler"
    (text,) = (t for f in (folder / "dump").glob("*.ptx") if name in (t := f.read_text()))
    kernel = text[text.index(name) :]
    following = kernel.find(".visible .entry", len(name))
    return kernel if following < 0 else kernel[:following]


def launch_of(case: Case, folder: Path, monkeypatch: Any) -> tuple[np.ndarray, Path]:
    """What the reference makes of the case, and the launch of the kernel as files."""
    graph, inputs = arrays(case)
    inputs = jax.tree.map(jnp.asarray, inputs)
    wanted = np.asarray(reference.sample(work_of(case, graph, inputs))[0], np.float32)
    given: dict[str, Any] = {}

    def captured(kernel: Any, *, grid: Any, out_shape: Any, **_: Any) -> Any:
        def call(*operands: Any) -> list[Any]:
            given.update(operands=list(map(np.asarray, operands)), grid=grid, out=out_shape)
            return [jnp.zeros(shape.shape, shape.dtype) for shape in out_shape]

        return call

    with monkeypatch.context() as patch:
        patch.setattr(gpu.pl, "pallas_call", captured)
        gpu.sample(work_of(case, graph, inputs), **case.limits)
    lines = [f"grid {int(np.prod(given['grid']))}", f"shared {case.limits['shared']}"]
    for index, operand in enumerate(given["operands"]):
        file = folder / f"in{index}"
        np.ascontiguousarray(operand).tofile(file)
        lines.append(f"{file} {operand.nbytes} in")
    lines.append(f"same {len(given['operands']) - 1}")  # the counter is updated in place
    for index, shape in enumerate(given["out"][1:], 1):
        size = int(np.prod(shape.shape)) * jnp.dtype(shape.dtype).itemsize
        lines.append(f"{folder}/out{index} {size} out")
    (folder / "launch").write_text("\n".join(lines))
    return wanted, folder / "launch"


def execute(
    emulator: Path, ptx: str, launch: Path, case: Case, seed: int
) -> tuple[np.ndarray | None, str]:
    """The kernel's result, or None; and what the emulator says."""
    kernel = launch.parent / "kernel.ptx"
    kernel.write_text(ptx)
    command = [str(emulator), str(kernel), str(launch), str(seed), "weak"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr
    made = np.fromfile(launch.parent / "out1.out", np.float32)
    return made.reshape(case.batch, case.tokens, -1)[..., :VALUES], done.stdout


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    fields["guidance"] = tuple(fields["guidance"])
    compile_case(Case(**fields))
