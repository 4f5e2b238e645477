"""Codecs and text encoders by what a config says of them: ``{"type": ..., settings}``.

    {"type": "pixels", "shift": -0.9, "scale": 2.3}
    {"type": "hashed_words", "dim": 128}
    {"type": "released", "source": "BAAI/nova-d48w1024-osp480"}

A released part is read from a directory in the released layout, or an id on the Hugging Face hub;
a source that starts with ``./`` lies in the directory of the config itself.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nova_jax.autoencoders.interface import Settings, VideoCodec
from nova_jax.autoencoders.pixels import PixelCodec
from nova_jax.checkpoints.diffusers import load_autoencoder, load_text_encoder, resolve
from nova_jax.errors import NovaError
from nova_jax.text.hashed_words import HashedTextEncoder
from nova_jax.text.interface import TextEncoder

RELEASED = "released"
CODECS: dict[str, type[Settings]] = {PixelCodec.TYPE: PixelCodec}
TEXT_ENCODERS: dict[str, type[Settings]] = {HashedTextEncoder.TYPE: HashedTextEncoder}


def codec_from_dict(settings: Mapping[str, Any], base: Path | None = None) -> VideoCodec:
    """Builds or loads a codec.

    Args:
      settings: what a config says of it.
      base: directory of the config, for sources that start with ``./``.

    Raises:
      NovaError: no such type, a setting it does not know, or a source that cannot be read.
    """

    def load(directory: Path) -> VideoCodec:
        return load_autoencoder(directory / "vae")

    return _build("codec", CODECS, load, settings, base)


def text_encoder_from_dict(settings: Mapping[str, Any], base: Path | None = None) -> TextEncoder:
    """Builds or loads a text encoder; see `codec_from_dict`."""
    return _build("text encoder", TEXT_ENCODERS, load_text_encoder, settings, base)


def released_source(settings: Mapping[str, Any], base: Path | None = None) -> str | None:
    """Where a released part comes from: a directory or an id; None for other parts."""
    if settings.get("type") != RELEASED:
        return None
    source = str(settings["source"])
    return str(base / source) if base is not None and source.startswith("./") else source


def _build(
    kind: str,
    types: Mapping[str, Any],
    load: Callable[[Path], Any],
    settings: Mapping[str, Any],
    base: Path | None,
) -> Any:
    rest = dict(settings)
    name = rest.pop("type", None)
    if name == RELEASED:
        known = ["source"]
    elif name in types:
        known = [field.name for field in dataclasses.fields(types[name])]
    else:
        choices = ", ".join([*types, RELEASED])
        raise NovaError(f"unknown {kind} type {name!r}; choose one of {choices}")
    for key in rest:
        if key not in known:
            raise NovaError(
                f"unknown setting {key!r} of {kind} {name!r}; it takes {', '.join(known)}"
            )
    if name != RELEASED:
        return types[name].from_dict(rest)
    if not isinstance(rest.get("source"), str):
        raise NovaError(f"a released {kind} needs a source: a directory or an id on the hub")
    return load(resolve(released_source(settings, base) or ""))
