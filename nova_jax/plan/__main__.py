"""Says what a run would cost: ``python -m nova_jax.plan --config=FILE --topology=v5e:16x16``.

The training step is compiled for machines that need not be here, and nothing is run. Without
--mesh, the meshes are ranked by an estimate, and the best few are compiled. --generate=N plans the
generation of N samples at once. docs/plans.md says how to read what is printed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from typing import Annotated

import jax
from absl import flags

from nova_jax import cli
from nova_jax.config import Natural, Range
from nova_jax.distributed.memory import size_text
from nova_jax.distributed.mesh import MESH_AXES, MeshConfig
from nova_jax.errors import NovaError
from nova_jax.plan.compile import plan_generation, plan_training
from nova_jax.plan.estimate import MOST_SAMPLES, batch_of, estimates
from nova_jax.plan.report import mesh_text, report, time_text
from nova_jax.plan.topology import Topology
from nova_jax.training.config import TrainConfig

CONFIG = cli.define_config("Recipe, such as digits_t2v; --config.key=value changes it.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Machine: v5e:16x16, h100:8, h100:4x8, cpu:8, …")
MESH = flags.DEFINE_string("mesh", None, "Mesh, such as data:2,fsdp:8; without it, the best few.")
TRIES = cli.define("tries", Natural, 3, "Without --mesh: meshes to compile.")
GENERATE = cli.define(
    "generate", Annotated[int, Range(1, MOST_SAMPLES)], None, "Plan generation of so many samples."
)


def main() -> None:
    """Runs the command."""
    if CONFIG.value is None:
        raise NovaError("--config is missing; give a recipe, such as digits_t2v")
    if not TOPOLOGY.value:
        raise NovaError("--topology is missing; give a machine, such as v5e:16x16 or h100:8")
    jax.config.update("jax_platforms", "cpu")  # what is planned for is only compiled for
    topology = Topology.parse(TOPOLOGY.value)
    config = TrainConfig.from_dict(CONFIG.value.to_dict())
    size, frames = batch_of(config)
    print(
        f"{topology}: {topology.size} x {topology.machine.name}, {versions(topology)}", flush=True
    )
    if GENERATE.value is not None:
        report_generation(config, topology, GENERATE.value)
        return
    kind = f"{size} videos of {frames} latent frames" if frames > 1 else f"{size} pictures"
    print(f"training step: {kind}, {config.dtype}, remat {config.remat}")
    if MESH.value is None:
        rank(config, topology)
        return
    mesh = dataclasses.replace(MeshConfig.parse(MESH.value), rules=config.mesh.rules)
    print("compiling the training step, which takes minutes", file=sys.stderr)
    print(*report(plan_training(config, topology, mesh)), sep="\n")


def rank(config: TrainConfig, topology: Topology) -> None:
    """Prints the meshes that fit, best first, and all of the best one."""
    print(f"estimating every mesh of {topology.size} devices", file=sys.stderr)
    guesses = estimates(config, topology)
    print(
        f"{len(guesses)} meshes are possible; compiling the best {TRIES.value} by estimate",
        flush=True,
    )
    plans = []
    for guess in guesses[: TRIES.value]:
        plan = plan_training(config, topology, guess.mesh)
        plans.append(plan)
        print(f"  compiled {mesh_text(plan)} in {plan.compile_seconds:.0f} s", flush=True)
    plans.sort(
        key=lambda plan: (not plan.fits, *((plan.overlapped, plan.serial) if plan.costs else ()))
    )
    print("\nmesh                                     memory      step")
    for plan in plans:
        seconds = time_text(plan.overlapped, plan.serial) if plan.costs else "-"
        note = "compiled" if plan.fits else "compiled: does not fit"
        print(f"{mesh_text(plan):38} {size_text(plan.peak):>8}  {seconds:20} {note}")
    for guess in guesses[TRIES.value : TRIES.value + 12]:
        room = "" if guess.memory <= topology.machine.memory else ": may not fit"
        axes = ", ".join(f"{axis} {getattr(guess.mesh, axis)}" for axis in MESH_AXES)
        seconds = time_text(guess.overlapped, guess.serial)
        print(f"{axes:38} {size_text(guess.memory):>8}  {seconds:20} estimated{room}")
    if plans:
        print("", *report(plans[0]), sep="\n")


def report_generation(config: TrainConfig, topology: Topology, samples: int) -> None:
    """Prints what generation takes."""
    sampling = config.sampling
    print(
        f"generation: {samples} samples of {batch_of(config)[1]} latent frames, {config.dtype}, "
        f"{sampling.num_inference_steps} x {sampling.num_diffusion_steps} steps"
    )
    print("compiling the generation, which takes minutes", file=sys.stderr)
    print(*report(plan_generation(config, topology, samples)), sep="\n")


def versions(topology: Topology) -> str:
    """What compiles."""
    packages = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-plugin",)}
    names = packages.get(topology.machine.target.platform, ())
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join([f"JAX {jax.__version__}", *found])


if __name__ == "__main__":
    cli.run(main)
