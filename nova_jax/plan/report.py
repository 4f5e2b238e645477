"""A plan as lines of text."""

from __future__ import annotations

import math

from nova_jax.distributed.memory import size_text
from nova_jax.plan.compile import Plan


def report(plan: Plan) -> list[str]:
    """Lines that say all of a training plan."""
    machine = plan.topology.machine
    lines = [f"mesh: {mesh_text(plan)}", "each device:"]
    lines += [f"  {name:14} {size_text(size):>10}" for name, size in plan.sizes.items()]
    lines += [f"  {'temporaries':14} {size_text(plan.temporaries):>10}  activations, gradients"]
    room = "" if math.isinf(machine.memory) else f" of {size_text(machine.memory)}"
    verdict = "" if plan.fits else "; DOES NOT FIT"
    lines += [f"  {'peak':14} {size_text(plan.peak):>10}{room}{verdict}"]
    if plan.costs is None:
        return lines
    extra = plan.costs.flops / plan.model_flops
    lines += [
        f"  {'FLOPs':14} {plan.costs.flops / 1e12:7.2f} T   {extra:.2f} x the model's",
        f"  {'memory traffic':14} {size_text(plan.costs.bytes):>10}",
    ]
    for kind, (count, size) in sorted(plan.costs.by_kind().items()):
        lines += [f"  {kind:14} {size_text(size):>10}  in {count:.0f}"]
    if not machine.flops:
        return lines
    parts = ", ".join(f"{name} {value:.3g} s" for name, value in plan.seconds.items())
    least, most = (100 * plan.mfu(seconds) for seconds in (plan.serial, plan.overlapped))
    duration = time_text(plan.overlapped, plan.serial)
    lines += [f"roofline: {parts}", f"time: {duration}, MFU {least:.0f} to {most:.0f} %"]
    return lines


def mesh_text(plan: Plan) -> str:
    """A plan's mesh."""
    return ", ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())


def time_text(least: float, most: float) -> str:
    """A range of seconds."""
    return f"{least:.3g} to {most:.3g} s"
