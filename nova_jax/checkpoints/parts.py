"""Codecs and text encoders by what a config says of them: ``{"type": ..., settings}``.

    {"type": "pixels", "shift": -0.9, "scale": 2.3}
    {"type": "hashed_words", "dim": 128}
    {"type": "released", "source": "BAAI/nova-d48w1024-osp480"}

The types are those of `nova_jax.autoencoders.registry` and `nova_jax.text.registry`, which are
nothing but their settings, and "released": read from a directory in the released layout, or an id
on the Hugging Face hub. A source that starts with ``./`` lies in the directory of the config.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.registry import CODECS
from nova_jax.checkpoints.diffusers import load_autoencoder, load_text_encoder
from nova_jax.checkpoints.hub import locate
from nova_jax.config import from_dict
from nova_jax.text.interface import TextEncoder
from nova_jax.text.registry import TEXT_ENCODERS


@dataclasses.dataclass(frozen=True)
class ReleasedPart:
    """A part of a released model, whose directory or id on the hub is the source."""

    type: ClassVar[str] = "released"
    source: str

    def directory(self, base: Path | None) -> str:
        """The source, where a config in the directory `base` means it."""
        here = self.source.startswith("./")
        return str(base / self.source) if base is not None and here else self.source


def codec_from_dict(
    settings: Mapping[str, Any], base: Path | None = None, **options: Any
) -> VideoCodec:
    """Builds or loads a codec.

    Args:
        settings: what a config says of it.
        base: directory of the config, for sources that start with ``./``.
        **options: type and mesh of released parts, see `diffusers.load_autoencoder`.

    Raises:
        NovaError: no such type, a setting it does not know, or a source that cannot be read.
    """
    part: Any = from_dict({**CODECS, ReleasedPart.type: ReleasedPart}, settings, "codec")
    if not isinstance(part, ReleasedPart):
        return part
    return load_autoencoder(Path(locate(part.directory(base), "vae")) / "vae", **options)


def text_encoder_from_dict(
    settings: Mapping[str, Any], base: Path | None = None, **options: Any
) -> TextEncoder:
    """Builds or loads a text encoder; see `codec_from_dict`."""
    part: Any = from_dict(
        {**TEXT_ENCODERS, ReleasedPart.type: ReleasedPart}, settings, "text_encoder"
    )
    if not isinstance(part, ReleasedPart):
        return part
    return load_text_encoder(Path(locate(part.directory(base), "text_encoder")), **options)


def released_source(settings: Mapping[str, Any], base: Path | None = None) -> str | None:
    """Where a released part comes from: a directory or an id; None for other parts."""
    if settings.get("type") != ReleasedPart.type:
        return None
    return from_dict({ReleasedPart.type: ReleasedPart}, settings, "codec").directory(base)
