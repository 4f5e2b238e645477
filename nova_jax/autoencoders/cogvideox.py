"""CogVideoX's autoencoder (arXiv 2408.06072), as NOVA uses it.

Causal 3D convolutions throughout. The decoder's group norms are scaled and shifted by the latents
(spatially adaptive normalization), resized to the features. Time is halved by averaging pairs of
frames and doubled by repeating them; the first frame stands alone.

Attributes are named as diffusers names them, but for wrappers around a single layer.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
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
    repeat_pixels,
)
from nova_jax.autoencoders.windows import Windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderCogVideoXConfig:
    """What ``vae/config.json`` says, by its names there; see `AutoencoderKLConfig`."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    layers_per_block: int = 3
    norm_num_groups: int = 32
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    act_fn: Literal["silu", "swish"] = "silu"
    scaling_factor: float = 0.7
    shift_factor: float | None = None


class AdaptiveNorm(GroupNorm):
    """Group norm over a clip, then scaled and shifted by the latents where there are some."""

    def __init__(
        self,
        channels: int,
        config: AutoencoderCogVideoXConfig,
        *,
        by_latents: bool,
        **options: Unpack[Options],
    ):
        super().__init__(channels, config.norm_num_groups, per_frame=False, **options)
        latents = config.latent_channels
        self.conv_y = CausalConv(latents, channels, 1, **options) if by_latents else None
        self.conv_b = CausalConv(latents, channels, 1, **options) if by_latents else None

    def activated(self, x: Video, latents: Resized | None) -> Video:
        """SiLU of x, normalized and modulated."""
        x = self(x)
        if latents is not None and self.conv_y is not None and self.conv_b is not None:
            latents = _repeat_to(latents, x.shape[1:4])
            x = x * self.conv_y(latents) + self.conv_b(latents)
        return jax.nn.silu(x)


def _repeat_to(
    latents: Video, shape: tuple[int, ...]
) -> Float[Array, "b {shape[0]} {shape[1]} {shape[2]} c"]:
    """Repeats latents to (frames, rows, columns); the first frame stays alone."""
    frames, rows, _ = shape
    x = repeat_pixels(latents, rows // latents.shape[2])
    if frames == latents.shape[1]:
        return x
    later = x[:, 1:].repeat((frames - 1) // (latents.shape[1] - 1), 1)
    return jnp.concatenate([x[:, :1], later], axis=1)


class ResnetBlock(nnx.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), with a 1×1×1 convolution where channels change."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: AutoencoderCogVideoXConfig,
        *,
        by_latents: bool,
        **options: Unpack[Options],
    ):
        self.norm1 = AdaptiveNorm(inputs, config, by_latents=by_latents, **options)
        self.conv1 = CausalConv(inputs, outputs, **options)
        self.norm2 = AdaptiveNorm(outputs, config, by_latents=by_latents, **options)
        self.conv2 = CausalConv(outputs, outputs, **options)
        self.conv_shortcut = (
            CausalConv(inputs, outputs, 1, **options) if inputs != outputs else None
        )

    def __call__(self, x: Video, latents: Resized | None) -> Mapped:
        """Maps channels."""
        u = self.conv1(self.norm1.activated(x, latents))
        u = self.conv2(self.norm2.activated(u, latents))
        return u + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class TimeDownsample(Downsample):
    """Averages pairs of frames after the first, where there are any, then halves rows, columns."""

    def __init__(self, channels: int, *, frames: bool, **options: Unpack[Options]):
        super().__init__(channels, temporal=False, **options)
        self.frames = frames

    def __call__(self, x: Video) -> Resized:
        """Resizes."""
        if self.frames and x.shape[1] > 1:
            pairs = (x.shape[1] - 1) // 2
            even, odd = x[:, 1 : 1 + 2 * pairs : 2], x[:, 2 : 2 + 2 * pairs : 2]
            x = jnp.concatenate([x[:, :1], (even + odd) / 2], axis=1)
        return super().__call__(x)


class Upsample(nnx.Module):
    """Repeats frames after the first, rows and columns, then convolves each frame."""

    def __init__(self, channels: int, *, frames: bool, **options: Unpack[Options]):
        self.conv = FrameConv(channels, channels, **options)
        self.frames = frames

    def __call__(self, x: Video) -> Resized:
        """Resizes."""
        if self.frames:
            x = jnp.concatenate([x[:, :1], x[:, 1:].repeat(2, axis=1)], axis=1)
        return self.conv(repeat_pixels(x, 2))


class Block(nnx.Module):
    """Residual blocks, then another size if a resampler is given."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        depth: int,
        config: AutoencoderCogVideoXConfig,
        *,
        by_latents: bool,
        downsamplers: Sequence[TimeDownsample] = (),
        upsamplers: Sequence[Upsample] = (),
        **options: Unpack[Options],
    ):
        self.resnets = nnx.List(
            ResnetBlock(outputs if i else inputs, outputs, config, by_latents=by_latents, **options)
            for i in range(depth)
        )
        self.downsamplers = nnx.List(downsamplers)
        self.upsamplers = nnx.List(upsamplers)

    def __call__(self, x: Video, latents: Resized | None = None) -> Resized:
        """Goes one level down or up."""
        for resnet in self.resnets:
            x = resnet(x, latents)
        for resample in itertools.chain(self.downsamplers, self.upsamplers):
            x = resample(x)
        return x


class Encoder(nnx.Module):
    """Pixels to the moments of latents; the first two levels halve time too."""

    def __init__(self, config: AutoencoderCogVideoXConfig, **options: Unpack[Options]):
        channels, last = config.block_out_channels, len(config.block_out_channels) - 1
        self.conv_in = CausalConv(config.in_channels, channels[0], **options)
        self.down_blocks = nnx.List(
            Block(
                before,
                here,
                config.layers_per_block,
                config,
                by_latents=False,
                downsamplers=[TimeDownsample(here, frames=i < 2, **options)] if i < last else [],
                **options,
            )
            for i, (before, here) in enumerate(itertools.pairwise((channels[0], *channels)))
        )
        self.mid_block = Block(channels[-1], channels[-1], 2, config, by_latents=False, **options)
        self.norm_out = AdaptiveNorm(channels[-1], config, by_latents=False, **options)
        self.conv_out = CausalConv(channels[-1], 2 * config.latent_channels, **options)

    def __call__(self, x: Video) -> Resized:
        """Encodes."""
        x = self.conv_in(x)
        for block in (*self.down_blocks, self.mid_block):
            x = block(x)
        return self.conv_out(self.norm_out.activated(x, None))


class Decoder(nnx.Module):
    """Latents to pixels; the first two levels double time too."""

    def __init__(self, config: AutoencoderCogVideoXConfig, **options: Unpack[Options]):
        channels, last = config.block_out_channels[::-1], len(config.block_out_channels) - 1
        self.conv_in = CausalConv(config.latent_channels, channels[0], **options)
        self.mid_block = Block(channels[0], channels[0], 2, config, by_latents=True, **options)
        self.up_blocks = nnx.List(
            Block(
                before,
                here,
                config.layers_per_block + 1,
                config,
                by_latents=True,
                upsamplers=[Upsample(here, frames=i < 2, **options)] if i < last else [],
                **options,
            )
            for i, (before, here) in enumerate(itertools.pairwise((channels[0], *channels)))
        )
        self.norm_out = AdaptiveNorm(channels[-1], config, by_latents=True, **options)
        self.conv_out = CausalConv(channels[-1], config.out_channels, **options)

    def __call__(self, latents: Video) -> Resized:
        """Decodes."""
        x = self.conv_in(latents)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, latents)
        return self.conv_out(self.norm_out.activated(x, latents))


class AutoencoderKLCogVideoX(Autoencoder):
    """The network; see `nova_jax.autoencoders.convolution.Autoencoder`."""

    def __init__(self, config: AutoencoderCogVideoXConfig, **options: Unpack[Options]):
        self.config, self.latent_channels = config, config.latent_channels
        self.stride = 4, 2 ** (len(config.block_out_channels) - 1)
        self.encode_windows = Windows(size=17, step=16, drop=0)
        self.decode_windows = Windows(size=5, step=5, drop=1)
        # At the size of pixels: features, and what the latents scale and shift them by, which XLA
        # computes for all norms beforehand.
        last, before = config.block_out_channels[0], config.block_out_channels[:2][-1]
        self.decode_features = 6 * before + 4 * (config.layers_per_block + 1) * last
        self.encoder = Encoder(config, **options)
        self.decoder = Decoder(config, **options)
        moments, channels = 2 * config.latent_channels, config.latent_channels
        self.quant_conv = (
            CausalConv(moments, moments, 1, **options) if config.use_quant_conv else None
        )
        self.post_quant_conv = (
            CausalConv(channels, channels, 1, **options) if config.use_post_quant_conv else None
        )
