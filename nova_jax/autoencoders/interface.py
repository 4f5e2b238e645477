"""What the rest of the package expects of a video codec.

Letters in shapes:

    B clips   F pixel frames   H, W pixels   T latent frames   h, w latent sides   C latent channels
    M channels of the moments
"""

from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from nova_jax.autoencoders.windows import Windows

#: Codecs that only do arithmetic serve data workers (NumPy) and the device (JAX) alike.
Array = np.ndarray | jax.Array


class VideoCodec(Protocol):
    """Turns clips into latents of about zero mean and unit variance, and back.

    A clip of one frame is a picture: it becomes one latent frame.
    """

    @property
    def latent_channels(self) -> int:
        """C."""

    @property
    def stride(self) -> int:
        """Pixels per latent, along each side: h = H / stride, w = W / stride."""

    @property
    def scaling(self) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
        """Scale and shift: (mean − shift)·scale is the latent of a mean among the moments."""

    @property
    def decode_windows(self) -> Windows:
        """The windows of latent frames that `decode` takes one after the other."""

    @property
    def network(self) -> nnx.Module | None:
        """What holds the parameters; None for a codec without any."""

    def with_network(self, network: Any) -> "VideoCodec":
        """The same with other parameters, such as the arguments of a program."""

    def offloaded(self) -> "VideoCodec":
        """The same with parameters that wait in the host's memory while they are not used."""

    def latent_frames(self, frames: int) -> int:
        """T for F pixel frames."""

    def pixel_frames(self, latent_frames: int) -> int:
        """F for T latent frames."""

    def moments(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b T h w M"]:
        """Means, and where M is 2C log-variances, of pixels in [-1, 1]; before scaling."""

    def posterior(
        self, pixels: Float[Array, "b F H W 3"]
    ) -> tuple[Float[Array, "b T h w C"], Float[Array, "b T h w C"]]:
        """Mean and standard deviation of the latents of pixels in [-1, 1]."""

    def encode(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b T h w C"]:
        """The mean alone."""

    def decode(self, latents: Float[Array, "b T h w C"]) -> Float[Array, "b F H W 3"]:
        """Pixels in [-1, 1] (about: `to_uint8` clamps)."""

    def decode_bytes(self, latent_frames: int, size: tuple[int, int]) -> float:
        """Bytes that `decode` needs for one clip of T latent frames and (H, W) pixels, about.

        Parameters, latents and the pixels that it gives are not in it.
        """
