"""Preparing data: files are decoded in threads, encoded in batches on the accelerator, and written.

A run that is stopped, shared by several processes or given more rows goes on where it was: see
`nova_jax.prepare.parts`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from nova_jax.autoencoders.interface import Array
from nova_jax.config import Checked, Count
from nova_jax.data.records import Bucket, Metadata
from nova_jax.errors import NovaError
from nova_jax.prepare.clips import Clip, ClipConfig, Unusable, read_clips
from nova_jax.prepare.encoders import Encoders
from nova_jax.prepare.foreign import Read, TFDSConfig
from nova_jax.prepare.manifest import Item, Skip
from nova_jax.prepare.parts import REPORT, Part, Parts

_SHOWN = 5  # skipped inputs that a report in words has; the file has all


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig(Checked):
    """How data is prepared.

    Attributes:
      clips: which clips are taken.
      tfds: which fields mean what, if the input is a dataset of tensorflow-datasets.
      text_length: number of rows that text features are cut at, which is the model's.
      batch_size: number of clips that are encoded together on each device.
      threads: number of threads that decode; None for one a core.
      rows_per_part: number of rows of the manifest that make a part, with a file of each bucket.
      dtype: type of the encoders' parameters and of their computation.
    """

    clips: ClipConfig = ClipConfig()
    tfds: TFDSConfig = TFDSConfig()
    text_length: Count = 256
    batch_size: Count = 4
    threads: Count | None = None
    rows_per_part: Count = 128
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a run of `prepare` did.

    Attributes:
      rows: number of rows that this run looked at.
      clips: number of clips that it wrote.
      seconds: how long it took.
      waited_for_clips, waited_for_encoders: seconds of it that were spent in waiting for threads
        that decode, and for the device.
      skipped: inputs of all runs that could not be used: (where, why).
      left: number of rows that are still to be done, here or by other processes.
      metadata: what describes the whole, once nothing is left.
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
      out: the directory to write to; one that was begun is gone on with.
      config: which clips are taken, and how they are batched.
      encoders: what encodes clips and captions; None keeps pixels and words.
      read: makes clips of a row.
      shard: (i, n) takes every n-th of the rows, from i.
      strict: stop at the first input that cannot be used.
      stopping: is asked after every row, with the number that are done, whether to stop; the part
        is then finished as it stands.

    Raises:
      NovaError: `out` is of another config or other encoders, or an input is unusable and `strict`.
    """
    if strict and skips:
        raise NovaError(f"{skips[0][0]}: {skips[0][1]}; mend it, or leave out --strict")
    if encoders is not None:
        for size, frames in itertools.product(config.clips.sizes, config.clips.frames):
            encoders.latent(frames, size)  # says what does not fit before anything is decoded
    parts = Parts(out, config.clips, None if encoders is None else encoders.encoding)
    done = {key for part in parts.read() for key in part["rows"]}
    mine = [item for item in items[shard[0] :: shard[1]] if item.key not in done]

    stage = _Pixels() if encoders is None else _Batches(encoders, config.batch_size)
    run = _Run(parts, stage, config, read, strict=strict)
    began = time.monotonic()
    run(mine, stopping)
    seconds = time.monotonic() - began

    covered = parts.read()
    done = {key for part in covered for key in part["rows"]}
    left = sum(item.key not in done for item in items)
    skipped = [*skips, *((where, why) for part in covered for where, why in part["skipped"])]
    return Report(
        rows=run.rows,
        clips=run.clips,
        seconds=seconds,
        waited_for_clips=run.waited,
        waited_for_encoders=stage.waited,
        skipped=skipped,
        left=left,
        metadata=None if left else parts.finish(skipped),
    )


class _Encoded(NamedTuple):
    """A clip that is ready to be written."""

    clip: Clip
    bucket: Bucket
    arrays: Mapping[str, np.ndarray]  # fields of its record


class _Pixels:
    """Clips are written as they are."""

    waited = 0.0

    def add(self, clip: Clip) -> Iterable[_Encoded]:
        if clip.moments is not None:
            raise NovaError(f"{clip.item.name} has latents and no pixels; leave out --raw")
        frames, height, width = clip.frames.shape[:3]
        bucket = Bucket(frames=frames, size=(height, width), latent=(frames, height, width))
        return [_Encoded(clip, bucket, {"frames": clip.frames})]

    def flush(self) -> Iterable[_Encoded]:
        return ()


class _Batches:
    """Clips are encoded, a batch of one bucket at a time: one computes while the next is gathered.

    `waited` is the seconds that were spent in waiting for the device.
    """

    def __init__(self, encoders: Encoders, size: int) -> None:
        self._encoders, self._size, self.waited = encoders, size * encoders.devices, 0.0
        self._gathered: dict[Bucket, list[Clip]] = {}
        self._computing: tuple[Bucket, list[Clip], Array] | None = None

    def add(self, clip: Clip) -> Iterator[_Encoded]:
        bucket = self._bucket(clip)
        gathered = self._gathered.setdefault(bucket, [])
        gathered.append(clip)
        if len(gathered) == self._size:
            yield from self._start(bucket)

    def flush(self) -> Iterator[_Encoded]:
        for bucket in sorted(self._gathered):
            yield from self._start(bucket)
        yield from self._finish()

    def _bucket(self, clip: Clip) -> Bucket:
        if clip.moments is None:
            frames, height, width = clip.frames.shape[:3]
            latent = self._encoders.latent(frames, (height, width))
            return Bucket(frames=frames, size=(height, width), latent=latent)
        channels = self._encoders.encoding.moments
        if clip.moments.shape[-1] != channels:
            raise NovaError(
                f"{clip.item.name} has moments of {clip.moments.shape[-1]} channels, the "
                f"autoencoder of --checkpoint makes {channels}; give the one it was made with"
            )
        return self._encoders.bucket_of_latents(clip.moments)

    def _start(self, bucket: Bucket) -> Iterator[_Encoded]:
        """Starts a batch, and meanwhile gives the one before it."""
        clips = self._gathered.pop(bucket)
        moments: Array
        if clips[0].moments is None:
            frames = np.stack([clip.frames for clip in clips])
            # One shape for all batches of a bucket: one program.
            missing = self._size - len(frames)
            frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
            moments = self._encoders.start(frames)
        else:
            moments = np.stack([clip.moments for clip in clips if clip.moments is not None])
        yield from self._finish()
        self._computing = (bucket, clips, moments)

    def _finish(self) -> Iterator[_Encoded]:
        """Gives the batch that was computing, if there is one."""
        if self._computing is None:
            return
        (bucket, clips, computed), self._computing = self._computing, None
        began = time.monotonic()
        rows = [clip.item for clip in clips]
        text = self._encoders.text([r.caption for r in rows] + [r.short_caption for r in rows])
        moments = np.asarray(computed).astype(np.float16)
        self.waited += time.monotonic() - began
        # The moments are of a whole batch, and so may be more.
        fields = zip(clips, moments, text[: len(clips)], text[len(clips) :], strict=False)
        for clip, of_clip, long, short in fields:
            arrays = {"moments": of_clip, "text": long, "short_text": short}
            yield _Encoded(clip, bucket, arrays)


# What clips go through before they are written. `add` takes a clip and gives those that are ready
# with it; `flush` gives all that were held back.
_Stage = _Pixels | _Batches


class _Run:
    """One process's work: rows are decoded in threads, ahead of the loop that writes their clips.

    Attributes:
      rows, clips: done so far.
      waited: seconds that the loop spent in waiting for threads.
    """

    def __init__(
        self, parts: Parts, stage: _Stage, config: PrepareConfig, read: Read, *, strict: bool
    ) -> None:
        self._parts, self._stage, self._config = parts, stage, config
        self._read, self._strict = read, strict
        self.rows = self.clips = 0
        self.waited = 0.0

    def __call__(self, items: Sequence[Item], stopping: Callable[[int], bool]) -> None:
        threads = self._config.threads or os.cpu_count() or 1
        bar = tqdm(total=len(items), unit="file", dynamic_ncols=True)
        pool = ThreadPoolExecutor(threads)
        began = time.monotonic()
        try:
            decoded = self._decode(pool, items, 2 * threads)
            for first in decoded:
                part = self._parts.begin(first[0].key)
                rest = itertools.islice(decoded, self._config.rows_per_part - 1)
                for item, future in itertools.chain([first], rest):
                    self._take(part, item, future)
                    rate = self.clips / (time.monotonic() - began)
                    bar.set_postfix_str(f"{rate:.2f} clips/s", refresh=False)
                    bar.update()
                    if stop := stopping(self.rows):
                        break
                self._write(part, self._stage.flush())
                part.close()
                if stop:
                    break
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            bar.close()

    def _decode(
        self, pool: ThreadPoolExecutor, items: Sequence[Item], window: int
    ) -> Iterator[tuple[Item, Future]]:
        """Gives rows in order, a few of them being decoded ahead."""
        ahead: deque[tuple[Item, Future]] = deque()
        for item in items:
            ahead.append((item, pool.submit(self._read, item, self._config.clips)))
            if len(ahead) > window:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()

    def _take(self, part: Part, item: Item, future: Future) -> None:
        began = time.monotonic()
        try:
            clips = future.result()
        except (Unusable, OSError) as error:
            if self._strict:
                raise NovaError(f"{item.name}: {error}; mend it, or leave out --strict") from error
            part.skipped.append((item.name, str(error)))
            clips = error.clips if isinstance(error, Unusable) else ()
        self.waited += time.monotonic() - began
        part.rows.append(item.key)
        self.rows += 1
        for clip in clips:
            self._write(part, self._stage.add(clip))

    def _write(self, part: Part, ready: Iterable[_Encoded]) -> None:
        for clip, bucket, arrays in ready:
            if not all(np.isfinite(array).all() for array in arrays.values()):
                part.skipped.append((clip.item.name, "its latents or text features are not finite"))
                continue
            item, (height, width) = clip.item, clip.source_size
            record = {
                "caption": item.caption,
                "short_caption": item.short_caption,
                "label": item.label,
                "flow": clip.flow,
                "fps": clip.fps,
                "source": item.name,
                "start": clip.start,
                "height": height,
                "width": width,
                "phash": clip.phash - (clip.phash >> 63 << 64),  # as a signed number
            }
            part.write(bucket, {**record, **arrays})
            self.clips += 1
