"""LTX-Video's autoencoder (arXiv 2501.00103) in its version 0.9.5, as NOVA uses it.

The encoder is causal in time, the decoder is not. Pixels are cut into 4×4 patches first; going down
a level folds neighboring pixels and frames into channels, with their mean as the shortcut. The
decoder can finish denoising and is told how far it is; clean latents are at time 0.

Attributes are named as diffusers names them, but for wrappers around a single layer.
"""

import dataclasses
import math
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nova_jax.autoencoders.convolution import Autoencoder, Mapped, Options, Resized, Video
from nova_jax.autoencoders.windows import Windows
from nova_jax.models.embeddings import FREQUENCY_CHANNELS, sinusoid

_FOLD = "b (t r) (h p) (w q) c -> b t h w (c r p q)"
_UNFOLD = "b t h w (c r p q) -> b (t r) (h p) (w q) c"
_STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderLTXConfig:
    """What ``vae/config.json`` says, by its names there.

    Attributes:
        in_channels, out_channels: of pixels.
        latent_channels: of latents.
        block_out_channels: channels of each level of the encoder, one more than downsamplers.
        layers_per_block: residual blocks of each, the middle's last.
        decoder_block_out_channels, decoder_layers_per_block: of the decoder, counted from its end;
            the middle's last. Channels before the end's own, which are half of the first, are those
            that each level begins with.
        downsample_type: what each of the encoder's downsamplers halves.
        patch_size: side of the patches that pixels are cut into.
        scaling_factor, shift_factor: (z − shift)·scale is what the transformer sees.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 128
    block_out_channels: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    layers_per_block: tuple[int, ...] = (4, 6, 6, 2, 2)
    decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 1024)
    decoder_layers_per_block: tuple[int, ...] = (5, 5, 5, 5)
    downsample_type: tuple[str, ...] = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
    patch_size: int = 4
    scaling_factor: float = 1.0
    shift_factor: float | None = None


class Conv(nnx.Conv):
    """A 3×3×3 convolution; time is padded with copies, in front only if causal, else evenly."""

    def __init__(
        self, inputs: int, outputs: int, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        padding = ((0, 0), (1, 1), (1, 1))
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        super().__init__(inputs, outputs, (3, 3, 3), padding=padding, **options)
        self.causal = causal

    def __call__(self, x: Video) -> Mapped:  # type: ignore[override]
        """Convolves."""
        around = [x[:, :1], x[:, :1], x] if self.causal else [x[:, :1], x, x[:, -1:]]
        return super().__call__(jnp.concatenate(around, axis=1))


def _rms_norm(x: Video) -> Video:
    """x / rms(x) over channels, the root in float32."""
    mean = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean + 1e-8).astype(x.dtype)


class TimeEmbed(nnx.Module):
    """Modulation vectors [B, outputs] of a diffusion time, 0 to 1000."""

    def __init__(self, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.linear_1 = nnx.Linear(FREQUENCY_CHANNELS, outputs, **options)
        self.linear_2 = nnx.Linear(outputs, outputs, **options)

    def __call__(self, time: Float[Array, " b"]) -> Float[Array, "b o"]:
        """Embeds times."""
        sin, cos = sinusoid(time)
        frequencies = jnp.concatenate([cos, sin], axis=-1).astype(self.linear_1.dtype)
        return self.linear_2(jax.nn.silu(self.linear_1(frequencies)))


class ResnetBlock(nnx.Module):
    """x + conv(SiLU(mod(norm(conv(SiLU(mod(norm(x)))))))); mod is x·(1 + scale) + shift by time."""

    def __init__(self, channels: int, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv1 = Conv(channels, channels, causal=causal, **options)
        self.conv2 = Conv(channels, channels, causal=causal, **options)
        # The decoder's blocks are modulated, the encoder's are not.
        self.scale_shift_table = None if causal else nnx.Param(jnp.zeros((4, channels), dtype))

    def __call__(self, x: Video, time: Float[Array, "b m"] | None = None) -> Video:
        """Maps features to features."""
        shift1 = scale1 = shift2 = scale2 = jnp.zeros((), x.dtype)
        if self.scale_shift_table is not None and time is not None:
            table = self.scale_shift_table[...].reshape(1, -1) + time
            shift1, scale1, shift2, scale2 = jnp.split(table[:, None, None, None], 4, axis=-1)
        u = self.conv1(jax.nn.silu(_rms_norm(x) * (1 + scale1) + shift1))
        return x + self.conv2(jax.nn.silu(_rms_norm(u) * (1 + scale2) + shift2))


class Downsample(nnx.Module):
    """Convolves, then folds pixels and frames into channels; plus the mean of what is folded."""

    def __init__(
        self, inputs: int, outputs: int, stride: tuple[int, int, int], **options: Unpack[Options]
    ):
        self.stride, self.outputs = stride, outputs
        self.conv = Conv(inputs, outputs // math.prod(stride), causal=True, **options)

    def __call__(self, x: Video) -> Resized:
        """Halves what the stride says; copies of the first frame make up for time's odd one."""
        sizes = dict(zip("rpq", self.stride, strict=True))
        x = jnp.concatenate([x[:, :1]] * (self.stride[0] - 1) + [x], axis=1)
        shortcut = rearrange(x, _FOLD, **sizes)
        shortcut = shortcut.reshape(*shortcut.shape[:-1], self.outputs, -1).mean(-1)
        return rearrange(self.conv(x), _FOLD, **sizes) + shortcut


class Upsample(nnx.Module):
    """Convolves, then unfolds channels into pixels and frames; plus the input, unfolded alike."""

    def __init__(self, inputs: int, outputs: int, **options: Unpack[Options]):
        self.repeats = 8 * outputs // inputs
        self.conv = Conv(inputs, 8 * outputs, causal=False, **options)

    def __call__(self, x: Video) -> Resized:
        """Doubles frames, rows and columns; the first frame is left out again."""
        shortcut = rearrange(x, _UNFOLD, r=2, p=2, q=2)
        shortcut = jnp.concatenate([shortcut] * self.repeats, axis=-1)
        return (rearrange(self.conv(x), _UNFOLD, r=2, p=2, q=2) + shortcut)[:, 1:]


class DownBlock(nnx.Module):
    """Residual blocks, then a level down."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        depth: int,
        stride: tuple[int, int, int],
        **options: Unpack[Options],
    ):
        self.resnets = nnx.List(ResnetBlock(inputs, causal=True, **options) for _ in range(depth))
        self.downsamplers = nnx.List([Downsample(inputs, outputs, stride, **options)])

    def __call__(self, x: Video) -> Resized:
        """Goes one level down."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class Block(nnx.Module):
    """A level up, if `inputs` differ from `outputs`; then residual blocks, all at one time."""

    def __init__(
        self, inputs: int, outputs: int, depth: int, *, causal: bool, **options: Unpack[Options]
    ):
        self.time_embedder = None if causal else TimeEmbed(4 * outputs, **options)
        self.upsamplers = nnx.List(
            [] if inputs == outputs else [Upsample(inputs, outputs, **options)]
        )
        self.resnets = nnx.List(
            ResnetBlock(outputs, causal=causal, **options) for _ in range(depth)
        )

    def __call__(self, x: Video, time: Float[Array, " b"] | None = None) -> Resized:
        """Maps features."""
        for upsampler in self.upsamplers:
            x = upsampler(x)
        embedding = None
        if self.time_embedder is not None and time is not None:
            embedding = self.time_embedder(time)
        for resnet in self.resnets:
            x = resnet(x, embedding)
        return x


class Encoder(nnx.Module):
    """Pixels to the means of latents and one log-variance that all channels share."""

    def __init__(self, config: AutoencoderLTXConfig, **options: Unpack[Options]):
        channels, depths = config.block_out_channels, config.layers_per_block
        self.patch_size = config.patch_size
        inputs = config.in_channels * config.patch_size**2
        self.conv_in = Conv(inputs, channels[0], causal=True, **options)
        self.down_blocks = nnx.List(
            DownBlock(here, after, depth, _STRIDES[kind], **options)
            for here, after, depth, kind in zip(
                channels, channels[1:], depths, config.downsample_type, strict=False
            )
        )
        last = channels[-1]
        self.mid_block = Block(last, last, depths[-1], causal=True, **options)
        self.conv_out = Conv(last, config.latent_channels + 1, causal=True, **options)

    def __call__(self, x: Video) -> Resized:
        """Encodes; the log-variance is repeated for every channel."""
        p = self.patch_size
        x = rearrange(x, "b t (h p) (w q) c -> b t h w (c q p)", p=p, q=p)
        x = self.conv_in(x)
        for block in (*self.down_blocks, self.mid_block):
            x = block(x)
        x = self.conv_out(jax.nn.silu(_rms_norm(x)))
        return jnp.concatenate([x] + [x[..., -1:]] * (x.shape[-1] - 2), axis=-1)


class Decoder(nnx.Module):
    """Latents to pixels."""

    def __init__(self, config: AutoencoderLTXConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        depths = config.decoder_layers_per_block[::-1]
        channels = config.decoder_block_out_channels[::-1][: len(depths) - 1]
        self.patch_size = config.patch_size
        self.conv_in = Conv(config.latent_channels, channels[0], causal=False, **options)
        self.mid_block = Block(channels[0], channels[0], depths[0], causal=False, **options)
        self.up_blocks = nnx.List(
            Block(before, before // 2, depth, causal=False, **options)
            for before, depth in zip(channels, depths[1:], strict=True)
        )
        last = channels[-1] // 2
        outputs = config.out_channels * config.patch_size**2
        self.conv_out = Conv(last, outputs, causal=False, **options)
        self.time_embedder = TimeEmbed(2 * last, **options)
        self.scale_shift_table = nnx.Param(jnp.zeros((2, last), dtype))
        self.timestep_scale_multiplier = nnx.Param(jnp.full((), 1000.0, dtype))

    def __call__(self, latents: Video, time: Float[Array, " b"] | None = None) -> Resized:
        """Decodes; `time` is 0 (clean) to 1 (noise), 0 by default."""
        time = jnp.zeros(latents.shape[0]) if time is None else time
        time = time * self.timestep_scale_multiplier[...]
        x = self.conv_in(latents)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, time)
        table = self.scale_shift_table[...].reshape(1, -1) + self.time_embedder(time)
        shift, scale = jnp.split(table[:, None, None, None], 2, axis=-1)
        x = self.conv_out(jax.nn.silu(_rms_norm(x) * (1 + scale) + shift))
        p = self.patch_size
        return rearrange(x, "b t h w (c q p) -> b t (h p) (w q) c", p=p, q=p)


class AutoencoderKLLTXVideo(Autoencoder):
    """The network; see `nova_jax.autoencoders.convolution.Autoencoder`."""

    def __init__(self, config: AutoencoderLTXConfig, **options: Unpack[Options]):
        self.config, self.latent_channels = config, config.latent_channels
        strides = [_STRIDES[kind] for kind in config.downsample_type]
        self.stride = math.prod(s[0] for s in strides), math.prod(s[1] for s in strides)
        self.stride = self.stride[0], self.stride[1] * config.patch_size
        self.encode_windows = Windows(size=249, step=248, drop=0)
        self.decode_windows = Windows(size=32, step=32, drop=1)
        self.decode_features = 5 * config.decoder_block_out_channels[0] / config.patch_size**2
        self.encoder = Encoder(config, **options)
        self.decoder = Decoder(config, **options)
        self.quant_conv = self.post_quant_conv = None
