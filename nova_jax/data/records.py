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
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from nova_jax.errors import NovaError
from nova_jax.files import crc32, write_whole

FORMAT, VERSION = "nova_jax.records", 1
METADATA = "metadata.json"
NAME, SPLIT = "nova", "train"  # of the dataset and its only split, for tensorflow-datasets
_OPEN_SHARDS = 256  # of a reader at a time

Kind = Literal["latents", "raw"]


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Bucket:
    """Records of one shape.

    Attributes:
      frames: F; 1 for pictures.
      size: (H, W).
      latent: (T, h, w); (F, H, W) of raw records.
    """

    frames: int
    size: tuple[int, int]
    latent: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Such as 33x480x768."""
        return "x".join(map(str, (self.frames, *self.size)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of records.

    Attributes:
      file: its name.
      bucket: index of its bucket.
      records: how many.
      bytes, crc32: of the whole file.
    """

    file: str
    bucket: int
    records: int
    bytes: int
    crc32: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """How clips were encoded, and by what.

    Attributes:
      source: directory or id that the autoencoder and the text encoder came from.
      channels: C.
      moments: channels of the moments: 2C, means then log-variances, or C means alone.
      scale, shift: (z - shift) · scale is what the transformer sees, one a channel.
      codec_probe, text_probe: what the two make of fixed inputs, see `probe_codec`.
      text_dim: d.
      text_length: rows that features are cut at.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """metadata.json.

    Attributes:
      kind: "latents", or "raw" for pixels.
      buckets: the shapes there are.
      shards: the files, in the order of their records.
      encoding: None for raw records.
      skipped: number of inputs that could not be used, by reason.
    """

    kind: Kind
    buckets: tuple[Bucket, ...]
    shards: tuple[Shard, ...]
    encoding: Encoding | None
    skipped: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        total = sum(shard.records for shard in self.shards)
        return {
            "format": FORMAT,
            "version": VERSION,
            "records": total,
            **dataclasses.asdict(self),
        }


def read_metadata(directory: Path) -> Metadata:
    """Reads ``metadata.json`` of prepared data.

    Raises:
      NovaError: it is missing, damaged, or of another schema.
    """
    path = directory / METADATA
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NovaError(
            f"{directory} has no {METADATA}; give a directory that nova_jax.prepare has finished"
        ) from None
    except (OSError, ValueError) as error:
        raise NovaError(f"{path} is damaged ({error}); restore it from a copy") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise NovaError(f"{path} is not of prepared data; give a directory that prepare wrote")
    if values.get("version") != VERSION:
        raise NovaError(
            f"{path} has schema version {values.get('version')}, this nova_jax reads {VERSION}; "
            "prepare the data again, or install the version that wrote it"
        )
    try:
        encoding = values["encoding"]
        metadata = Metadata(
            kind=values["kind"],
            buckets=tuple(from_json(Bucket, bucket) for bucket in values["buckets"]),
            shards=tuple(from_json(Shard, shard) for shard in values["shards"]),
            encoding=None if encoding is None else from_json(Encoding, encoding),
            skipped=dict(values["skipped"]),
        )
        if metadata.kind not in ("latents", "raw") or (metadata.kind == "raw") != (
            encoding is None
        ):
            raise ValueError("kind")
        if any(not 0 <= shard.bucket < len(metadata.buckets) for shard in metadata.shards):
            raise ValueError("bucket")
        if any(Path(shard.file).name != shard.file for shard in metadata.shards):
            raise ValueError("file")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NovaError(f"{path} is damaged ({error}); restore it from a copy") from error
    return metadata


def from_json(kind: type, values: Mapping[str, Any]) -> Any:
    """A `Bucket`, `Shard` or `Encoding` of its plain values, whose lists are tuples."""
    lists = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return kind(**lists)


# ---- Writing -----------------------------------------------------------------------------------


@functools.cache
def features(encoding: Encoding | None) -> Any:
    """The fields of a record, as tensorflow-datasets describes them; raw ones without encoding."""
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
    """Writes one shard. What it holds is complete once `close` has returned.

    Args:
      path: of the file, replaced if it is there.
      encoding: of the records; None for raw ones.
    """

    def __init__(self, path: Path, encoding: Encoding | None) -> None:
        self.path, self.records = path, 0
        self._serialize = features(encoding).serialize_example
        # Moments are as good as noise: compressing them costs time and saves a twentieth.
        packing = "zstd:3" if encoding is None else "uncompressed"
        self._writer = ArrayRecordWriter(str(path), f"group_size:1,{packing}")

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a record: a value for each of `features`."""
        self._writer.write(self._serialize(dict(record)))
        self.records += 1

    def close(self) -> dict[str, int]:
        """Finishes the file; returns what a `Shard` says of it: records, bytes and crc32."""
        self._writer.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return {
            "records": self.records,
            "bytes": self.path.stat().st_size,
            "crc32": crc32(self.path),
        }


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
        self._starts = np.cumsum([0, *(shard.records for shard in self.metadata.shards)])
        self._readers: OrderedDict[int, ArrayRecordReader] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return Records, (self.directory,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def of_bucket(self, bucket: int) -> np.ndarray:
        """Indices of the records of a bucket, in order."""
        parts = [
            np.arange(start, start + shard.records)
            for start, shard in zip(self._starts, self.metadata.shards, strict=False)
            if shard.bucket == bucket
        ]
        return np.concatenate(parts) if parts else np.arange(0)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Reads records: arrays that are views of what was read, strings, numbers.

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
            except (RuntimeError, ValueError, IndexError, KeyError) as error:
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
        record = parse_example(data)
        encoding = self.metadata.encoding
        if encoding is None:
            record["frames"] = _array(record, "frames", np.uint8, 3)
            shape = record["frames"].shape
        else:
            record["moments"] = _array(record, "moments", np.float16, encoding.moments)
            for name in ("text", "short_text"):
                rows = np.frombuffer(record[name], np.float16)
                record[name] = rows.reshape(-1, encoding.text_dim)
            shape = record["moments"].shape
        if shape[:3] != tuple(bucket.latent):
            raise ValueError(f"a record of shape {shape} in bucket {bucket.name}")
        for name in ("caption", "short_caption", "source"):
            record[name] = bytes(record[name]).decode()
        return record


def _array(record: dict[str, Any], name: str, dtype: type, channels: int) -> np.ndarray:
    shape = tuple(int(side) for side in record.pop(f"{name}/shape"))
    if len(shape) != 4 or shape[3] != channels:
        raise ValueError(f"{name} of shape {shape}")
    return np.frombuffer(record.pop(f"{name}/value"), dtype).reshape(shape)


def parse_example(data: bytes) -> dict[str, Any]:
    """The fields of a serialized `tf.train.Example`; a single value stands for itself.

    Written out because records are large: protobuf copies every value twice, here bytes are views
    of `data`. An Example is {1: {1: {1: name, 2: {1 bytes | 2 floats | 3 integers: {1: values}}}}}.

    Raises:
      ValueError: it is none.
    """
    record: dict[str, Any] = {}
    try:
        for _, features in _fields(memoryview(data)):
            for _, entry in _fields(features):
                parts = dict(_fields(entry))
                ((kind, values),) = _fields(parts[2]) or [(0, memoryview(b""))]
                found = _values(kind, values)
                record[bytes(parts[1]).decode()] = found[0] if len(found) == 1 else found
    except (IndexError, KeyError, struct.error) as error:
        raise ValueError(f"no tf.train.Example ({type(error).__name__})") from error
    return record


def _values(kind: int, data: memoryview) -> list[Any]:
    if kind == 1:
        return [value for _, value in _fields(data)]
    (packed,) = [value for _, value in _fields(data)] or [memoryview(b"")]
    if kind == 2:
        return [value for (value,) in struct.iter_unpack("<f", packed)]
    numbers, at = [], 0
    while at < len(packed):
        number, at = _varint(packed, at)
        numbers.append(number - (number >> 63 << 64))  # two's complement
    return numbers


def _fields(data: memoryview) -> list[tuple[int, memoryview]]:
    """(number, value) of a message whose fields all have a length."""
    found, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 != 2:
            raise ValueError(f"no tf.train.Example (wire type {tag & 7})")
        length, at = _varint(data, at)
        if at + length > len(data):
            raise ValueError("no tf.train.Example (cut short)")
        found.append((tag >> 3, data[at : at + length]))
        at += length
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at


# ---- Fingerprints ------------------------------------------------------------------------------
