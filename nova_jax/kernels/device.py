"""What programs run on, as far as kernels care: this machine, or one compiled ahead for."""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        platform: "cpu", "gpu" or "tpu"; "any" for programs that must run on all of them.
        compute_capability: of an NVIDIA GPU, such as 9.0; 0 for anything else.
    """

    platform: str
    compute_capability: float = 0.0


ANY = Target("any")
#: What programs are traced for: ``with target(Target("tpu")):``; None for this process's devices.
target = jax.make_user_context(default_value=None)


def platform() -> str:
    """ "cpu", "gpu", "tpu" or "any"; see `Target`."""
    return jax.default_backend() if target.value is None else target.value.platform


def compute_capability() -> float:
    """Of the NVIDIA GPU, such as 9.0; 0 without one."""
    if target.value is not None:
        return target.value.compute_capability
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    try:
        return float(capability or 0)
    except ValueError:  # GPUs of other makers have names there
        return 0.0
