"""Where arrays live: the device mesh and the one table from logical axes to mesh axes.

Models name the logical axis of every dimension of a parameter (`nova_jax.models.layers`) and of
what flows between their blocks (`nova_jax.models.layout`); `RULES`, or rows of a recipe in its
place, say which mesh axes split it. A new strategy is another shape of the mesh or another row of
the table, never a change to the model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nova_jax.config import Checked, Count, from_dict
from nova_jax.errors import NovaError
from nova_jax.models import layout
from nova_jax.models.layers import logical_axes
from nova_jax.models.layout import AxisNames

# From what talks least, which may lie across slices and nodes, to what talks most.
MESH_AXES = ("data", "fsdp", "context", "tensor")

#: Logical axis → the mesh axes that split it; () is a copy on every device.
Rules = Mapping[str, tuple[str, ...]]

RULES: Rules = {
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
class MeshConfig(Checked):
    """Among how many devices each kind of work is split.

    Attributes:
        data: samples; None for all devices that the others leave.
        fsdp: samples, and the parameters and all that follows them.
        context: the tokens of the temporal encoder, the frames of the spatial stage.
        tensor: attention heads and hidden units of every layer.
        rules: rows in place of those of `RULES`; all others stay.
    """

    data: Count | None = None
    fsdp: Count = 1
    context: Count = 1
    tensor: Count = 1
    rules: Rules = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, axes in self.rules.items():
            if name not in RULES:
                raise NovaError(
                    f"mesh.rules.{name}: arrays have no such axis; known are {', '.join(RULES)}"
                )
            if len({*axes} & {*MESH_AXES}) < len(axes):
                raise NovaError(
                    f"mesh.rules.{name} is {axes}; name axes of the mesh, each once at most: "
                    f"{', '.join(MESH_AXES)}"
                )

    @classmethod
    def parse(cls, text: str) -> MeshConfig:
        """Reads "data:2,fsdp:8", as commands take it.

        Raises:
            NovaError: it says something else.
        """
        sizes: dict[str, Any] = {}
        for part in text.split(","):
            axis, _, number = part.strip().partition(":")
            if axis not in MESH_AXES or not number.isdecimal() or axis in sizes:
                raise NovaError(
                    f"mesh {text!r}: {part!r} is not understood; write {', '.join(MESH_AXES)} once "
                    "each at most, like data:2,fsdp:8"
                )
            sizes[axis] = int(number)
        return from_dict(cls, sizes, "mesh")

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """Sizes of `MESH_AXES` on this many devices.

        Raises:
            NovaError: they do not divide the devices, or do not make use of all.
        """
        inner = self.fsdp * self.context * self.tensor
        data = devices // inner if self.data is None else self.data
        if data * inner != devices:
            sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
            asked = ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size)
            raise NovaError(
                f"a mesh of {asked} does not fit {devices} devices; the product must be {devices}"
            )
        return data, self.fsdp, self.context, self.tensor


def make_mesh(
    devices: Sequence[jax.Device] | None = None, config: MeshConfig | None = None
) -> MeshLayout:
    """A mesh with axes `MESH_AXES`, and the rules by which arrays lie on it.

    Devices that a fast network joins (a TPU slice, a GPU node) lie next to each other: only `data`
    and then `fsdp` reach across.

    Args:
        devices: what to use, all devices by default.
        config: its shape and rules; data parallel by default.

    Raises:
        NovaError: the shape does not fit the devices, or would have to reach across slices or nodes
            with another axis.
    """
    devices = jax.devices() if devices is None else devices
    config = config or MeshConfig()
    shape = config.shape(len(devices))
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
    mesh = Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    return MeshLayout(mesh, {**RULES, **config.rules})


@dataclasses.dataclass(frozen=True)
class MeshLayout:
    """A mesh and the rules by which arrays lie on it; a `nova_jax.models.layout.Layout`.

    Attributes:
        mesh: its devices, with axes `MESH_AXES`.
        rules: a row for each logical axis, see `RULES`.
    """

    mesh: Mesh
    rules: Rules = dataclasses.field(hash=False)

    @property
    def devices(self) -> np.ndarray:
        """The devices, an axis for each of the mesh."""
        return self.mesh.devices

    @property
    def shape(self) -> Mapping[str, int]:
        """Devices along each axis of the mesh."""
        return self.mesh.shape

    @property
    def size(self) -> int:
        """How many devices there are."""
        return self.mesh.size

    def ways(self, name: str) -> int:
        """Among how many devices a logical axis is split."""
        return math.prod(self.shape[axis] for axis in self.rules[name])

    def partition_spec(self, names: AxisNames, shape: Sequence[int]) -> PartitionSpec:
        """How an array is split whose dimensions have these logical names (None: not split).

        Of a dimension's mesh axes the last are left out until its size is a multiple of the
        devices; one that an earlier dimension is split over is left out too.
        """
        taken: set[str] = set()
        spec: list[tuple[str, ...] | str | None] = []
        for name, size in zip(names, shape, strict=True):
            axes = () if name is None else self.rules[name]
            axes = tuple(axis for axis in axes if axis not in taken)
            while size % math.prod(self.shape[axis] for axis in axes):
                axes = axes[:-1]
            taken.update(axes)
            spec.append(axes if len(axes) > 1 else axes[0] if axes else None)
        return PartitionSpec(*spec)

    def sharding(self, names: AxisNames, shape: Sequence[int]) -> NamedSharding:
        """The same, with the devices."""
        return NamedSharding(self.mesh, self.partition_spec(names, shape))

    def constrain(self, x: jax.Array, names: AxisNames) -> jax.Array:
        """Has `x` lie as the rules say."""
        if self.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(names, x.shape))

    def split(
        self, function: Callable[..., jax.Array], names: Sequence[AxisNames], like: int
    ) -> Callable[..., jax.Array]:
        """`function` on each device's part; see `nova_jax.models.layout.split`."""
        if self.size == 1:
            return function

        def call(*arrays: jax.Array) -> jax.Array:
            pairs = zip(names, arrays, strict=True)
            specs = tuple(self.partition_spec(name, array.shape) for name, array in pairs)
            return jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=specs[like], check_vma=False
            )(*arrays)

        return call


def parameter_shardings(model: nnx.Module, mesh: MeshLayout) -> dict[str, NamedSharding]:
    """Sharding of every variable of a model, real or abstract, by its dotted path."""
    return {
        ".".join(map(str, path)): mesh.sharding(logical_axes(variable), variable.get_value().shape)
        for path, variable in nnx.to_flat_state(nnx.state(model))
    }


@dataclasses.dataclass(frozen=True)
class SampleParallelism:
    """How a mesh shares generation, see `nova_jax.sampling.frames.Parallelism`.

    Attributes:
        mesh: its devices.
        whole: each draws samples of its own with a whole model, and nothing passes between them;
            else arrays lie as in training, and there may be fewer samples than devices.
    """

    mesh: MeshLayout
    whole: bool

    def __call__(self, function: Callable[..., Any], in_axes: Any, out_axes: Any) -> Any:
        """See `nova_jax.sampling.frames.Parallelism`."""
        if not self.whole:

            def laid_out(*arrays: Any) -> Any:
                with layout.use(self.mesh):
                    return function(*arrays)

            return laid_out

        def spec(axis: int | None) -> PartitionSpec:
            return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, MESH_AXES)

        specs = [
            jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)
            for axes in (in_axes, out_axes)
        ]
        return jax.shard_map(
            function, mesh=self.mesh.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False
        )


def replicated(mesh: MeshLayout) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh.mesh, PartitionSpec())


def replicate(value: jax.typing.ArrayLike, mesh: MeshLayout) -> jax.Array:
    """Puts a value, the same in every process, on every device."""
    return jax.make_array_from_process_local_data(replicated(mesh), np.asarray(value))


def batch_sharding(mesh: MeshLayout) -> NamedSharding:
    """The leading axis split over all devices that see different samples."""
    return NamedSharding(mesh.mesh, PartitionSpec(mesh.rules["batch"]))


def check_batch_size(name: str, size: int, mesh: MeshLayout, frames: int = 1) -> None:
    """Raises a `NovaError` if a batch of `size` samples of `frames` frames cannot be split evenly.

    Pictures go without context parallelism where they do not suffice for it.
    """
    if size % (ways := mesh.ways("batch")):
        raise NovaError(f"{name} {size} cannot be split over {ways} devices; use a multiple")
    rows = size // ways * frames
    more = [axis for axis in mesh.rules["frames"] if axis not in mesh.rules["batch"]]
    if frames > 1 and rows % math.prod(mesh.shape[axis] for axis in more):
        sizes = " times ".join(f"mesh.{axis} {mesh.shape[axis]}" for axis in more)
        raise NovaError(
            f"{name} {size} over {ways} devices leaves {rows} frames, which {sizes} does not "
            "divide; change one of them"
        )


def process_share(mesh: MeshLayout) -> tuple[int, int]:
    """(index, count): which of how many parts of a batch this process loads.

    Processes whose devices hold the same samples, as with `tensor` or `context` across processes,
    load the same part.

    Raises:
        NovaError: the processes' samples overlap in part.
    """
    parts: dict[int, set[int]] = {}
    where: Any = batch_sharding(mesh).devices_indices_map((mesh.ways("batch"),))
    for device, index in where.items():
        parts.setdefault(device.process_index, set()).add(index[0].start or 0)
    distinct = sorted({tuple(sorted(part)) for part in parts.values()})
    if sum(map(len, distinct)) != mesh.ways("batch") or len({len(part) for part in distinct}) > 1:
        raise NovaError(
            f"a mesh of {dict(mesh.shape)} gives the {len(parts)} processes parts of a batch that "
            "overlap or differ in size; make fsdp, context and tensor divide the devices of a "
            "process, or be multiples of them"
        )
    return distinct.index(tuple(sorted(parts[jax.process_index()]))), len(distinct)


def shard_batch(batch: Mapping[str, Any], mesh: MeshLayout) -> dict[str, jax.Array]:
    """Puts this process's part of a batch (leading axis: samples) on its devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
        for name, array in batch.items()
    }
