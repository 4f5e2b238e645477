"""Prepared data on disk: ArrayRecord shards of `tf.train.Example`, and what describes them.

    metadata.json                       all of it: schema, counts, checksums, buckets, encoders
    dataset_info.json, features.json    the same for tensorflow-datasets
    nova-train.array_record-00000 …     shards; each holds records of one bucket

docs/data.md describes every field. Letters in shapes:

    T latent frames   h, w latent sides   C latent channels   L text rows   d text width
    F pixel frames   H, W pixels
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from google.protobuf.message import DecodeError

from nova_jax.config import Checked, Count, Natural, from_dict
from nova_jax.errors import NovaError
from nova_jax.files import crc32, read_json, write_whole

FORMAT, VERSION = "nova_jax.records", 1
METADATA = "metadata.json"
_SUMMARY = ("format", "version", "records")  # what metadata.json says besides `Metadata`
NAME, SPLIT = "nova", "train"  # of the dataset and its only split, for tensorflow-datasets
_OPEN_SHARDS = 256  # of a reader at a time
# What ArrayRecord and tensorflow-datasets raise where bytes are not what they should be.
_DAMAGE = (DecodeError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)

Kind = Literal["latents", "raw"]


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Bucket(Checked):
    """The shape of some of the records.

    Attributes:
      frames: F; 1 for pictures.
      size: (H, W).
      latent: (T, h, w); for records of pixels (F, H, W).

    Raises:
      NovaError: one of them is less than 1.
    """

    frames: Count
    size: tuple[Count, Count]
    latent: tuple[Count, Count, Count]

    @property
    def name(self) -> str:
        """Frames, height and width, such as 33x480x768."""
        return "x".join(map(str, (self.frames, *self.size)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard(Checked):
    """One file of records.

    Attributes:
      file: its name.
      bucket: index of the bucket that its records are of.
      records: how many records it holds.
      bytes, crc32: size and checksum of the whole file.
    """

    file: str
    bucket: Natural
    records: Natural
    bytes: int
    crc32: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """How clips were encoded, and by what.

    Attributes:
      source: directory or id that the autoencoder and the text encoder came from.
      channels: C.
      moments: number of channels of the moments: 2C, means and then log-variances, or C means.
      scale, shift: C numbers each; the transformer sees (z - shift) · scale.
      codec_probe, text_probe: what the two make of fixed inputs, see
        `nova_jax.data.fingerprints.probe_codec`.
      text_dim: d.
      text_length: number of rows that text features are cut at.

    Raises:
      NovaError: they do not fit together.
    """

    source: str
    channels: int
    moments: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    codec_probe: tuple[float, ...]
    text_probe: tuple[float, ...]
    text_dim: int
    text_length: int

    def __post_init__(self) -> None:
        if not (
            len(self.scale) == len(self.shift) == self.channels
            and self.moments in (self.channels, 2 * self.channels)
            and 0 not in self.scale
            and min(self.channels, self.text_dim, self.text_length) > 0
        ):
            raise NovaError("metadata.encoding is impossible: its channels or lengths do not fit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """What metadata.json says of a prepared directory.

    Attributes:
      kind: "latents", or "raw" for pixels.
      buckets: the shapes that there are.
      shards: the files, in the order of their records.
      encoding: how clips were encoded; None for pixels.
      skipped: number of inputs that could not be used, by reason.

    Raises:
      NovaError: the parts do not fit together.
    """

    kind: Kind
    buckets: tuple[Bucket, ...]
    shards: tuple[Shard, ...]
    encoding: Encoding | None
    skipped: Mapping[str, int]

    def __post_init__(self) -> None:
        for shard in self.shards:
            known = shard.bucket < len(self.buckets)
            if not known or Path(shard.file).name != shard.file:
                raise NovaError(f"metadata.shards has an impossible {shard.file!r}")
        if (self.kind == "raw") != (self.encoding is None):
            raise NovaError(f"metadata.kind is {self.kind!r}, which does not fit its encoding")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, ready for JSON, that `read_metadata` reads back."""
        total = sum(shard.records for shard in self.shards)
        return {"format": FORMAT, "version": VERSION, "records": total, **dataclasses.asdict(self)}


def read_metadata(directory: Path) -> Metadata:
    """Reads ``metadata.json`` of prepared data.

    Raises:
      NovaError: it is missing, damaged, or of another schema.
    """
    path = directory / METADATA
    try:
        values = read_json(path, "restore it from a copy")
    except (FileNotFoundError, NotADirectoryError):
        raise NovaError(
            f"{directory} has no {METADATA}; give a directory that nova_jax.prepare has finished"
        ) from None
    if values.get("format") != FORMAT:
        raise NovaError(f"{path} is not of prepared data; give a directory that prepare wrote")
    if values.get("version") != VERSION:
        raise NovaError(
            f"{path} has schema version {values.get('version')}, this nova_jax reads {VERSION}; "
            "prepare the data again, or install the version that wrote it"
        )
    fields = {name: value for name, value in values.items() if name not in _SUMMARY}
    try:
        return from_dict(Metadata, fields, "metadata")
    except NovaError as error:
        reason = str(error).partition(";")[0]
        raise NovaError(f"{path} is damaged ({reason}); restore it from a copy") from error


# ---- Writing -----------------------------------------------------------------------------------


@functools.cache
def features(encoding: Encoding | None) -> Any:
    """Returns the fields of a record, encoded or (None) of pixels, for tensorflow-datasets."""
    import tensorflow_datasets as tfds  # takes a second

    tensor = functools.partial(tfds.features.Tensor, encoding="bytes")
    float32, int64 = (tfds.features.Scalar(np.dtype(name)) for name in ("float32", "int64"))
    if encoding is None:
        encoded = {"frames": tensor(shape=(None, None, None, 3), dtype=np.uint8)}
    else:
        text = tensor(shape=(None, encoding.text_dim), dtype=np.float16)
        moments = tensor(shape=(None, None, None, encoding.moments), dtype=np.float16)
        encoded = {"moments": moments, "text": text, "short_text": text}
    return tfds.features.FeaturesDict(
        {
            **encoded,
            "caption": tfds.features.Text(),
            "short_caption": tfds.features.Text(),
            "label": int64,
            "flow": float32,
            "fps": float32,
            "source": tfds.features.Text(),
            "start": float32,
            "height": int64,
            "width": int64,
            "phash": int64,
        }
    )


class ShardWriter:
    """Writes one shard, over a file that is there. It is complete once `close` has returned.

    Its records are encoded as `encoding` says; None is for pixels.
    """

    def __init__(self, path: Path, encoding: Encoding | None) -> None:
        self.path, self.records = path, 0
        self._serialize = features(encoding).serialize_example
        # Moments are as good as noise: compressing them costs time and saves a twentieth.
        packing = "zstd:3" if encoding is None else "uncompressed"
        self._writer = ArrayRecordWriter(str(path), f"group_size:1,{packing}")

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a record, which has a value for each of `features`."""
        self._writer.write(self._serialize(dict(record)))
        self.records += 1

    def close(self) -> dict[str, int]:
        """Finishes the file; returns what a `Shard` says of it: records, bytes and crc32."""
        self._writer.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        size = self.path.stat().st_size
        return {"records": self.records, "bytes": size, "crc32": crc32(self.path)}


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_whole(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def write_metadata(directory: Path, metadata: Metadata) -> None:
    """Writes metadata.json and, first, what tensorflow-datasets wants beside it."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=directory,
        dataset_name=NAME,
        split=SPLIT,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[shard.records for shard in metadata.shards],
        num_bytes=sum(shard.bytes for shard in metadata.shards),
        filename_template=template,
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME,
        version=tfds.core.Version(f"{VERSION}.0.0"),
        data_dir=str(directory),
        module_name="nova_jax",
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=features(metadata.encoding),
        description=f"Prepared by nova_jax, see {METADATA}.",
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.SplitDict([split]))
    info.write_to_directory(directory)
    write_json(directory / METADATA, metadata.to_dict())


def shard_name(number: int) -> str:
    """Name of a finished shard."""
    return f"{NAME}-{SPLIT}.array_record-{number:05d}"


# ---- Reading -----------------------------------------------------------------------------------


class Records:
    """Random access to the records of a prepared directory.

    It may be shared by threads; a process that it is sent to opens the files itself.

    Args:
      directory: with a metadata.json.

    Raises:
      NovaError: the metadata cannot be used, or a shard is missing or of another size.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.metadata = directory, read_metadata(directory)
        for shard in self.metadata.shards:
            path = directory / shard.file
            if not path.is_file():
                raise NovaError(f"{path} is missing; restore it from a copy, or prepare again")
            if path.stat().st_size != shard.bytes:
                raise NovaError(
                    f"{path} has {path.stat().st_size} bytes, {METADATA} says {shard.bytes}: cut "
                    "short or changed; restore it from a copy, or prepare again"
                )
        self._features = features(self.metadata.encoding)
        self._starts = np.cumsum([0, *(shard.records for shard in self.metadata.shards)])
        self._readers: OrderedDict[int, ArrayRecordReader] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return Records, (self.directory,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def of_bucket(self, bucket: int) -> np.ndarray:
        """Returns the indices of the records of a bucket, given by its own index, in order."""
        parts = [
            np.arange(start, start + shard.records)
            for start, shard in zip(self._starts, self.metadata.shards, strict=False)
            if shard.bucket == bucket
        ]
        return np.concatenate([np.arange(0), *parts])

    def read(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Reads records: arrays that cannot be written to, strings, numbers.

        Raises:
          NovaError: naming the shard that is damaged.
        """
        indices = np.asarray(indices)
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        found: list[dict[str, Any]] = [{} for _ in indices]
        for number in np.unique(shards):
            places = np.flatnonzero(shards == number)
            positions = [int(indices[place] - self._starts[number]) for place in places]
            shard = self.metadata.shards[number]
            path = self.directory / shard.file
            try:
                raw = self._reader(int(number)).read(positions)
                for place, data in zip(places, raw, strict=True):
                    found[place] = self._parse(data, self.metadata.buckets[shard.bucket])
            except _DAMAGE as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise NovaError(
                    f"{path} is damaged ({reason}); restore it from a copy, or prepare again"
                ) from error
        return found

    def verify(self) -> None:
        """Compares every shard with its checksum.

        Raises:
          NovaError: naming the first one that differs.
        """
        for shard in self.metadata.shards:
            path = self.directory / shard.file
            if crc32(path) != shard.crc32:
                raise NovaError(f"{path} is damaged; restore it from a copy, or prepare again")

    def _reader(self, number: int) -> ArrayRecordReader:
        with self._lock:
            reader = self._readers.pop(number, None)
            if reader is None:
                shard = self.metadata.shards[number]
                reader = ArrayRecordReader(
                    str(self.directory / shard.file),
                    "readahead_buffer_size:0,max_parallelism:0",
                    file_reader_buffer_size=1 << 16,
                )
                if reader.num_records() != shard.records:
                    raise ValueError(f"{reader.num_records()} records instead of {shard.records}")
            self._readers[number] = reader
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            return reader

    def _parse(self, data: bytes, bucket: Bucket) -> dict[str, Any]:
        record = self._features.deserialize_example_np(data)
        if missing := [name for name, value in record.items() if value is None]:
            raise ValueError(f"a record without {', '.join(missing)}")
        encoding = self.metadata.encoding
        channels = 3 if encoding is None else encoding.moments
        shape = record["frames" if encoding is None else "moments"].shape
        if shape != (*bucket.latent, channels):
            raise ValueError(f"a record of shape {shape} in bucket {bucket.name}")
        return {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in record.items()
        }
