"""A codec out of an autoencoder: its network, windows in time, and the scale of its latents.

Letters in shapes:

    B clips   F pixel frames   H, W pixels   T latent frames   h, w latent sides   C latent channels
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from nova_jax.autoencoders.convolution import Autoencoder, Resized, Video
from nova_jax.autoencoders.interface import Array
from nova_jax.autoencoders.windows import Windows
from nova_jax.kernels.device import platform


class AutoencoderCodec:
    """An autoencoder behind the interface of `nova_jax.autoencoders.interface.VideoCodec`.

    Clips are taken one at a time on each device, and their frames in windows, so that memory does
    not grow with the batch or the length.

    Args:
        network: with its parameters.
        scale, shift: (z − shift)·scale is what the transformer sees; one for all channels, or [C].
        source: directory of the released model that it was loaded from, if it was.
        offload: whether parameters wait in the host's memory, and are on a device only while it
            encodes or decodes.
    """

    def __init__(
        self,
        network: Autoencoder,
        *,
        scale: float | np.ndarray = 1.0,
        shift: float | np.ndarray = 0.0,
        source: Path | None = None,
        offload: bool = False,
    ):
        self._facts, self.source = network, source
        # One for each channel, or for all, against [B, T, h, w, C].
        self._scale, self._shift = (
            np.asarray(factor, np.float32).reshape(1, 1, 1, 1, -1) for factor in (scale, shift)
        )
        self._graph, self._state = nnx.split(network)
        if offload:
            self._state = jax.device_get(self._state)
        self._offload = offload
        self._placed: dict[NamedSharding | None, nnx.State] = {}
        if not offload:
            self._placed[None] = self._state

    @property
    def network(self) -> Autoencoder:
        """The autoencoder, with its parameters."""
        return nnx.merge(self._graph, self._state)

    def with_network(self, network: Autoencoder) -> AutoencoderCodec:
        """The same with other parameters, such as the arguments of a program."""
        return AutoencoderCodec(network, scale=self._scale, shift=self._shift)

    def offloaded(self) -> AutoencoderCodec:
        """The same with parameters that wait in the host's memory."""
        if self._offload:
            return self
        facts: dict[str, Any] = {"scale": self._scale, "shift": self._shift}
        return AutoencoderCodec(self.network, **facts, source=self.source, offload=True)

    @property
    def latent_channels(self) -> int:
        """C."""
        return self._facts.latent_channels

    @property
    def stride(self) -> int:
        """Pixels per latent, along each side."""
        return self._facts.stride[1]

    @property
    def scaling(self) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        """Scale and shift of the latents' channels, [C] each."""
        channels = self.latent_channels
        scale, shift = (np.broadcast_to(f.ravel(), channels) for f in (self._scale, self._shift))
        return scale, shift

    @property
    def decode_windows(self) -> Windows:
        """The windows of latent frames that `decode` takes one after the other."""
        return self._facts.decode_windows

    def latent_frames(self, frames: int) -> int:
        """T for F pixel frames; frames that no window holds are left out."""
        step = self._facts.stride[0]
        return self._facts.encode_windows.results(frames, lambda f: 1 + (f - 1) // step)

    def pixel_frames(self, latent_frames: int) -> int:
        """F for T latent frames; those that no window holds are left out."""
        step = self._facts.stride[0]
        return self._facts.decode_windows.results(latent_frames, lambda t: 1 + (t - 1) * step)

    def posterior(
        self, pixels: Float[Array, "b F H W 3"]
    ) -> tuple[Float[Array, "b T h w c"], Float[Array, "b T h w c"]]:
        """Mean and standard deviation of the latents of pixels in [-1, 1], float32."""
        mean, log_variance = jnp.split(self.moments(pixels), [self.latent_channels], axis=-1)
        mean = (mean - self._shift) * self._scale
        if not log_variance.shape[-1]:
            return mean, jnp.zeros_like(mean)
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0)) * self._scale

    def moments(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b T h w m"]:
        """What the network says of pixels in [-1, 1]: means, then log-variances, float32."""
        return self._run("encode", pixels)

    def encode(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b T h w c"]:
        """The mean alone."""
        return self.posterior(pixels)[0]

    def decode(self, latents: Float[Array, "b T h w c"]) -> Float[Array, "b F H W 3"]:
        """Pixels of scaled latents, in [-1, 1], about."""
        return self._run("decode", latents / self._scale + self._shift)

    def decode_bytes(self, latent_frames: int, size: tuple[int, int]) -> float:
        """Bytes that `decode` needs for one clip, see `VideoCodec.decode_bytes`."""
        step, pixels = self._facts.stride[0], size[0] * size[1]
        window = 1 + (min(latent_frames, self._facts.decode_windows.size) - 1) * step
        itemsize = jax.tree.leaves(self._state)[0].dtype.itemsize
        # CPUs convolve in float32.
        wide = 4 if platform() == "cpu" else itemsize
        # Images take more than a frame of a video does: what is at the ends of time is padded.
        features = self._facts.decode_features * (window + 0.75) * pixels * wide
        # Windows one after the other, and joined.
        return features + 2 * 3 * self.pixel_frames(latent_frames) * pixels * itemsize

    def _run(self, method: str, x: Float[Array, "b _ _ _ _"]) -> Float[jax.Array, "b _ _ _ _"]:
        """Runs clip after clip, on every device those that lie there."""
        x = jnp.asarray(x)
        # Where a program is traced there is none to see.
        sharding = getattr(x, "sharding", None)
        sharding = sharding if isinstance(sharding, NamedSharding) else None
        return _run(self._graph, self._on_devices(sharding), x, method, sharding)

    def _on_devices(self, sharding: NamedSharding | None) -> nnx.State:
        """The parameters, whole on every device that clips lie on."""
        if (state := self._placed.get(sharding)) is None:
            whole = NamedSharding(sharding.mesh, PartitionSpec()) if sharding else None
            state = jax.device_put(self._state, whole)
            if not self._offload:
                self._placed[sharding] = state
        return state


@functools.partial(jax.jit, static_argnames=("graph", "method", "sharding"))
def _run(
    graph: nnx.GraphDef, state: nnx.State, x: Video, method: str, sharding: NamedSharding | None
) -> Resized:
    def clips(state: nnx.State, x: Video) -> Resized:
        network = nnx.merge(graph, state)
        dtype = jax.tree.leaves(state)[0].dtype
        run: Callable[[Video], Resized] = getattr(network, method)
        one = lambda clip: run(clip[None].astype(dtype))[0].astype(jnp.float32)  # noqa: E731
        return jax.lax.map(one, x)

    if sharding is None:
        return clips(state, x)
    spec = sharding.spec
    return jax.shard_map(
        clips, mesh=sharding.mesh, in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False
    )(state, x)
