"""Where arrays live: the device mesh and the one table from logical axes to mesh axes.

Models name the logical axis of every dimension of a parameter (`nova_jax.models.layers`) and of
what flows between their blocks (`nova_jax.models.layout`); `RULES` says which mesh axes split it.
A new strategy is another shape of the mesh or another entry of the table, never a change to the
model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nova_jax.errors import NovaError
from nova_jax.models import layout
from nova_jax.models.layers import logical_axes
from nova_jax.models.layout import AxisNames

# From what talks least, which may lie across slices and nodes, to what talks most.
MESH_AXES = ("data", "fsdp", "context", "tensor")

# Logical axis → the mesh axes that split it; () is a copy on every device.
RULES: Mapping[str, tuple[str, ...]] = {
    # Parameters.
    "layers": (),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    # Activations: samples, the temporal encoder's tokens, the spatial stage's frames.
    "batch": ("data", "fsdp"),
    "sequence": ("context",),
    "frames": ("data", "fsdp", "context"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Among how many devices each kind of work is split.

    Attributes:
        data: samples; None for all devices that the others leave.
        fsdp: samples, and the parameters and all that follows them.
        context: the tokens of the temporal encoder, the frames of the spatial stage.
        tensor: attention heads and hidden units of every layer.
    """

    data: int | None = None
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and value < 1:
                raise NovaError(f"mesh.{name} is {value}; it must be at least 1")

    @classmethod
    def parse(cls, text: str) -> MeshConfig:
        """Reads "data:2,fsdp:8", as commands take it.

        Raises:
            NovaError: it says something else.
        """
        sizes: dict[str, int] = {}
        for part in text.split(","):
            axis, _, number = part.strip().partition(":")
            if axis not in MESH_AXES or not number.isdecimal() or axis in sizes:
                raise NovaError(
                    f"mesh {text!r}: {part!r} is not understood; write {', '.join(MESH_AXES)} once "
                    "each at most, like data:2,fsdp:8"
                )
            sizes[axis] = int(number)
        return cls(**sizes)

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """Sizes of `MESH_AXES` on this many devices.

        Raises:
            NovaError: they do not divide the devices, or do not make use of all.
        """
        inner = self.fsdp * self.context * self.tensor
        data = devices // inner if self.data is None else self.data
        if data * inner != devices:
            asked = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(self).items() if v)
            raise NovaError(
                f"a mesh of {asked} does not fit {devices} devices; the product must be {devices}"
            )
        return data, self.fsdp, self.context, self.tensor


def make_mesh(
    devices: Sequence[jax.Device] | None = None, config: MeshConfig | None = None
) -> Mesh:
    """A mesh with axes `MESH_AXES`.

    Devices that a fast network joins (a TPU slice, a GPU node) lie next to each other: only `data`
    and then `fsdp` reach across.

    Args:
        devices: what to use, all devices by default.
        config: its shape; data parallel by default.

    Raises:
        NovaError: the shape does not fit the devices, or would have to reach across slices or nodes
            with another axis.
    """
    devices = jax.devices() if devices is None else devices
    shape = (config or MeshConfig()).shape(len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        data, fsdp, context, tensor = shape
        outer = math.gcd(data, slices)
        inner = slices // outer
        if fsdp % inner:
            raise NovaError(
                f"a mesh of data {data} and fsdp {fsdp} cannot be laid over {slices} slices or "
                "nodes; make one of them a multiple"
            )
        grid = mesh_utils.create_hybrid_device_mesh(
            (data // outer, fsdp // inner, context, tensor),
            (outer, inner, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def partition_spec(names: AxisNames, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How an array is split whose dimensions have these logical names (None: not split).

    Of a dimension's mesh axes the last are left out until its size is a multiple of the devices;
    one that an earlier dimension is split over is left out too.
    """
    taken: set[str] = set()
    spec: list[tuple[str, ...] | str | None] = []
    for name, size in zip(names, shape, strict=True):
        axes = () if name is None else RULES[name]
        axes = tuple(axis for axis in axes if axis not in taken)
        while size % math.prod(mesh.shape[axis] for axis in axes):
            axes = axes[:-1]
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


@dataclasses.dataclass(frozen=True)
class MeshLayout:
    """`nova_jax.models.layout.Layout` on a mesh, by `RULES`."""

    mesh: Mesh

    def ways(self, name: str) -> int:
        """Among how many devices a logical axis is split."""
        return math.prod(self.mesh.shape[axis] for axis in RULES[name])

    def constrain(self, x: jax.Array, names: AxisNames) -> jax.Array:
        """Has `x` lie as the table says."""
        if self.mesh.size == 1:
            return x
        spec = partition_spec(names, x.shape, self.mesh)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def split(
        self, function: Callable[..., jax.Array], names: Sequence[AxisNames], like: int
    ) -> Callable[..., jax.Array]:
        """`function` on each device's part; see `nova_jax.models.layout.split`."""
        if self.mesh.size == 1:
            return function

        def call(*arrays: jax.Array) -> jax.Array:
            pairs = zip(names, arrays, strict=True)
            specs = tuple(partition_spec(name, array.shape, self.mesh) for name, array in pairs)
            return jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=specs[like], check_vma=False
            )(*arrays)

        return call


def on_mesh(mesh: Mesh) -> AbstractContextManager[None]:
    """A context in which models are traced for this mesh."""
    return layout.use(MeshLayout(mesh))


@dataclasses.dataclass(frozen=True)
class SampleParallelism:
    """How a mesh shares generation, see `nova_jax.sampling.frames.Parallelism`.

    Attributes:
        mesh: its devices.
        whole: each draws samples of its own with a whole model, and nothing passes between them;
            else arrays lie as in training, and there may be fewer samples than devices.
    """

    mesh: Mesh
    whole: bool

    def __call__(self, function: Callable[..., Any], in_axes: Any, out_axes: Any) -> Any:
        """See `nova_jax.sampling.frames.Parallelism`."""
        if not self.whole:

            def laid_out(*arrays: Any) -> Any:
                with on_mesh(self.mesh):
                    return function(*arrays)

            return laid_out

        def spec(axis: int | None) -> PartitionSpec:
            return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, MESH_AXES)

        specs = [
            jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)
            for axes in (in_axes, out_axes)
        ]
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices that see different samples."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_ways(mesh: Mesh) -> int:
    """Among how many devices samples are shared."""
    return MeshLayout(mesh).ways("batch")


def check_batch_size(name: str, size: int, mesh: Mesh, frames: int = 1) -> None:
    """Raises a `NovaError` if a batch of `size` samples of `frames` frames cannot be split evenly.

    Pictures go without context parallelism where they do not suffice for it.
    """
    if size % (ways := batch_ways(mesh)):
        raise NovaError(f"{name} {size} cannot be split over {ways} devices; use a multiple")
    rows, context = size // ways * frames, mesh.shape["context"]
    if frames > 1 and rows % context:
        raise NovaError(
            f"{name} {size} over {ways} devices leaves {rows} frames, which mesh.context {context} "
            "does not divide; change one of them"
        )


def process_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of how many parts of a batch this process loads.

    Processes whose devices hold the same samples, as with `tensor` or `context` across processes,
    load the same part.

    Raises:
        NovaError: the processes' samples overlap in part.
    """
    parts: dict[int, set[int]] = {}
    where: Any = batch_sharding(mesh).devices_indices_map((batch_ways(mesh),))
    for device, index in where.items():
        parts.setdefault(device.process_index, set()).add(index[0].start or 0)
    distinct = sorted({tuple(sorted(part)) for part in parts.values()})
    if sum(map(len, distinct)) != batch_ways(mesh) or len({len(part) for part in distinct}) > 1:
        raise NovaError(
            f"a mesh of {dict(mesh.shape)} gives the {len(parts)} processes parts of a batch that "
            "overlap or differ in size; make fsdp, context and tensor divide the devices of a "
            "process, or be multiples of them"
        )
    return distinct.index(tuple(sorted(parts[jax.process_index()]))), len(distinct)


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's part of a batch (leading axis: samples) on its devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
        for name, array in batch.items()
    }
