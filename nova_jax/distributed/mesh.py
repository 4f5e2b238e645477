"""Where arrays live: the device mesh and the one table from logical axes to mesh axes.

Models name the logical axis of every parameter dimension (`nova_jax.models.layers.logical_axes`);
`RULES` says which mesh axes split it. A new strategy is another shape of the mesh or another entry
of the table, never a change to the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nova_jax.errors import NovaError
from nova_jax.models.layers import AxisNames, logical_axes

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis → the mesh axes that split it; () is a copy on every device.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "layers": (),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
}


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1, tensor: int = 1
) -> Mesh:
    """A mesh with axes `MESH_AXES`; data parallel over whatever `fsdp` and `tensor` leave.

    Args:
        devices: what to use, all devices by default.
        fsdp: devices among which parameters are split.
        tensor: devices among which one layer's computation is split.

    Raises:
        NovaError: if the number of devices is not a multiple of `fsdp` x `tensor`.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % (fsdp * tensor):
        raise NovaError(
            f"{len(devices)} devices cannot be split into fsdp {fsdp} x tensor {tensor}; "
            "choose divisors"
        )
    grid = np.asarray(devices).reshape(-1, fsdp, tensor)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def partition_spec(names: AxisNames, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How an array is split whose dimensions have these logical names (None: not split).

    A dimension stays whole where its size is not a multiple of the devices, or where an earlier
    dimension is split over the same ones already.
    """
    taken: set[str] = set()
    spec: list[tuple[str, ...] | str | None] = []
    for name, size in zip(names, shape, strict=True):
        axes = () if name is None else RULES[name]
        if taken.intersection(axes) or size % math.prod(mesh.shape[axis] for axis in axes):
            axes = ()
        taken.update(axes)
        spec.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*spec)


def parameter_shardings(model: nnx.Module, mesh: Mesh) -> dict[str, NamedSharding]:
    """Sharding of every variable of a model, real or abstract, by its dotted path."""
    return {
        ".".join(map(str, path)): NamedSharding(
            mesh, partition_spec(logical_axes(variable), variable.get_value().shape, mesh)
        )
        for path, variable in nnx.to_flat_state(nnx.state(model))
    }


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices that see different samples."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_ways(mesh: Mesh) -> int:
    """Among how many devices samples are shared."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def check_batch_size(name: str, size: int, mesh: Mesh) -> None:
    """Raises a `NovaError` if a batch of `size` samples cannot be split evenly."""
    if size % (ways := batch_ways(mesh)):
        raise NovaError(f"{name} {size} cannot be split over {ways} devices; use a multiple")


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's part of a batch (leading axis: samples) on its devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
        for name, array in batch.items()
    }
