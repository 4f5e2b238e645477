"""Preparing data: files are decoded in threads, encoded in batches on the accelerator, and written.

    out/parts/settings.json   what all parts have in common: the config and the encoders
    out/parts/KEY.json        one part: which rows it covers, its files, what was skipped and why
    out/parts/KEY-BUCKET      its files, until all rows are done
    out/parts/numbers.json    which number each of those files gets as a shard

A part is complete once its JSON file is there. A run that is stopped finishes its part early; one
that is killed loses the part it was at. The rows that no part covers are what is left to do, so any
number of processes, on one machine or on many, can share the work, and rows can be added later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from nova_jax.autoencoders.interface import Array
from nova_jax.config import from_dict
from nova_jax.data import records
from nova_jax.data.fingerprints import same_probe
from nova_jax.data.records import Bucket, Metadata, Shard, ShardWriter
from nova_jax.errors import NovaError
from nova_jax.prepare.clips import Clip, ClipConfig, Unusable, read_clips
from nova_jax.prepare.encoders import Encoders
from nova_jax.prepare.foreign import Read, TFDSConfig
from nova_jax.prepare.manifest import Item, Skip

_PARTS, _SETTINGS, _NUMBERS, REPORT = "parts", "settings.json", "numbers.json", "report.json"
_SHOWN = 5  # skipped inputs that a report in words has; the file has all


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How data is prepared.

    Attributes:
      clips: which clips are taken.
      tfds: which fields are what, if the input is of tensorflow-datasets.
      text_length: rows that text features are cut at; the model's.
      batch_size: clips that are encoded together on each device.
      threads: decoding; None for one a core.
      rows_per_part: rows of the manifest that go into a file of each bucket.
      dtype: type of the encoders' parameters and computation.
    """

    clips: ClipConfig = ClipConfig()
    tfds: TFDSConfig = TFDSConfig()
    text_length: int = 256
    batch_size: int = 4
    threads: int | None = None
    rows_per_part: int = 128
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("text_length", "batch_size", "threads", "rows_per_part"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise NovaError(f"{name} is {value}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a run of `prepare` did.

    Attributes:
      rows: looked at in this run.
      clips: written in this run.
      seconds: of this run; `waited_for_clips` on decoding, `waited_for_encoders` on the device.
      skipped: inputs of all runs that could not be used: (where, why).
      left: rows that are still to be done, here or by other processes.
      metadata: of the whole, once nothing is left.
    """

    rows: int
    clips: int
    seconds: float
    waited_for_clips: float
    waited_for_encoders: float
    skipped: list[Skip]
    left: int
    metadata: Metadata | None

    @property
    def bottleneck(self) -> str:
        """Which side the other one waits for."""
        decoding = self.waited_for_clips > self.waited_for_encoders
        return "decoding" if decoding else "the encoders"

    def lines(self, out: Path) -> Iterator[str]:
        """What was done, what was skipped, which side waited, and what `out` holds, in words."""
        rate = self.clips / self.seconds if self.seconds else 0.0
        yield (
            f"{self.rows} files gave {self.clips} clips in {self.seconds:.1f} s, {rate:.2f} clips/s"
        )
        if self.clips:
            yield (
                f"Waited {self.waited_for_clips:.1f} s for decoding and "
                f"{self.waited_for_encoders:.1f} s for the encoders; the limit: {self.bottleneck}"
            )
        if self.skipped:
            yield f"Skipped {len(self.skipped)}:"
            yield from (f"  {where}: {why}" for where, why in self.skipped[:_SHOWN])
            if len(self.skipped) > _SHOWN:
                yield f"  … all in {out / REPORT} at the end"
        if self.left:
            yield f"{self.left} files are left; the same command goes on from here."
        elif self.metadata and self.metadata.shards:
            counts = Counter({bucket.name: 0 for bucket in self.metadata.buckets})
            for shard in self.metadata.shards:
                counts[self.metadata.buckets[shard.bucket].name] += shard.records
            yield f"{out} is complete:"
            yield from (f"  {name:16} {count}" for name, count in counts.items())


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        NovaError: it is none.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise NovaError(f"--shard={text} is not i/n with i from 0 to n - 1")
    return int(index), int(count)


def prepare(
    items: Sequence[Item],
    skips: Sequence[Skip],
    out: Path,
    config: PrepareConfig,
    encoders: Encoders | None,
    *,
    read: Read = read_clips,
    shard: tuple[int, int] = (0, 1),
    strict: bool = False,
    stopping: Callable[[int], bool] = lambda rows: False,
) -> Report:
    """Prepares the rows that are not done yet, and finishes the directory if none is left.

    Args:
      items: the rows, the same in all processes.
      skips: inputs that are no rows, for the report.
      out: where to; a directory that was begun is gone on with.
      config: how.
      encoders: what encodes clips and captions; None keeps pixels and words.
      read: makes clips of a row.
      shard: (i, n): take every n-th of the rows, from i.
      strict: stop at the first input that cannot be used.
      stopping: asked after every row, with how many are done; if so, the part is finished as it
        stands.

    Raises:
      NovaError: `out` is of another config or other encoders, or an input is unusable and `strict`.
    """
    if strict and skips:
        raise NovaError(f"{skips[0][0]}: {skips[0][1]}; mend it, or leave out --strict")
    if encoders is not None:
        for size, frames in itertools.product(config.clips.sizes, config.clips.frames):
            encoders.latent(frames, size)  # says what does not fit before anything is decoded
    parts = out / _PARTS
    parts.mkdir(parents=True, exist_ok=True)
    _check_settings(parts, config, encoders)
    done = {key for part in _read_parts(parts) for key in part["rows"]}
    mine = [item for item in items[shard[0] :: shard[1]] if item.key not in done]

    run = _Run(parts, config, encoders, read, strict)
    began = time.monotonic()
    try:
        run(mine, stopping)
    finally:
        seconds = time.monotonic() - began
    covered = _read_parts(parts)
    done = {key for part in covered for key in part["rows"]}
    left = sum(item.key not in done for item in items)
    skipped = [*skips, *((where, why) for part in covered for where, why in part["skipped"])]
    metadata = None
    if not left:
        metadata = _finish(out, encoders, skipped)
    return Report(
        rows=run.rows,
        clips=run.clips,
        seconds=seconds,
        waited_for_clips=run.waited_for_clips,
        waited_for_encoders=run.waited_for_encoders,
        skipped=skipped,
        left=left,
        metadata=metadata,
    )


class _Part:
    """Files and rows that are written together."""

    def __init__(self, directory: Path, key: str, encoders: Encoders | None) -> None:
        self.directory, self.key, self.encoders = directory, key, encoders
        self.rows: list[str] = []
        self.skipped: list[Skip] = []
        self.writers: dict[Bucket, ShardWriter] = {}

    def write(self, bucket: Bucket, record: Mapping[str, Any]) -> None:
        if bucket not in self.writers:
            path = self.directory / f"{self.key}-{bucket.name}"
            encoding = None if self.encoders is None else self.encoders.encoding
            self.writers[bucket] = ShardWriter(path, encoding)
        self.writers[bucket].write(record)

    def close(self) -> None:
        files = [
            {"file": writer.path.name, "bucket": dataclasses.asdict(bucket), **writer.close()}
            for bucket, writer in sorted(self.writers.items())
        ]
        records.write_json(
            self.directory / f"{self.key}.json",
            {"rows": self.rows, "files": files, "skipped": self.skipped},
        )


class _Run:
    """One process's work, and how it went."""

    def __init__(
        self,
        parts: Path,
        config: PrepareConfig,
        encoders: Encoders | None,
        read: Read,
        strict: bool,
    ) -> None:
        self.parts, self.config, self.encoders, self.strict = parts, config, encoders, strict
        self.read = read
        self.rows = self.clips = 0
        self.waited_for_clips = self.waited_for_encoders = 0.0
        self.batch_size = config.batch_size * (encoders.devices if encoders else 1)
        # Clips on their way to the device, and the one batch that is on it.
        self.waiting: dict[Bucket, list[tuple[Item, Clip]]] = {}
        self.computing: tuple[Bucket, list[tuple[Item, Clip]], Array] | None = None

    def __call__(self, items: Sequence[Item], stopping: Callable[[int], bool]) -> None:
        threads = self.config.threads or os.cpu_count() or 1
        bar = tqdm(total=len(items), unit="file", dynamic_ncols=True)
        pool = ThreadPoolExecutor(threads)
        began = time.monotonic()
        try:
            decoded = self._decode(pool, items, 2 * threads)
            stop = False
            while not stop and (first := next(decoded, None)) is not None:
                part = _Part(self.parts, first[0].key, self.encoders)
                rest = itertools.islice(decoded, self.config.rows_per_part - 1)
                for item, future in itertools.chain([first], rest):
                    self._take(part, item, future)
                    rate = self.clips / (time.monotonic() - began)
                    bar.set_postfix_str(f"{rate:.2f} clips/s", refresh=False)
                    bar.update()
                    if stop := stopping(self.rows):
                        break
                self._flush(part)
                part.close()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            bar.close()

    def _decode(
        self, pool: ThreadPoolExecutor, items: Sequence[Item], window: int
    ) -> Iterator[tuple[Item, Future]]:
        """Rows in order, a few of them being decoded ahead."""
        ahead: deque[tuple[Item, Future]] = deque()
        for item in items:
            ahead.append((item, pool.submit(self.read, item, self.config.clips)))
            if len(ahead) > window:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()

    def _take(self, part: _Part, item: Item, future: Future) -> None:
        began = time.monotonic()
        try:
            clips = future.result()
        except (Unusable, OSError) as error:
            if self.strict:
                raise NovaError(f"{item.name}: {error}; mend it, or leave out --strict") from error
            part.skipped.append((item.name, str(error)))
            clips = error.clips if isinstance(error, Unusable) else ()
        self.waited_for_clips += time.monotonic() - began
        part.rows.append(item.key)
        self.rows += 1
        for clip in clips:
            self._add(part, item, clip)

    def _add(self, part: _Part, item: Item, clip: Clip) -> None:
        if clip.moments is not None:
            if self.encoders is None:
                raise NovaError(f"{item.name} has latents and no pixels; leave out --raw")
            channels = self.encoders.encoding.moments
            if clip.moments.shape[-1] != channels:
                raise NovaError(
                    f"{item.name} has moments of {clip.moments.shape[-1]} channels, the "
                    f"autoencoder of --checkpoint makes {channels}; give the one it was made with"
                )
            bucket = self.encoders.bucket_of_latents(clip.moments)
        else:
            frames, height, width = clip.frames.shape[:3]
            size = (height, width)
            if self.encoders is None:
                bucket = Bucket(frames=frames, size=size, latent=(frames, *size))
                self._write(part, bucket, item, clip, {"frames": clip.frames})
                return
            bucket = Bucket(frames=frames, size=size, latent=self.encoders.latent(frames, size))
        waiting = self.waiting.setdefault(bucket, [])
        waiting.append((item, clip))
        if len(waiting) == self.batch_size:
            self._encode(part, bucket)

    def _encode(self, part: _Part, bucket: Bucket) -> None:
        """Starts a batch, and meanwhile finishes the one before it."""
        assert self.encoders is not None
        clips = self.waiting.pop(bucket)
        if clips[0][1].moments is None:
            frames = np.stack([clip.frames for _, clip in clips])
            # One shape for all batches of a bucket: one program.
            missing = self.batch_size - len(frames)
            frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
            moments = self.encoders.start(frames)
        else:
            moments = np.stack([clip.moments for _, clip in clips if clip.moments is not None])
        self._finish_batch(part)
        self.computing = (bucket, clips, moments)

    def _finish_batch(self, part: _Part) -> None:
        if self.computing is None:
            return
        assert self.encoders is not None
        bucket, clips, computed = self.computing
        self.computing = None
        began = time.monotonic()
        captions = [clip.caption for _, clip in clips]
        short = [clip.short_caption for _, clip in clips]
        text = self.encoders.text([*captions, *short])
        moments = np.asarray(computed)
        self.waited_for_encoders += time.monotonic() - began
        for index, (item, clip) in enumerate(clips):
            encoded = {
                "moments": moments[index].astype(np.float16),
                "text": text[index],
                "short_text": text[len(clips) + index],
            }
            if not all(np.isfinite(value).all() for value in encoded.values()):
                part.skipped.append((item.name, "its latents or text features are not finite"))
                continue
            self._write(part, bucket, item, clip, encoded)

    def _flush(self, part: _Part) -> None:
        for bucket in sorted(self.waiting):
            self._encode(part, bucket)
        self._finish_batch(part)

    def _write(
        self, part: _Part, bucket: Bucket, item: Item, clip: Clip, encoded: Mapping[str, Any]
    ) -> None:
        height, width = clip.source_size
        part.write(
            bucket,
            {
                **encoded,
                "caption": clip.caption,
                "short_caption": clip.short_caption,
                "label": clip.label,
                "flow": clip.flow,
                "fps": clip.fps,
                "source": item.name,
                "start": clip.start,
                "height": height,
                "width": width,
                "phash": clip.phash - (clip.phash >> 63 << 64),  # as a signed number
            },
        )
        self.clips += 1


def _check_settings(parts: Path, config: PrepareConfig, encoders: Encoders | None) -> None:
    """Parts that are prepared differently must not be mixed."""
    encoding = None if encoders is None else dataclasses.asdict(encoders.encoding)
    settings = {
        "kind": "raw" if encoders is None else "latents",
        "clips": dataclasses.asdict(config.clips),
        "encoding": encoding,
    }
    now = json.loads(json.dumps(settings))
    path = parts / _SETTINGS
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        records.write_json(path, now)
        return
    except ValueError as error:
        raise NovaError(f"{path} is damaged ({error}); choose another --out") from error
    if there["kind"] != now["kind"]:
        raise NovaError(f"{parts.parent} holds {there['kind']} records; choose another --out")
    for name, value in now["clips"].items():
        if there["clips"].get(name) != value:
            raise NovaError(
                f"{parts.parent} was begun with clips.{name} {there['clips'].get(name)}, now it is "
                f"{value}; choose another --out or undo the change"
            )
    if encoding is None:
        return
    for name, value in now["encoding"].items():
        old = there["encoding"].get(name)
        if name == "source":
            continue
        if not (same_probe(old, value) if isinstance(value, list) else old == value):
            part = "text encoder" if name.startswith("text") else "autoencoder"
            raise NovaError(
                f"{parts.parent} was begun with another {part} ({name} differs), that of "
                f"{there['encoding']['source']}; choose another --out or that --checkpoint"
            )


def _read_parts(parts: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(parts.glob("*.json")):
        if path.name not in (_SETTINGS, _NUMBERS):
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                raise NovaError(
                    f"{path} is damaged; delete it to prepare its rows again"
                ) from error
    return found


def _finish(out: Path, encoders: Encoders | None, skipped: Sequence[Skip]) -> Metadata:
    """Numbers the files of all parts and describes them; numbers once given stay."""
    parts = out / _PARTS
    with _locked(parts):
        files = [file for part in _read_parts(parts) for file in part["files"]]
        path = parts / _NUMBERS
        numbers = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for file in files:
            numbers.setdefault(file["file"], len(numbers))
        records.write_json(path, numbers)
        files.sort(key=lambda file: numbers[file["file"]])
        for file in files:
            unnumbered = parts / file["file"]
            if unnumbered.exists():
                unnumbered.replace(out / records.shard_name(numbers[file["file"]]))
        of_file = [from_dict(Bucket, file["bucket"], "bucket") for file in files]
        buckets = sorted(set(of_file))
        shards = [
            Shard(
                file=records.shard_name(numbers[file["file"]]),
                bucket=buckets.index(bucket),
                records=file["records"],
                bytes=file["bytes"],
                crc32=file["crc32"],
            )
            for file, bucket in zip(files, of_file, strict=True)
        ]
        metadata = Metadata(
            kind="raw" if encoders is None else "latents",
            buckets=tuple(buckets),
            shards=tuple(shards),
            encoding=None if encoders is None else encoders.encoding,
            skipped=dict(Counter(why.split(":")[0] for _, why in skipped)),
        )
        records.write_json(
            out / REPORT,
            {"skipped": [{"input": where, "reason": why} for where, why in skipped]},
        )
        for path in parts.iterdir():  # of parts that were never finished
            if path.suffix != ".json" and path.name != "lock":
                path.unlink(missing_ok=True)
        if shards:
            records.write_metadata(out, metadata)
        return metadata


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Several processes may find at once that nothing is left."""
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
