"""Data that others prepared: records of the PyTorch release, and datasets of tensorflow-datasets.

    codewithgpu:DIR     what the PyTorch release trains on; its latents are taken as they are
    tfds://NAME         a dataset that tensorflow-datasets has on disk
    tfds://DIR          one in this directory, ``tfds:///data/mine/1.0.0``

Both give rows for `nova_jax.prepare.preparation.prepare` and a function that makes clips of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from nova_jax.config import Checked, FrameRate
from nova_jax.errors import NovaError
from nova_jax.models.embeddings import DEFAULT_FLOW, DEFAULT_FPS
from nova_jax.prepare.clips import ArrayFrame, Clip, ClipConfig, Unusable, cut_clips, picture_clip
from nova_jax.prepare.manifest import Item

CODEWITHGPU, TFDS = "codewithgpu:", "tfds://"

Read = Callable[[Item, ClipConfig], list[Clip]]


# ---- Records of the PyTorch release ------------------------------------------------------------


def open_codewithgpu(directory: Path) -> tuple[list[Item], Read]:
    """Records that codewithgpu wrote: METADATA, and ``00000.index`` with ``00000.data``, ...

    A record has "moments" (float16) of "shape" [2C, h, w] or [2C, T, h, w], "caption", and perhaps
    "text" (the short caption), "flow" and "label". Captions that are features already are refused:
    what they say is not known. The package of that name is not needed; it cannot be imported next
    to a protobuf newer than 3.20.

    Raises:
      NovaError: it holds something else.
    """
    try:
        features = json.loads((directory / "METADATA").read_text(encoding="utf-8"))["features"]
        places: list[tuple[Path, int, int]] = []
        for index in sorted(directory.glob("*.index")):
            for line in index.read_text().splitlines():
                offset, size = map(int, line.split())
                places.append((index.with_suffix(".data"), offset, size))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NovaError(f"{directory} holds no records of codewithgpu ({error})") from error
    if "moments" not in features or "shape" not in features:
        raise NovaError(
            f"{directory} has the fields {', '.join(features)}; moments and shape are needed"
        )
    if any(isinstance(features.get(name), dict) for name in ("caption", "text")):
        raise NovaError(f"{directory} holds captions as features; it must hold them as words")

    def read(item: Item, config: ClipConfig) -> list[Clip]:
        path, offset, size = places[int(item.name.rpartition(":")[2])]
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                record = dict(_feature_map().FromString(file.read(size)).container)
            shape = [part.i for part in record["shape"].feature_list.container]
            values = np.frombuffer(record["moments"].s, np.float16).reshape(shape)
            words = {n: record[n].s.decode() for n in ("caption", "text") if n in record}
        except (OSError, ValueError, KeyError, DecodeError) as error:
            raise Unusable(f"the record is damaged: {error}") from error
        if values.ndim not in (3, 4):
            raise Unusable(f"moments of shape {shape}")
        moments = values[:, None] if values.ndim == 3 else values
        video = moments.shape[1] > 1
        label = record["label"].i if "label" in record else -1
        caption = " ".join(words.get("caption", "").split())
        if not caption and label < 0:
            raise Unusable("no caption")
        flow = record["flow"].f if "flow" in record else DEFAULT_FLOW
        short = " ".join(words.get("text", "").split())
        return [
            Clip(
                item=dataclasses.replace(item, caption=caption, short_caption=short, label=label),
                frames=np.zeros((0, 0, 0, 3), np.uint8),
                moments=np.ascontiguousarray(moments.transpose(1, 2, 3, 0)),
                fps=DEFAULT_FPS if video else 0.0,
                flow=flow if video else 0.0,
                source_size=(0, 0),
                phash=0,
            )
        ]

    return _items(directory, directory.name, len(places)), read


def _items(path: Path, name: str, count: int) -> list[Item]:
    """Rows by number; what they hold shows when they are read."""
    return [Item(path=path, name=f"{name}:{n}", caption="") for n in range(count)]


#: What codewithgpu publishes of its messages.
_MESSAGES = """
name: "codewithgpu.proto" package: "nova_jax_codewithgpu" syntax: "proto3"
message_type {
  name: "Feature"
  field { name: "s" number: 1 label: LABEL_OPTIONAL type: TYPE_BYTES oneof_index: 0 }
  field { name: "f" number: 2 label: LABEL_OPTIONAL type: TYPE_FLOAT oneof_index: 0 }
  field { name: "i" number: 3 label: LABEL_OPTIONAL type: TYPE_INT64 oneof_index: 0 }
  field { name: "feature_list" number: 4 label: LABEL_OPTIONAL type_name: "FeatureList"
          oneof_index: 0 }
  field { name: "feature_map" number: 5 label: LABEL_OPTIONAL type_name: "FeatureMap"
          oneof_index: 0 }
  oneof_decl { name: "kind" }
}
message_type {
  name: "FeatureList"
  field { name: "container" number: 1 label: LABEL_REPEATED type_name: "Feature" }
}
message_type {
  name: "FeatureMap"
  field { name: "container" number: 1 label: LABEL_REPEATED type_name: "ContainerEntry" }
  nested_type {
    name: "ContainerEntry"
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type_name: "Feature" }
    options { map_entry: true }
  }
}
"""


@functools.cache
def _feature_map() -> Any:
    """The message type of a record."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_MESSAGES, descriptor_pb2.FileDescriptorProto()))
    name = "nova_jax_codewithgpu.FeatureMap"
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


# ---- Datasets of tensorflow-datasets -----------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDSConfig(Checked):
    """Which fields of a dataset are what.

    Attributes:
      split: of the dataset, also "train[:10%]".
      pixels: field of a video, [F, H, W, 3], or of a picture, [H, W, 3].
      caption: field of the caption; None where there are labels alone.
      short_caption, label, fps: their fields; None for none.
      default_fps: of videos, where no field says it.
    """

    split: str = "train"
    pixels: str = "video"
    caption: str | None = "caption"
    short_caption: str | None = None
    label: str | None = None
    fps: str | None = None
    default_fps: FrameRate = 24.0


def open_tfds(name: str, config: TFDSConfig) -> tuple[list[Item], Read]:
    """A dataset that lies on disk already, by name or by directory.

    Raises:
      NovaError: it does not, or lacks a field.
    """
    import tensorflow_datasets as tfds

    try:
        builder = (tfds.builder_from_directory if Path(name).is_dir() else tfds.builder)(name)
        fields = set(builder.info.features)
        source = builder.as_data_source(split=config.split)
    except Exception as error:  # tensorflow-datasets has no one exception for it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NovaError(f"tensorflow-datasets cannot open {name} ({reason})") from error
    for key in ("pixels", "caption", "short_caption", "label", "fps"):
        if (field := getattr(config, key)) is not None and field not in fields:
            known = ", ".join(sorted(fields))
            raise NovaError(f"{name} has no field {field!r} for config.tfds.{key}; it has {known}")

    def read(item: Item, clips: ClipConfig) -> list[Clip]:
        try:
            example = source[int(item.name.rpartition(":")[2])]
            pixels = np.asarray(example[config.pixels])
            item = dataclasses.replace(
                item,
                caption=_text(example, config.caption),
                short_caption=_text(example, config.short_caption),
                label=-1 if config.label is None else int(example[config.label]),
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise Unusable(f"cannot be decoded: {error}") from error
        if not item.caption and item.label < 0:
            raise Unusable("no caption")
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
            raise Unusable(
                f"{config.pixels} is {pixels.dtype} {list(pixels.shape)}, not RGB frames"
            )
        if pixels.ndim == 3 or len(pixels) == 1:
            return [picture_clip(pixels.reshape(pixels.shape[-3:]), item, clips)]
        rate = config.default_fps if config.fps is None else float(example[config.fps])
        if not (rate > 0 and math.isfinite(rate)):
            raise Unusable(f"its frame rate is {rate}")
        frames = (ArrayFrame(frame, number / rate) for number, frame in enumerate(pixels))
        return list(cut_clips(frames, item, clips))

    return _items(Path(name), f"{builder.info.full_name}:{config.split}", len(source)), read


def _text(example: Any, field: str | None) -> str:
    if field is None:
        return ""
    try:
        return " ".join(example[field].decode().split())
    except UnicodeDecodeError as error:
        raise ValueError(f"{field} is not UTF-8") from error
