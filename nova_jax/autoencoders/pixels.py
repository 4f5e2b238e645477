"""Pixels as they are: the codec without an autoencoder, and the pixel conversions all codecs share.

Everything here is arithmetic and takes NumPy and JAX arrays alike.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from nova_jax.autoencoders.arithmetic import ArithmeticCodec
from nova_jax.autoencoders.interface import Array
from nova_jax.config import Positive


def to_float(pixels: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """uint8 pixels as float32 in [-1, 1]: (x - 127.5) / 127.5."""
    result = pixels.astype("float32")
    # In place where arrays allow it: fresh memory costs more than the arithmetic.
    result -= 127.5
    result /= 127.5
    return result


def to_uint8(pixels: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Float pixels in [-1, 1] as uint8: x · 127.5 + 127.5, clamped, then truncated."""
    return (pixels * 127.5 + 127.5).clip(0, 255).astype("uint8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelCodec(ArithmeticCodec):
    """latent = (pixel - shift) · scale, frame by frame and pixel by pixel.

    The defaults bring the moving digits (24 x 24, 12-pixel digits: mean -0.9109, standard deviation
    0.2991 over pixels in [-1, 1]) to zero mean and unit variance.
    """

    type: ClassVar[str] = "pixels"
    latent_channels: ClassVar[int] = 3
    stride: ClassVar[int] = 1
    shift: float = -0.911
    scale: Positive = 3.34

    @property
    def scaling(self) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        """The settings, for each channel."""
        return np.full(3, self.scale, np.float32), np.full(3, self.shift, np.float32)

    def moments(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b F H W 3"]:
        """Pixels as they are."""
        return pixels

    def encode(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b F H W 3"]:
        """Latents of pixels in [-1, 1]."""
        latents = pixels - self.shift
        latents *= self.scale  # in place, see to_float
        return latents

    def decode(self, latents: Float[Array, "b F H W 3"]) -> Float[Array, "b F H W 3"]:
        """Pixels of latents."""
        return latents / self.scale + self.shift
