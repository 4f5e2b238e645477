"""What the autoencoders are made of: convolutions, group norms and the blocks they share.

Attributes are named as diffusers names them, so a released key is the path of a parameter here.

Letters in shapes:

    B clips   T frames   H, W rows and columns   C channels
"""

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from nova_jax.autoencoders.windows import Windows

Video = Float[Array, "b t h w c"]
# What comes of one: with other channels, or of another size in all.
Mapped = Float[Array, "b t h w _"]
Resized = Float[Array, "b _ _ _ _"]

# Numbers in a clip's features from which on convolutions take frame after frame.
LARGE = 2**27

Pointwise = Callable[[Video], Resized]


class Options(TypedDict):
    """What every module is made with: type of parameters and computation, keys of parameters."""

    dtype: DTypeLike
    rngs: nnx.Rngs


class FrameConv(nnx.Conv):
    """A convolution over rows and columns, the same for every frame; padded with zeros."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 3, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        padding = ((size // 2, size // 2),) * 2
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        super().__init__(inputs, outputs, (size, size), padding=padding, **options)

    def __call__(self, x: Video, before: Pointwise = lambda x: x) -> Resized:
        """Convolves `before(x)`."""
        return super().__call__(before(x))


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

    def __call__(self, x: Video, before: Pointwise = lambda x: x) -> Resized:
        """Convolves `before(x)`, where `before` takes each frame alone.

        Of large features neither `before(x)` nor a padded copy is ever there as a whole.
        """
        seen = self.kernel_size[0] - 1
        if x.size < LARGE or self.strides != 1:
            return super().__call__(before(jnp.concatenate([x[:, :1]] * seen + [x], axis=1)))
        convolve = super().__call__

        def frame(t: Int[Array, ""] | int) -> Float[Array, "b 1 h w c"]:
            times = [jnp.maximum(t - i, 0) for i in range(seen, -1, -1)]
            near = [jax.lax.dynamic_index_in_dim(x, time, axis=1) for time in times]
            return convolve(before(jnp.concatenate(near, axis=1)))

        first = frame(0)
        # Room that waits for the first frame: constants are made at the start of a program, and
        # the room of every layer would be there at once.
        room = jnp.repeat(first * 0, x.shape[1], axis=1)
        return jax.lax.fori_loop(
            0,
            x.shape[1],
            lambda t, room: jax.lax.dynamic_update_slice_in_dim(room, frame(t), t, axis=1),
            room,
        )


class GroupNorm(nnx.Module):
    """Group normalization in float32 whatever the type, over a clip or over each frame alone."""

    def __init__(
        self, channels: int, groups: int = 32, *, per_frame: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        del rngs  # starts at one and zero
        self.scale = nnx.Param(jnp.ones(channels, dtype))
        self.bias = nnx.Param(jnp.zeros(channels, dtype))
        self.groups, self.per_frame = groups, per_frame

    def normalizer(self, x: Video) -> Pointwise:
        """A function that normalizes frames of x with the mean and variance of all of it."""

        def of_frame(
            t: Int[Array, ""],
        ) -> tuple[Float[Array, "b 1 1 1 g 1"], Float[Array, "b 1 1 1 g 1"]]:
            frame = jax.lax.dynamic_index_in_dim(x, t, axis=1).astype(jnp.float32)
            frame = rearrange(frame, "b t h w (g c) -> b t h w g c", g=self.groups)
            mean = jnp.mean(frame, axis=(2, 3, 5), keepdims=True)
            # In two passes: E[x²] − E[x]² cancels digits that parity with the release needs.
            return mean, jnp.mean(jnp.square(frame - mean), axis=(2, 3, 5), keepdims=True)

        mean, variance = (
            rearrange(of_frames, "t b 1 1 1 g 1 -> b t 1 1 g 1")
            for of_frames in jax.lax.map(of_frame, jnp.arange(x.shape[1]))
        )
        if not self.per_frame:
            # Variance of a clip: the mean of its frames', and the variance of their means.
            clip_mean = jnp.mean(mean, axis=1, keepdims=True)
            about_clip_mean = variance + jnp.square(mean - clip_mean)
            mean, variance = clip_mean, jnp.mean(about_clip_mean, axis=1, keepdims=True)

        def per_channel(statistic: Float[Array, "b t 1 1 g 1"]) -> Float[Array, "b t 1 1 c"]:
            wide = jnp.broadcast_to(statistic, (*statistic.shape[:-1], x.shape[-1] // self.groups))
            return rearrange(wide, "b t h w g c -> b t h w (g c)")

        mean, deviation = per_channel(mean), per_channel(jax.lax.rsqrt(variance + 1e-6))
        scale, offset = (
            parameter[...].astype(jnp.float32).reshape(1, 1, 1, 1, -1)
            for parameter in (self.scale, self.bias)
        )
        gain = deviation * scale
        return lambda frames: ((frames - mean) * gain + offset).astype(x.dtype)

    def __call__(self, x: Video) -> Video:
        """Normalizes."""
        return self.normalizer(x)(x)


def activated(norm: GroupNorm, x: Video) -> Pointwise:
    """SiLU(norm(x)) as a function of frames of x."""
    normalize = norm.normalizer(x)
    return lambda frames: jax.nn.silu(normalize(frames))


class Downsample(nnx.Module):
    """Halves rows and columns, and 1 + 2n frames to 1 + n if temporal."""

    def __init__(self, channels: int, *, temporal: bool, **options: Unpack[Options]):
        conv = CausalConv if temporal else FrameConv
        self.conv = conv(channels, channels, **options)
        self.conv.strides = (2,) * (3 if temporal else 2)
        self.conv.padding = ((0, 0),) * temporal + ((0, 1), (0, 1))

    def __call__(self, x: Video) -> Resized:
        """Convolves with stride 2."""
        return self.conv(x)


def repeat_pixels(x: Video, times: int) -> Float[Array, "b t {times}*h {times}*w c"]:
    """Repeats rows and columns: the nearest neighbor, at a whole factor."""
    return x.repeat(times, axis=2).repeat(times, axis=3)


class Autoencoder(nnx.Module):
    """What the autoencoders of this package have in common; each sets the attributes.

    Attributes:
        latent_channels: C.
        stride: pixel frames per latent frame after the first, pixels per latent along a side.
        encoder, decoder: pixels to moments, latents to pixels.
        quant_conv, post_quant_conv: mix the channels of the moments, of the latents; None for not.
        encode_windows, decode_windows: how frames, and latent frames, are taken.
        decode_features: numbers for each pixel of a window that decoding has at once, as XLA's
            layout of the program for CPUs shows.
    """

    latent_channels: int
    stride: tuple[int, int]
    encoder: Callable[[Video], Resized]
    decoder: Callable[[Video], Resized]
    quant_conv: Callable[[Video], Mapped] | None
    post_quant_conv: Callable[[Video], Mapped] | None
    encode_windows: Windows
    decode_windows: Windows
    decode_features: float

    def encode(self, pixels: Float[Array, "b F H W 3"]) -> Float[Array, "b T h w m"]:
        """Moments of pixels in [-1, 1]: means, then log-variances."""
        x = self.encode_windows.run(self.encoder, pixels)
        return x if self.quant_conv is None else self.quant_conv(x)

    def decode(self, latents: Float[Array, "b T h w c"]) -> Float[Array, "b F H W 3"]:
        """Pixels of latents as the encoder means them."""
        x = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        return self.decode_windows.run(self.decoder, x)
