"""Positions and conditions: sine-cosine and rotary positions, text, motion and class tokens.

Dimensions: B samples, L text tokens, H·W a token grid, D width, d head channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from nova_jax.models.layers import Buffer, LayerNorm, Projector, linear

FREQUENCY_CHANNELS = 256  # channels of the sinusoids of time, motion and diffusion step
TEXT_BUFFER_ROWS = 512
DEFAULT_FLOW, DEFAULT_FPS = 5.0, 12.0  # motion score and frame rate where none is given


def sinusoid(values: Float[Array, "*b"]) -> tuple[Float[Array, "*b 128"], Float[Array, "*b 128"]]:
    """(sin, cos) of value · 10000^(−i/128) in float32, i < 128."""
    half = FREQUENCY_CHANNELS // 2
    frequencies = 10000.0 ** (-np.arange(half, dtype=np.float32) / half)
    angles = values[..., None].astype(jnp.float32) * frequencies.reshape((1,) * values.ndim + (-1,))
    return jnp.sin(angles), jnp.cos(angles)


def space_embedding(
    grid: tuple[int, int], width: int
) -> Float[np.ndarray, "{grid[0]*grid[1]} {width}"]:
    """Fixed sine-cosine embedding of a grid of tokens: [sin x, cos x, sin y, cos y]."""
    quarter = width // 4
    frequencies = 1.0 / 10000.0 ** (np.arange(quarter, dtype=np.float32) / quarter)
    y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1).astype(np.float32)
    parts = [np.sin(x * frequencies), np.cos(x * frequencies)]
    parts += [np.sin(y * frequencies), np.cos(y * frequencies)]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def grid_positions(grid: tuple[int, int]) -> Int[np.ndarray, "{grid[0]*grid[1]} 3"]:
    """(t, y, x) of a grid's tokens, row-major, with t = 0."""
    y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1)
    return np.stack([np.zeros_like(y), y, x], axis=-1).astype(np.int32)


def rotary_angles(positions: Int[Array, "*b n 3"], head_dim: int) -> Float[Array, "*b n r"]:
    """R = d/2 angles of the 3D rotary embedding, t channels first, then y, then x.

    A part of r channels turns its j-th pair by position · 10000^(−2j/r); t has d//8 channels,
    y and x half of the rest each.
    """
    parts = (head_dim // 8, *((head_dim - head_dim // 8) // 2,) * 2)
    angles = []
    for axis, size in enumerate(parts):
        frequencies = 1.0 / 10000.0 ** (np.arange(0, size, 2, dtype=np.float32) / size)
        pos = positions[..., axis : axis + 1].astype(jnp.float32)
        angles.append(pos * frequencies.reshape((1,) * (pos.ndim - 1) + (-1,)))
    return jnp.concatenate(angles, axis=-1)


def apply_rotary(
    x: Float[Array, "b n k d"], angles: Float[Array, "#b n d/2"]
) -> Float[Array, "b n k d"]:
    """Rotates adjacent channel pairs of queries or keys (k heads) by their token's angles."""
    cos = jnp.cos(angles)[:, :, None].astype(x.dtype)
    sin = jnp.sin(angles)[:, :, None].astype(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


class TimeEmbed(nnx.Module):
    """Embedding of the frame index, interpolated into the base length (sine-cosine models)."""

    def __init__(self, width: int, base_frames: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.base_frames = base_frames
        self.projector = Projector(FREQUENCY_CHANNELS, width, width, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)

    def __call__(self, frames: int) -> Float[Array, "{frames} d"]:
        """One row a frame of a video of `frames` latent frames."""
        # Divided in this order, in float32, as the release does.
        step = np.float32(frames / self.base_frames)
        positions = jnp.asarray(np.arange(frames, dtype=np.float32) / step)
        return self.norm(self.projector(jnp.concatenate(sinusoid(positions), axis=-1)))


class MotionEmbed(nnx.Module):
    """Two condition tokens: motion score and frames per second."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.flow = Projector(FREQUENCY_CHANNELS, width, width, dtype=dtype, rngs=rngs)
        self.fps = Projector(FREQUENCY_CHANNELS, width, width, dtype=dtype, rngs=rngs)

    def __call__(self, flow: Float[Array, " b"], fps: Float[Array, " b"]) -> Float[Array, "b 2 d"]:
        """Embeds motion scores (mean optical flow) and frame rates, in this order."""
        flow, fps = (jnp.concatenate(sinusoid(values), axis=-1) for values in (flow, fps))
        return jnp.stack([self.flow(flow), self.fps(fps)], axis=1)


class TextEmbed(nnx.Module):
    """Projects prompt features; rows past a prompt's end come from a fixed random buffer."""

    def __init__(self, text_dim: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.buffer = Buffer(0.02 * jax.random.normal(rngs.params(), (TEXT_BUFFER_ROWS, text_dim)))
        self.projection = linear(text_dim, width, (None, "embed"), dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)

    def __call__(
        self, text: Float[Array, "b l e"], length: Int[Array, " b"]
    ) -> Float[Array, "b l d"]:
        """Condition tokens of prompts of `length` ≤ L rows; length 0 is unconditional."""
        rows = text.shape[1]
        given = jnp.arange(rows)[None, :, None] < length[:, None, None]
        return self.norm(self.projection(jnp.where(given, text, self.buffer[None, :rows])))


class LabelEmbed(nnx.Module):
    """One condition token from a class label; label `num_classes` means "no class"."""

    def __init__(self, num_classes: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        table = 0.02 * jax.random.normal(rngs.params(), (num_classes + 1, width))
        self.table = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)

    def __call__(self, label: Int[Array, " b"]) -> Float[Array, "b 1 d"]:
        """Embeds labels in 0..num_classes."""
        return self.norm(self.table[label][:, None])
