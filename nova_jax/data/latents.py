"""Training on prepared records: from moments and text features on disk to batches.

A batch is a function of its number, as everywhere (`nova_jax.data.pipeline`): its place in a
shuffled order says which records it holds, and a generator seeded by a sample's place draws its
latents from their moments, chooses its caption and drops conditions. Records of one bucket make a
batch, so that each bucket is one compiled step.

Letters in shapes:

    B records   T latent frames   h, w, C latent   L text rows   d text width
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import grain
import numpy as np
from jax.typing import DTypeLike

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.config import Checked, Count, FrameRate, Natural, Positive
from nova_jax.data.batch import Batch, abstract_batch, zero_batch
from nova_jax.data.fingerprints import probe_codec, probe_text, same_probe
from nova_jax.data.pipeline import EPOCHS, BatchIterator, DataConfig, alternate, share_of
from nova_jax.data.records import Encoding, Records
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.text.interface import TextEncoder

logger = logging.getLogger(__name__)

Shape = tuple[int, int, int]  # (T, h, w)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig(Checked):
    """One prepared directory.

    Attributes:
      path: where the directory is.
      weight: how often each of its records is seen, compared with those of other sources.
    """

    path: str
    weight: Positive = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentsConfig(Checked):
    """Training on records of latents that `nova_jax.prepare` wrote.

    Attributes:
      type: "latents".
      sources: the prepared directories.
      sizes: "all" trains on clips of all sizes, whose aspects may differ; "model" on those of the
        model's own size alone.
      latent_frames: length of the clips that evaluation looks at; by default the model's base
        number of frames.
      held_out: the last so many records of that length and the model's size are for evaluation
        alone. With 0, evaluation looks at records of training.
      fps: frames per second that samples are drawn with, and that generation uses by default.
    """

    type: Literal["latents"] = "latents"
    sources: tuple[SourceConfig, ...]
    sizes: Literal["all", "model"] = "all"
    latent_frames: Count | None = None
    held_out: Natural = 64
    fps: FrameRate = 12.0
    #: Of text features in batches; as on disk, and half the way to the device.
    text_dtype: ClassVar[DTypeLike] = np.float16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise NovaError("dataset.sources is empty; name at least one prepared directory")


@dataclasses.dataclass(frozen=True)
class Pool:
    """Records of one shape, from one or several sources, by one index.

    Attributes:
      sources: the directories.
      indices: for each directory, indices of the records that it contributes.
    """

    sources: tuple[Records, ...]
    indices: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return sum(map(len, self.indices))

    def read(self, places: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Reads the records at some places, from 0 to len(self) - 1.

        Returns:
          What `Records.read` gives, and "encoding", the `Encoding` of the record's directory.
        """
        places = np.asarray(places)
        starts = np.cumsum([0, *map(len, self.indices)])
        which = np.searchsorted(starts, places, side="right") - 1
        found: list[dict[str, Any]] = [{} for _ in places]
        for number in np.unique(which):
            here = np.flatnonzero(which == number)
            wanted = self.indices[number][places[here] - starts[number]]
            for place, record in zip(here, self.sources[number].read(wanted), strict=True):
                found[place] = record | {"encoding": self.sources[number].metadata.encoding}
        return found


def sample_latents(record: Mapping[str, Any], rng: np.random.Generator | None) -> np.ndarray:
    """Samples the latents of a record, as the transformer sees them.

    z = mean + exp(½ · clip(logvar, -30, 20)) · noise, and then (z - shift) · scale.

    Args:
      record: what `Pool.read` gives.
      rng: draws the noise; None takes the mean.

    Returns:
      float32 [T, h, w, C].
    """
    encoding: Encoding = record["encoding"]
    channels, moments = encoding.channels, record["moments"]
    latents = moments[..., :channels].astype(np.float32)
    if rng is not None and encoding.moments > channels:
        deviation = moments[..., channels:].astype(np.float32)
        np.clip(deviation, -30, 20, out=deviation)
        deviation *= 0.5
        np.exp(deviation, out=deviation)
        deviation *= rng.standard_normal(deviation.shape, np.float32)
        latents += deviation
    latents -= np.asarray(encoding.shift, np.float32)
    latents *= np.asarray(encoding.scale, np.float32)
    return latents


class LatentsDataset:
    """A `nova_jax.data.pipeline.Dataset` of prepared records.

    Args:
      config: says where the records are.
      model: the model that they are for; records of sizes that do not fit it are left out, with a
        warning.
      codec, text_encoder: those of the run, if it has them; the records must be of the same.
      keep_captions: see `nova_jax.training.datasets.build_dataset`.

    Raises:
      NovaError: a directory cannot be used, or nothing in it fits the model or the run.
    """

    def __init__(
        self,
        config: LatentsConfig,
        model: NovaConfig,
        codec: VideoCodec | None = None,
        text_encoder: TextEncoder | None = None,
        *,
        keep_captions: bool = False,
    ) -> None:
        self.config, self.model, self.keep_captions = config, model, keep_captions
        self.sources = tuple(Records(Path(source.path)) for source in config.sources)
        for source in self.sources:
            _check_encoding(source, model, codec, text_encoder)
        counts: Counter[Shape] = Counter()
        for source in self.sources:
            for shard in source.metadata.shards:
                counts[source.metadata.buckets[shard.bucket].latent] += shard.records
        self.shapes = sorted(shape for shape in +counts if self._fits(shape))
        if left_out := counts.total() - sum(counts[shape] for shape in self.shapes):
            logger.warning(
                "%d records are left out: of sizes that tokens of %dx%d latents do not fit, or "
                "not of the model's %dx%d where dataset.sizes is 'model', or of videos for a "
                "model of pictures",
                *(left_out, model.patch_size, model.patch_size, *model.latent_size),
            )
        frames = config.latent_frames or model.frames
        self.main = (frames, *model.latent_size)
        if self.main not in self.shapes:
            there = {bucket.name for source in self.sources for bucket in source.metadata.buckets}
            raise NovaError(
                f"config.dataset has no records of {frames} latent frames of "
                f"{model.latent_size[0]}x{model.latent_size[1]}, only clips of "
                f"{', '.join(sorted(there))}; change config.model or prepare such clips"
            )
        size = len(self._pool(self.main, held_out=False))
        if config.held_out and size < 1:
            raise NovaError(
                f"dataset.held_out {config.held_out} leaves no record to train on; make it smaller"
            )

    def requirements(self) -> Mapping[str, tuple[Any, str]]:
        """See `nova_jax.data.pipeline.Dataset`; what else must fit is checked when it is made."""
        return {}

    def batches(
        self, config: DataConfig, process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator:
        """See `nova_jax.data.pipeline.Dataset`."""

        def stream(shape: Shape, size: str) -> grain.MapDataset:
            whole = getattr(config, size)
            mine = share_of(whole, process_index, process_count, size)
            pool = self._pool(shape, held_out=False)
            seeds = np.random.SeedSequence([config.seed, *shape]).generate_state(2)
            order = self._order(pool, int(seeds[0])).map_with_index(lambda i, place: (i, place))
            make = functools.partial(self._batch, pool, config, int(seeds[1]))
            return order.batch(whole).map(lambda batch: make(*(part[mine] for part in batch)))

        def mixed(shapes: Sequence[Shape], size: str) -> grain.MapDataset:
            sizes = [len(self._pool(shape, held_out=False)) for shape in shapes]
            streams = [stream(shape, size) for shape in shapes]
            if len(streams) == 1:
                return streams[0]
            return grain.MapDataset.mix(streams, [s / sum(sizes) for s in sizes])

        videos = [shape for shape in self.shapes if shape[0] > 1]
        stills = [shape for shape in self.shapes if shape[0] == 1]

        def pictures() -> grain.MapDataset:
            if not stills:
                raise NovaError(
                    "config.dataset has no pictures; set data.video_fraction to 1 and "
                    "data.picture_batches_first to 0, or prepare some"
                )
            return mixed(stills, "image_batch_size")

        if self.model.frames == 1:
            return BatchIterator(mixed(stills, "batch_size"), config)
        return alternate(lambda: mixed(videos, "batch_size"), pictures, config)

    def held_out(
        self, config: DataConfig, count: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Mapping[str, Any]]:
        """See `nova_jax.data.pipeline.Dataset`; few records are taken more than once."""
        mine = share_of(config.batch_size, process_index, process_count, "batch_size")
        pool = self._pool(self.main, held_out=bool(self.config.held_out))
        for first in range(0, count * config.batch_size, config.batch_size):
            places = np.arange(first, first + config.batch_size)[mine]
            yield self._batch(pool, config, None, places, places % len(pool))

    def _batch(
        self,
        pool: Pool,
        config: DataConfig,
        seed: int | None,
        numbers: np.ndarray,
        places: np.ndarray,
    ) -> Batch:
        """Makes a training batch of the records at some places in a pool.

        What is drawn for a sample depends on `seed` and its number in the stream alone, not on the
        batch or the process that it is in. Without a seed nothing is drawn: latents are the mean
        of the moments, captions are the long ones, and nothing is dropped.
        """
        records = pool.read(places)
        model, (frames, height, width) = self.model, records[0]["moments"].shape[:3]
        like = abstract_batch(
            model,
            size=len(records),
            frames=frames,
            latent_size=(height, width),
            text_dtype=LatentsConfig.text_dtype,
        )
        batch, captions, drops = zero_batch(like), [], []
        for i, (number, record) in enumerate(zip(numbers, records, strict=True)):
            rng, short, dropped, any_flow = None, False, False, False
            if seed is not None:
                rng = np.random.default_rng([seed, int(number)])
                short, dropped, any_flow = config.choices(rng.random(3))
            batch["latents"][i] = sample_latents(record, rng)
            batch["flow"][i] = config.default_flow if any_flow else record["flow"]
            batch["fps"][i] = record["fps"] if frames > 1 else self.config.fps
            # A record without a short caption has only the long one.
            form = "short_" if short and record["short_caption"] else ""
            if model.text_dim is None:
                batch["label"][i] = model.num_classes if dropped else record["label"]
            elif not dropped:
                rows = record[f"{form}text"][: model.text_length]
                batch["text"][i, : len(rows)] = rows
                batch["text_length"][i] = len(rows)
            captions.append(record[f"{form}caption"])
            drops.append(dropped)
        if self.keep_captions:
            batch |= {"caption": captions, "dropped": np.array(drops)}
        return batch

    def _fits(self, shape: Shape) -> bool:
        frames, *size = shape
        if frames > 1 and self.model.frames == 1:
            return False
        if self.config.sizes == "model":
            return tuple(size) == self.model.latent_size
        return self.model.fits(tuple(size))

    def _pool(self, shape: Shape, *, held_out: bool) -> Pool:
        """Records of this shape; those kept for evaluation, or all others."""

        def of(source: Records) -> np.ndarray:
            buckets = enumerate(source.metadata.buckets)
            parts = [source.of_bucket(n) for n, bucket in buckets if bucket.latent == shape]
            return np.concatenate([np.arange(0), *parts])

        indices = [of(source) for source in self.sources]
        if shape == self.main:
            # From the end, source by source from the last: neighbors are of one video.
            left = self.config.held_out
            for number in reversed(range(len(indices))):
                cut = max(len(indices[number]) - left, 0)
                left -= len(indices[number]) - cut
                indices[number] = indices[number][cut:] if held_out else indices[number][:cut]
        return Pool(self.sources, tuple(indices))

    def _order(self, pool: Pool, seed: int) -> grain.MapDataset:
        """An endless order of the records of a pool, shuffled anew each epoch."""

        def shuffled(start: int, end: int) -> grain.MapDataset:
            return grain.MapDataset.range(start, end).shuffle(seed=seed).repeat(EPOCHS)

        ends = np.cumsum([len(indices) for indices in pool.indices]).tolist()
        parts = [
            (source.weight, end - len(indices), end)
            for source, indices, end in zip(self.config.sources, pool.indices, ends, strict=True)
            if len(indices)
        ]
        if len({weight for weight, *_ in parts}) == 1:
            return shuffled(0, len(pool))
        shares = np.array([weight * (end - start) for weight, start, end in parts])
        streams = [shuffled(start, end) for _, start, end in parts]
        return grain.MapDataset.mix(streams, list(shares / shares.sum()))


def _check_encoding(
    source: Records, model: NovaConfig, codec: VideoCodec | None, text_encoder: TextEncoder | None
) -> None:
    """Raises a `NovaError` if records are not of what the run uses."""
    encoding = source.metadata.encoding
    if encoding is None:
        raise NovaError(
            f"{source.directory} holds pixels (--raw), not latents; give dataset.type 'raw'"
        )
    for name, wanted, there in (
        ("latent_channels", model.latent_channels, encoding.channels),
        ("text_dim", model.text_dim, encoding.text_dim),  # None of a model of classes
    ):
        if wanted not in (None, there):
            raise NovaError(
                f"config.model.{name} is {wanted}, the records of {source.directory} have {there}; "
                "make them equal"
            )
    if model.text_length is not None and encoding.text_length < model.text_length:
        logger.warning(
            "captions in %s are cut at %d tokens, config.model.text_length is %d",
            *(source.directory, encoding.text_length, model.text_length),
        )
    same_codec = codec is None or same_probe(encoding.codec_probe, probe_codec(codec))
    same_text = text_encoder is None or same_probe(encoding.text_probe, probe_text(text_encoder))
    for section, same in (("codec", same_codec), ("text_encoder", same_text)):
        if not same:
            raise NovaError(
                f"config.{section} is not what {source.directory} was prepared with, which was "
                f"that of {encoding.source}; use that one, or prepare the data again"
            )
