"""Blocks of pixels as their lowest cosine frequencies: fewer values, and no parameters.

Each block of S x S pixels becomes one latent with the K x K lowest coefficients of the orthonormal
two-dimensional DCT-II (the transform of JPEG, ITU-T T.81, section A.3.3) of each color: S²/K² times
fewer values than pixels, and what is lost is fine detail alone. Everything here is arithmetic and
takes NumPy and JAX arrays alike.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float

from nova_jax.autoencoders.arithmetic import ArithmeticCodec
from nova_jax.autoencoders.interface import Array
from nova_jax.config import Count, Positive
from nova_jax.errors import NovaError


@functools.cache
def transform(block: int, kept: int) -> Float[np.ndarray, "{kept} {block}"]:
    """Rows are the lowest frequencies of the orthonormal DCT-II of so many samples."""
    angle = np.pi / block * np.outer(np.arange(kept), np.arange(block) + 0.5)
    rows = np.sqrt(2 / block) * np.cos(angle)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DCTCodec(ArithmeticCodec):
    """latent = the K² lowest coefficients of a block of (pixel - shift) · scale, frame by frame.

    Attributes:
        block: S, side of a block in pixels.
        kept: K, frequencies that are kept along each side, at most S.
        shift, scale: bring pixels in [-1, 1] to zero mean and unit variance.
    """

    type: ClassVar[str] = "dct"
    block: Count = 16
    kept: Count = 8
    shift: float = 0.0
    scale: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept > self.block:
            raise NovaError(
                f"codec: a block of {self.block} pixels has no {self.kept} frequencies; "
                f"make kept at most {self.block}"
            )

    @property
    def latent_channels(self) -> int:
        """3 K²."""
        return 3 * self.kept**2

    @property
    def stride(self) -> int:
        """S."""
        return self.block

    @property
    def scaling(self) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        """Scale and shift of each coefficient: only those of frequency 0 are shifted."""
        shift = np.zeros((self.kept, self.kept, 3), np.float32)
        shift[0, 0] = self.shift * self.block
        return np.full(shift.size, self.scale, np.float32), shift.ravel()

    def moments(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b F h w c"]:
        """Coefficients of pixels, before scaling."""
        batch, frames, height, width, _ = pixels.shape
        side, lowest = self.block, transform(self.block, self.kept)
        h, w = height // side, width // side
        blocks = pixels.reshape(batch, frames, h, side, w, side, 3)
        blocks = blocks.transpose(0, 1, 2, 4, 6, 3, 5)
        with jax.default_matmul_precision("highest"):  # nothing is to be lost on any device
            coefficients = lowest @ blocks @ lowest.T
        coefficients = coefficients.transpose(0, 1, 2, 3, 5, 6, 4)
        return coefficients.reshape(batch, frames, h, w, self.latent_channels)

    def encode(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b F h w c"]:
        """Latents of pixels in [-1, 1]."""
        scale, shift = (values[None, None, None, None] for values in self.scaling)
        return (self.moments(pixels) - shift) * scale

    def decode(self, latents: Float[Array, "b F h w c"]) -> Float[Array, "b F H W 3"]:
        """Pixels of latents."""
        scale, shift = (values[None, None, None, None] for values in self.scaling)
        batch, frames, h, w, _ = latents.shape
        kept, lowest = self.kept, transform(self.block, self.kept)
        coefficients = (latents / scale + shift).reshape(batch, frames, h, w, kept, kept, 3)
        with jax.default_matmul_precision("highest"):
            blocks = lowest.T @ coefficients.transpose(0, 1, 2, 3, 6, 4, 5) @ lowest
        pixels = blocks.transpose(0, 1, 2, 5, 3, 6, 4)
        return pixels.reshape(batch, frames, h * self.block, w * self.block, 3)
