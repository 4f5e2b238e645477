"""AutoencoderKL, for pictures (Stable Diffusion's) and for video (Open-Sora Plan's).

One network with two kinds of blocks: a 2D block works on each frame alone, a 3D block convolves
over time too, causally, and normalizes over all frames at once. All blocks 2D is Stable
Diffusion's; Open-Sora Plan's goes from 2D to 3D on the way in and is 3D on the way out.

Attributes are named as diffusers names them, so a released key is the path of a parameter here.
"""

import dataclasses
import itertools
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from nova_jax.autoencoders.convolution import (
    Autoencoder,
    CausalConv,
    Downsample,
    FrameConv,
    GroupNorm,
    Mapped,
    Options,
    Resized,
    Video,
    activated,
    repeat_pixels,
)
from nova_jax.autoencoders.windows import Windows
from nova_jax.kernels.attention import attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
    """What ``vae/config.json`` says, by its names there.

    Attributes:
        in_channels, out_channels: of pixels.
        latent_channels: of latents.
        block_out_channels: channels of each block of the encoder; the decoder goes back.
        layers_per_block: residual blocks of an encoder's block; a decoder's has one more.
        down_block_types, up_block_types: one a block, 2D where there are none; those that end in
            3D are causal in time.
        norm_num_groups: of every group norm.
        mid_block_add_attention: attend in the middle.
        use_quant_conv, use_post_quant_conv: mix the channels of the moments, of the latents.
        act_fn: the one activation there is, by its two names.
        double_z: the encoder gives mean and log-variance; if not, latents.
        scaling_factor, shift_factor: (z − shift)·scale is what the transformer sees.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    down_block_types: tuple[str, ...] | None = None
    up_block_types: tuple[str, ...] | None = None
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    act_fn: Literal["silu", "swish"] = "silu"
    double_z: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None

    def temporal(self, types: tuple[str, ...] | None) -> tuple[bool, ...]:
        """Which blocks convolve over time."""
        blocks = len(self.block_out_channels)
        return tuple(name.endswith("3D") for name in types or ())[:blocks] or (False,) * blocks


class ResnetBlock(nnx.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), with a 1×1 convolution where channels change."""

    def __init__(
        self, inputs: int, outputs: int, groups: int, *, temporal: bool, **options: Unpack[Options]
    ):
        conv = CausalConv if temporal else FrameConv
        self.norm1 = GroupNorm(inputs, groups, per_frame=not temporal, **options)
        self.conv1 = conv(inputs, outputs, **options)
        self.norm2 = GroupNorm(outputs, groups, per_frame=not temporal, **options)
        self.conv2 = conv(outputs, outputs, **options)
        self.conv_shortcut = conv(inputs, outputs, 1, **options) if inputs != outputs else None

    def __call__(self, x: Video) -> Mapped:
        """Maps channels."""
        u = self.conv1(x, activated(self.norm1, x))
        u = self.conv2(u, activated(self.norm2, u))
        return u + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
    """x + self-attention with one head among the pixels of a frame, frame after frame."""

    def __init__(self, channels: int, groups: int, *, temporal: bool, **options: Unpack[Options]):
        self.group_norm = GroupNorm(channels, groups, per_frame=not temporal, **options)
        self.to_q, self.to_k, self.to_v, out = (
            nnx.Linear(channels, channels, param_dtype=options["dtype"], **options)
            for _ in range(4)
        )
        self.to_out = nnx.List([out])

    def __call__(self, x: Video) -> Video:
        """Attends; adds to x."""
        pixels = rearrange(self.group_norm(x), "b t h w c -> (b t) (h w) 1 c")

        def attend(frame: Float[Array, "n 1 c"]) -> Float[Array, "n 1 c"]:
            query, key, value = (to(frame)[None] for to in (self.to_q, self.to_k, self.to_v))
            return self.to_out[0](attention(query, key, value)[0])

        # One frame at a time: the weights of N pixels are N² numbers.
        return x + jax.lax.map(attend, pixels).reshape(x.shape)


class Upsample(nnx.Module):
    """Doubles rows and columns, and all frames but the first if its kernel spans several."""

    def __init__(self, channels: int, frames: int, *, temporal: bool, **options: Unpack[Options]):
        self.frames = frames
        self.conv = (
            CausalConv(channels, channels, (frames, 3, 3), **options)
            if temporal
            else FrameConv(channels, channels, **options)
        )

    def __call__(self, x: Video) -> Resized:
        """Resizes, then convolves."""
        if self.frames == 1:
            return self.conv(x, lambda frames: repeat_pixels(frames, 2))
        b, t, h, w, c = x.shape
        first = jax.image.resize(x[:, :1], (b, 1, 2 * h, 2 * w, c), "linear")
        later = jax.image.resize(x[:, 1:], (b, 2 * t - 2, 2 * h, 2 * w, c), "linear")
        return self.conv(jnp.concatenate([first, later], axis=1))


class DownBlock(nnx.Module):
    """Residual blocks, then half the size."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: AutoencoderKLConfig,
        *,
        temporal: bool,
        downsample: bool | None,
        **options: Unpack[Options],
    ):
        """`downsample`: whether the downsampler spans time; None for none."""
        groups = config.norm_num_groups
        self.resnets = nnx.List(
            ResnetBlock(outputs if i else inputs, outputs, groups, temporal=temporal, **options)
            for i in range(config.layers_per_block)
        )
        self.downsamplers = nnx.List(
            [] if downsample is None else [Downsample(outputs, temporal=downsample, **options)]
        )

    def __call__(self, x: Video) -> Resized:
        """Goes one level down."""
        for layer in itertools.chain(self.resnets, self.downsamplers):
            x = layer(x)
        return x


class MidBlock(nnx.Module):
    """A residual block, attention, a residual block."""

    def __init__(
        self,
        channels: int,
        config: AutoencoderKLConfig,
        *,
        temporal: bool,
        **options: Unpack[Options],
    ):
        groups = config.norm_num_groups
        self.resnets = nnx.List(
            ResnetBlock(channels, channels, groups, temporal=temporal, **options) for _ in range(2)
        )
        self.attentions = nnx.List(
            [Attention(channels, groups, temporal=temporal, **options)]
            if config.mid_block_add_attention
            else []
        )

    def __call__(self, x: Video) -> Video:
        """Maps features to features."""
        first, second = self.resnets
        for layer in (first, *self.attentions, second):
            x = layer(x)
        return x


class UpBlock(nnx.Module):
    """Residual blocks, then twice the size."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: AutoencoderKLConfig,
        *,
        temporal: bool,
        upsample: int | None,
        **options: Unpack[Options],
    ):
        """`upsample`: frames that the upsampler's kernel spans; None for no upsampler."""
        groups = config.norm_num_groups
        self.resnets = nnx.List(
            ResnetBlock(outputs if i else inputs, outputs, groups, temporal=temporal, **options)
            for i in range(config.layers_per_block + 1)
        )
        self.upsamplers = nnx.List(
            [] if upsample is None else [Upsample(outputs, upsample, temporal=temporal, **options)]
        )

    def __call__(self, x: Video) -> Resized:
        """Goes one level up."""
        for layer in itertools.chain(self.resnets, self.upsamplers):
            x = layer(x)
        return x


class Encoder(nnx.Module):
    """Pixels to the moments of latents; the first convolution is 2D whatever the blocks are."""

    def __init__(self, config: AutoencoderKLConfig, **options: Unpack[Options]):
        channels, temporal = config.block_out_channels, config.temporal(config.down_block_types)
        self.conv_in = FrameConv(config.in_channels, channels[0], **options)
        # A downsampler is of the kind of the block that it leads to.
        self.down_blocks = nnx.List(
            DownBlock(before, here, config, temporal=kind, downsample=next_kind, **options)
            for before, here, kind, next_kind in zip(
                (channels[0], *channels), channels, temporal, (*temporal[1:], None), strict=False
            )
        )
        last, spans = channels[-1], temporal[-1]
        self.mid_block = MidBlock(last, config, temporal=spans, **options)
        groups = config.norm_num_groups
        self.conv_norm_out = GroupNorm(last, groups, per_frame=not spans, **options)
        conv = CausalConv if spans else FrameConv
        self.conv_out = conv(last, (1 + config.double_z) * config.latent_channels, **options)

    def __call__(self, x: Video) -> Resized:
        """Encodes."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(x, activated(self.conv_norm_out, x))


class Decoder(nnx.Module):
    """Latents to pixels; what is not an up block is of the kind of the last one."""

    def __init__(self, config: AutoencoderKLConfig, **options: Unpack[Options]):
        channels, temporal = config.block_out_channels[::-1], config.temporal(config.up_block_types)
        spans, groups = temporal[-1], config.norm_num_groups
        conv = CausalConv if spans else FrameConv
        self.conv_in = conv(config.latent_channels, channels[0], **options)
        self.mid_block = MidBlock(channels[0], config, temporal=spans, **options)
        # The last of the upsamplers leaves the number of frames as it is.
        last = len(channels) - 1
        frames = [3 if kind and i < last - 1 else 1 for i, kind in enumerate(temporal)]
        self.up_blocks = nnx.List(
            UpBlock(
                before,
                here,
                config,
                temporal=temporal[i],
                upsample=None if i == last else frames[i],
                **options,
            )
            for i, (before, here) in enumerate(itertools.pairwise((channels[0], *channels)))
        )
        self.conv_norm_out = GroupNorm(channels[-1], groups, per_frame=not spans, **options)
        self.conv_out = conv(channels[-1], config.out_channels, **options)

    def __call__(self, x: Video) -> Resized:
        """Decodes."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(x, activated(self.conv_norm_out, x))


class AutoencoderKL(Autoencoder):
    """The network; see `nova_jax.autoencoders.convolution.Autoencoder`."""

    def __init__(self, config: AutoencoderKLConfig, **options: Unpack[Options]):
        temporal = config.temporal(config.down_block_types)
        self.config, self.latent_channels = config, config.latent_channels
        self.stride = 2 ** sum(temporal[1:]), 2 ** (len(temporal) - 1)
        alone = Windows(size=1, step=1, drop=0)
        self.encode_windows = Windows(size=17, step=16, drop=1) if any(temporal) else alone
        self.decode_windows = Windows(size=5, step=4, drop=1) if any(temporal) else alone
        # The last upsampler's channels are the most there are at the size of pixels.
        self.decode_features = 2.3 * config.block_out_channels[:2][-1]
        self.encoder = Encoder(config, **options)
        self.decoder = Decoder(config, **options)
        conv = CausalConv if config.temporal(config.up_block_types)[-1] else FrameConv
        moments, channels = (1 + config.double_z) * config.latent_channels, config.latent_channels
        self.quant_conv = conv(moments, moments, 1, **options) if config.use_quant_conv else None
        self.post_quant_conv = (
            conv(channels, channels, 1, **options) if config.use_post_quant_conv else None
        )
