"""What the rest of the package expects of a video codec and of a text encoder.

Letters in shapes:

    B clips   F pixel frames   H, W pixels   T latent frames   h, w latent sides   C latent channels
    L text rows   d text width
"""

from collections.abc import Mapping
from typing import Any, Protocol, Self

import jax
import numpy as np
from jaxtyping import Float

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

    def latent_frames(self, frames: int) -> int:
        """T for F pixel frames."""

    def pixel_frames(self, latent_frames: int) -> int:
        """F for T latent frames."""

    def posterior(
        self, pixels: Float[Array, "b F H W 3"]
    ) -> tuple[Float[Array, "b T h w C"], Float[Array, "b T h w C"]]:
        """Mean and standard deviation of the latents of pixels in [-1, 1]."""

    def encode(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b T h w C"]:
        """The mean alone."""

    def decode(self, latents: Float[Array, "b T h w C"]) -> Float[Array, "b F H W 3"]:
        """Pixels in [-1, 1] (about: `to_uint8` clamps)."""


class Settings(Protocol):
    """What is nothing but settings, and saved as such with a model."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings, with "type"."""

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`, given without "type"."""
