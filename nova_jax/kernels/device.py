"""What this process runs on, as far as kernels care."""

import jax


def compute_capability() -> float:
    """Of this machine's NVIDIA GPU, such as 9.0; 0 without one."""
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    try:
        return float(capability or 0)
    except ValueError:  # GPUs of other makers have names there
        return 0.0
