"""Where a pipeline's model lies, and how samples are shared by the devices that have it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import jax
from flax import nnx

from nova_jax.distributed.memory import device_bytes
from nova_jax.distributed.mesh import MeshLayout, SampleParallelism, make_mesh, replicated
from nova_jax.errors import NovaError
from nova_jax.kernels.diffusion_sampler.api import Implementation, checked
from nova_jax.models.nova import Nova
from nova_jax.request import Batches, Request


class Placement:
    """A model on a mesh, or whole on each of some devices.

    Args:
        model: the transformer.
        mesh: devices that hold the parameters, as they already do; None for whole copies.
        devices: of those, without a mesh.
    """

    def __init__(self, model: Nova, mesh: MeshLayout | None, devices: Sequence[jax.Device]) -> None:
        self._graph, self._state = nnx.split(model)
        self._mesh, self._devices = mesh, devices
        self._placed: dict[int, tuple[MeshLayout, nnx.State]] = {}

    @property
    def model(self) -> Nova:
        """The transformer, where its parameters were loaded to."""
        return nnx.merge(self._graph, self._state)

    @property
    def bytes(self) -> int:
        """Of the parameters, on one device."""
        return device_bytes(self._state)

    def resized(self, latent_size: tuple[int, int]) -> Placement:
        """The same, on the same parameters, for another size of latent frames."""
        other = copy.copy(self)
        other._graph = nnx.graphdef(self.model.resized(latent_size))
        return other

    def batches(self, request: Request) -> tuple[Batches, int]:
        """A request in batches, and how many devices share the samples of one."""
        devices = 1 if request.recorded else len(self._devices)
        ways = devices if self._mesh is None else self._mesh.ways("batch")
        batches = request.batches(ways, all_take_part=self._mesh is not None)
        return batches, min(batches.size, ways)

    def devices(self, ways: int) -> list[jax.Device]:
        """Those of this process that take part where so many share samples."""
        part = self._devices[:ways] if self._mesh is None else self._mesh.devices.flat
        return [one for one in part if one.process_index == jax.process_index()]

    def shared(self, samples: int, sampler: Implementation) -> tuple[MeshLayout, Nova]:
        """The devices that share just so many samples, and the model on them.

        Raises:
            NovaError: those of a mesh cannot, or the sampler does not run on it.
        """
        if self._mesh is not None and samples % self._mesh.ways("batch"):
            raise NovaError(
                f"{samples} samples cannot be shared by {self._mesh.ways('batch')} devices; take "
                "a multiple of that"
            )
        ways = max(n for n in range(1, len(self._devices) + 1) if samples % n == 0)
        return self.on_devices(ways, sampler)

    def on_devices(self, count: int, sampler: Implementation) -> tuple[MeshLayout, Nova]:
        """The model on the mesh, or whole on each of so many devices."""
        if self._mesh is not None:
            if self._mesh.size > 1 and checked(sampler) == "pallas":
                raise NovaError(
                    'sampler "pallas" needs the whole model on each device; load it without a '
                    'mesh, or choose sampler "xla"'
                )
            return self._mesh, self.model
        if count not in self._placed:
            mesh = make_mesh(self._devices[:count])
            self._placed[count] = mesh, jax.device_put(self._state, replicated(mesh))
        mesh, state = self._placed[count]
        return mesh, nnx.merge(self._graph, state)

    def parallelism(self, mesh: MeshLayout) -> SampleParallelism:
        """How the devices of a mesh share samples."""
        return SampleParallelism(mesh, whole=self._mesh is None)
