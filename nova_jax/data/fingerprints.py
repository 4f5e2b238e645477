"""Which autoencoder and which text encoder: what they make of fixed inputs, to be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_float
from nova_jax.text.interface import TextEncoder


def probe_codec(codec: VideoCodec) -> tuple[float, ...]:
    """What a codec makes of a fixed clip: says which one it is, whatever its files and types are.

    Numbers, and not a checksum of the weights, since the same weights in half precision, sharded or
    converted are the same autoencoder.
    """
    mean, deviation = (np.asarray(part, np.float32) for part in codec.posterior(probe_clip(codec)))
    return _digest(np.stack([mean, deviation]))


def probe_clip(codec: VideoCodec) -> np.ndarray:
    """The clip that `probe_codec` shows a codec, float32 [1, F, H, W, 3]."""
    side, frames = 4 * codec.stride, 5 if codec.latent_frames(5) > 1 else 1
    ramp = np.linspace(0, 6 * math.pi, frames * side * side * 3).reshape(1, frames, side, side, 3)
    pixels = (127.5 + 127.5 * np.sin(ramp * ramp / 7)).astype(np.uint8)
    return np.asarray(to_float(pixels))


def probe_text(encoder: TextEncoder) -> tuple[float, ...]:
    """What a text encoder makes of a fixed prompt, see `probe_codec`."""
    text, _ = encoder.encode(["Two red foxes, 3 owls & an old blue door."], 16)
    return _digest(text)


def _digest(values: np.ndarray, size: int = 64) -> tuple[float, ...]:
    values = values.ravel()
    return tuple(float(f"{v:.5g}") for v in values[:: max(len(values) // size, 1)][:size])


def same_probe(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two probes are of one thing; half precision makes a hundredth of difference."""
    if len(one) != len(other):
        return False
    a, b = np.asarray(one), np.asarray(other)
    return bool(np.linalg.norm(a - b) <= 0.05 * np.linalg.norm(a))
