"""What the autoencoders are made of: convolutions, group norms and the blocks they share.

Attributes are named as diffusers names them, so a released key is the path of a parameter here.

Letters in shapes:

    B clips   T frames   H, W rows and columns   C channels
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Video = Float[Array, "b t h w c"]


class FrameConv(nnx.Conv):
    """A convolution over rows and columns, the same for every frame; padded with zeros."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 3, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        padding = ((size // 2, size // 2),) * 2
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        super().__init__(inputs, outputs, (size, size), padding=padding, **options)


class CausalConv(nnx.Conv):
    """A convolution over frames, rows and columns that sees no later frame.

    Before the first frame stand copies of it. A size of (1, k, k) sees one frame at a time.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int, int] = 3,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        size = (size,) * 3 if isinstance(size, int) else size
        padding = ((0, 0), *((k // 2, k // 2) for k in size[1:]))
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        super().__init__(inputs, outputs, size, padding=padding, **options)

    def __call__(self, x: Video) -> Video:  # type: ignore[override]
        """Convolves."""
        before = self.kernel_size[0] - 1
        return super().__call__(jnp.concatenate([x[:, :1]] * before + [x], axis=1))


class GroupNorm(nnx.GroupNorm):
    """Group normalization in float32 whatever the type, over a clip or over each frame alone."""

    def __init__(
        self,
        channels: int,
        groups: int = 32,
        *,
        per_frame: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            channels,
            num_groups=groups,
            epsilon=1e-6,
            dtype=jnp.float32,
            param_dtype=dtype,
            # E[x²] − E[x]² cancels digits that parity with the release needs.
            use_fast_variance=False,
            rngs=rngs,
        )
        self.per_frame = per_frame

    def __call__(self, x: Video) -> Video:  # type: ignore[override]
        """Normalizes."""
        if not self.per_frame:
            return super().__call__(x).astype(x.dtype)
        frames = rearrange(x, "b t h w c -> (b t) h w c")
        return super().__call__(frames).reshape(x.shape).astype(x.dtype)


class Downsample(nnx.Module):
    """Halves rows and columns, and 1 + 2n frames to 1 + n if temporal."""

    def __init__(self, channels: int, *, temporal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        conv = CausalConv if temporal else FrameConv
        self.conv = conv(channels, channels, dtype=dtype, rngs=rngs)
        self.conv.strides = (2,) * (3 if temporal else 2)
        self.conv.padding = ((0, 0),) * temporal + ((0, 1), (0, 1))

    def __call__(self, x: Video) -> Video:
        """Convolves with stride 2."""
        return self.conv(x)


def repeat_pixels(x: Video, times: int) -> Video:
    """Repeats rows and columns: the nearest neighbor, at a whole factor."""
    return x.repeat(times, axis=2).repeat(times, axis=3)


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a long clip is taken in parts that overlap, each by itself.

    Attributes:
        size: frames of a part. A clip that is no longer is taken whole.
        step: frames from the start of a part to the start of the next; those that do not fit are
            left out.
        drop: frames at the start of every later part's result that repeat the part before.
    """

    size: int
    step: int
    drop: int

    def results(self, frames: int, of_part: Callable[[int], int]) -> int:
        """Frames of the result, where a part of n frames gives `of_part(n)`."""
        if frames <= self.size:
            return of_part(frames)
        later = (frames - self.size) // self.step
        return of_part(self.size) + later * (of_part(self.size) - self.drop)

    def run(self, network: Callable[[Array], Array], x: Video) -> Video:
        """Runs part after part, in the memory of one, and joins what they give."""
        if x.shape[1] <= self.size:
            return network(x)
        starts = range(0, x.shape[1] - self.size + 1, self.step)
        parts = jax.lax.map(network, jnp.stack([x[:, i : i + self.size] for i in starts]))
        later = rearrange(parts[1:, :, self.drop :], "n b t h w c -> b (n t) h w c")
        return jnp.concatenate([parts[0], later], axis=1)


class Autoencoder(nnx.Module):
    """What the autoencoders of this package have in common; each sets the attributes.

    Attributes:
        latent_channels: C.
        stride: pixel frames per latent frame after the first, pixels per latent along a side.
        encoder, decoder: pixels to moments, latents to pixels.
        quant_conv, post_quant_conv: mix the channels of the moments, of the latents; None for not.
        encode_windows, decode_windows: how frames, and latent frames, are taken.
    """

    latent_channels: int
    stride: tuple[int, int]
    encoder: Callable[[Video], Video]
    decoder: Callable[[Video], Video]
    quant_conv: Callable[[Video], Video] | None
    post_quant_conv: Callable[[Video], Video] | None
    encode_windows: Windows
    decode_windows: Windows

    def encode(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b T h w m"]:
        """Moments of pixels in [-1, 1]: means, then log-variances."""
        x = self.encode_windows.run(self.encoder, pixels)
        return x if self.quant_conv is None else self.quant_conv(x)

    def decode(self, latents: Float[Array, "b T h w c"]) -> Float[Array, "b F H W 3"]:
        """Pixels of latents as the encoder means them."""
        x = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        return self.decode_windows.run(self.decoder, x)
