"""Codecs and text encoders, each a dataclass of its settings, by the name they are saved under."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nova_jax.codecs.hashed_text import HashedTextEncoder
from nova_jax.codecs.interfaces import TextEncoder, VideoCodec
from nova_jax.codecs.pixels import PixelCodec
from nova_jax.errors import NovaError

CODECS: dict[str, type[VideoCodec]] = {PixelCodec.TYPE: PixelCodec}
TEXT_ENCODERS: dict[str, type[TextEncoder]] = {HashedTextEncoder.TYPE: HashedTextEncoder}


def codec_from_dict(settings: Mapping[str, Any]) -> VideoCodec:
    """Builds a codec from what its `to_dict` returned.

    Raises:
      NovaError: no such type, or a setting it does not know.
    """
    return _build("codec", CODECS, settings)


def text_encoder_from_dict(settings: Mapping[str, Any]) -> TextEncoder:
    """Builds a text encoder from what its `to_dict` returned.

    Raises:
      NovaError: no such type, or a setting it does not know.
    """
    return _build("text encoder", TEXT_ENCODERS, settings)


def _build(kind: str, types: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    rest = dict(settings)
    name = rest.pop("type", None)
    if name not in types:
        raise NovaError(f"unknown {kind} type {name!r}; choose one of {', '.join(types)}")
    known = [field.name for field in dataclasses.fields(types[name])]
    for key in rest:
        if key not in known:
            raise NovaError(
                f"unknown setting {key!r} of {kind} {name!r}; it takes {', '.join(known)}"
            )
    return types[name].from_dict(rest)
