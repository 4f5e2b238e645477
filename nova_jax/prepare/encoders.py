"""The frozen parts that clips and captions go through on their way into records."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from nova_jax.autoencoders.interface import Array, VideoCodec
from nova_jax.autoencoders.pixels import to_float
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.data import fingerprints
from nova_jax.data.records import Bucket, Encoding
from nova_jax.errors import NovaError
from nova_jax.text.interface import TextEncoder


class Encoders:
    """The autoencoder and the text encoder that clips and captions go through.

    Args:
      codec, text_encoder: the two.
      source: directory or id that they came from, for the metadata.
      text_length: number of rows that text features are cut at.

    Attributes:
      encoding: what the metadata of records says of them.
    """

    def __init__(
        self, codec: VideoCodec, text_encoder: TextEncoder, *, source: str, text_length: int
    ) -> None:
        self._codec, self._text_encoder = codec, text_encoder
        devices = jax.local_devices()
        mesh = Mesh(np.asarray(devices), ("clips",))
        self._sharding = NamedSharding(mesh, PartitionSpec("clips")) if len(devices) > 1 else None
        scale, shift = codec.scaling
        self.encoding = Encoding(
            source=source,
            channels=codec.latent_channels,
            moments=codec.moments(fingerprints.probe_clip(codec)).shape[-1],
            scale=tuple(map(float, scale)),
            shift=tuple(map(float, shift)),
            codec_probe=fingerprints.probe_codec(codec),
            text_probe=fingerprints.probe_text(text_encoder),
            text_dim=text_encoder.dim,
            text_length=text_length,
        )

    @property
    def devices(self) -> int:
        """How many devices share a batch."""
        return self._sharding.mesh.size if self._sharding else 1

    def latent(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Returns (T, h, w) of the latents of clips of F `frames` of `size` (H, W).

        Raises:
          NovaError: the autoencoder cannot take them whole.
        """
        codec, (height, width) = self._codec, size
        latents = codec.latent_frames(frames)
        if any(side % codec.stride for side in size) or codec.pixel_frames(latents) != frames:
            raise NovaError(
                f"clips of {frames} frames of {height}x{width} do not fit the autoencoder; take "
                f"sides that are multiples of {codec.stride} and {codec.pixel_frames(latents)} "
                "frames, the nearest length it takes whole"
            )
        return latents, height // codec.stride, width // codec.stride

    def bucket_of_latents(self, moments: np.ndarray) -> Bucket:
        """Returns the bucket of a clip that was encoded before, from its moments [T, h, w, M]."""
        latent, stride = moments.shape[:3], self._codec.stride
        return Bucket(
            frames=self._codec.pixel_frames(latent[0]),
            size=(latent[1] * stride, latent[2] * stride),
            latent=latent,
        )

    def start(self, frames: np.ndarray) -> Array:
        """Starts computing the moments of clips, uint8 [b, F, H, W, 3]; does not wait for them."""
        shared = self._sharding if len(frames) % self.devices == 0 else None
        return self._codec.moments(to_float(jax.device_put(frames, shared)))

    def text(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Returns features of each prompt, float16 [L, d] with L as long as the prompt is."""
        unique = sorted(set(prompts) - {""}, key=len)
        found = {"": np.zeros((0, self._text_encoder.dim), np.float16)}
        if unique:
            features, lengths = self._text_encoder.encode(unique, self.encoding.text_length)
            for prompt, rows, length in zip(unique, features, lengths, strict=True):
                found[prompt] = rows[:length].astype(np.float16)
        return [found[prompt] for prompt in prompts]


def load_encoders(source: str, *, text_length: int, dtype: DTypeLike = jnp.float32) -> Encoders:
    """The frozen parts of a model.

    Args:
      source: a checkpoint of any kind, see `nova_jax.checkpoints.open`.
      text_length: rows that features are cut at.
      dtype: type of the parameters and of the computation.

    Raises:
      NovaError: it cannot be opened, or was trained on latents and names no frozen parts.
    """
    checkpoint = open_checkpoint(source)
    codec = checkpoint.load_autoencoder(dtype=dtype)
    text_encoder = checkpoint.load_text_encoder(dtype=dtype)
    if codec is None or text_encoder is None:
        missing = "autoencoder" if codec is None else "text encoder"
        raise NovaError(f"{source} has no {missing}; give a model that has")
    return Encoders(codec, text_encoder, source=source, text_length=text_length)
