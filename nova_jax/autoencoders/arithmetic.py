"""What codecs without parameters share: they take frame by frame, and all of it is arithmetic.

They take NumPy and JAX arrays alike. A subclass has `type`, `latent_channels`, `stride`, `scaling`,
`moments`, `encode` and `decode`, see `nova_jax.autoencoders.interface.VideoCodec`.
"""

import abc
import dataclasses
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float

from nova_jax.autoencoders.interface import Array
from nova_jax.autoencoders.windows import Windows
from nova_jax.config import Checked


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticCodec(Checked, abc.ABC):
    """A codec whose latents are exact functions of single frames."""

    network: ClassVar[None] = None
    decode_windows: ClassVar[Windows] = Windows(size=1, step=1, drop=0)

    @property
    @abc.abstractmethod
    def scaling(self) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
        """Scale and shift of each channel of the moments."""

    @abc.abstractmethod
    def encode(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b F h w C"]:
        """Latents of pixels in [-1, 1]."""

    @abc.abstractmethod
    def decode(self, latents: Float[Array, "b F h w C"]) -> Float[Array, "b F H W 3"]:
        """Pixels of latents."""

    def posterior(
        self, pixels: Float[Array, "b F H W 3"]
    ) -> tuple[Float[Array, "b F h w C"], Float[Array, "b F h w C"]]:
        """Latents of pixels in [-1, 1], and a deviation of 0."""
        mean = self.encode(pixels)
        return mean, 0 * mean

    def with_network(self, network: Any) -> Self:
        """Itself."""
        return self

    def offloaded(self) -> Self:
        """Itself."""
        return self

    def latent_frames(self, frames: int) -> int:
        """One latent frame a pixel frame."""
        return frames

    def pixel_frames(self, latent_frames: int) -> int:
        """One pixel frame a latent frame."""
        return latent_frames

    def decode_bytes(self, latent_frames: int, size: tuple[int, int]) -> float:
        """Nothing but the pixels."""
        return 0.0
