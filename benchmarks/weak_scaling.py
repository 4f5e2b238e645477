"""Weak scaling by the plan's model: the batch grows with the devices, how does the step?

    python benchmarks/weak_scaling.py --config=configs/t2v_480p_0p6b.py:pretrain,synthetic \
        --topologies=v5e:2x4,v5e:4x4,v5e:8x8,v5e:16x16 --samples=2 --fsdp=8

Estimates from sizes, see docs/plans.md; with --compile the training step is compiled for each
topology. Efficiency is the first topology's step over this one's, if everything overlaps and if
nothing does. Nothing is run.
"""

import dataclasses

import jax
from absl import app, flags

from nova_jax import cli
from nova_jax.distributed.mesh import MeshConfig
from nova_jax.plan.compile import plan_training
from nova_jax.plan.estimate import estimates
from nova_jax.plan.topology import Topology
from nova_jax.training.config import TrainConfig

CONFIG = cli.define_config("Recipe.")
TOPOLOGIES = flags.DEFINE_list("topologies", None, "From few devices to many.", required=True)
SAMPLES = flags.DEFINE_integer("samples", 2, "Of a device.")
FSDP = flags.DEFINE_integer("fsdp", 8, "Devices that split the parameters; the rest splits data.")
COMPILE = flags.DEFINE_bool("compile", False, "Compile, rather than estimate.")


def main(_: list[str]) -> None:
    """Prints a line a topology."""
    jax.config.update("jax_platforms", "cpu")
    config = TrainConfig.from_dict(CONFIG.value.to_dict())
    print("| topology | batch | mesh | step, s | efficiency |\n|---|---:|---|---:|---:|")
    first = None
    for topology in map(Topology.parse, TOPOLOGIES.value):
        batch = SAMPLES.value * topology.size
        data = dataclasses.replace(config.data, batch_size=batch)
        scaled = dataclasses.replace(config, data=data)
        mesh = MeshConfig(data=topology.size // FSDP.value, fsdp=FSDP.value)
        if COMPILE.value:
            found = plan_training(scaled, topology, mesh)
        else:
            found = next(guess for guess in estimates(scaled, topology) if guess.mesh == mesh)
        step = found.overlapped, found.serial
        first = first or step
        share = [100 * a / b for a, b in zip(first, step, strict=True)]
        print(
            f"| {topology} | {batch} | data {mesh.data}, fsdp {mesh.fsdp} | {step[0]:.3f} to "
            f"{step[1]:.3f} | {share[0]:.0f} % and {share[1]:.0f} % |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
