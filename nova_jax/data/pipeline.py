"""The Grain pipeline: shuffled, sharded, prefetched batches, at a position that can be saved.

A batch is a function of its number: a permutation of the clips (a new one for each epoch) says
which clips it holds, a generator seeded by its number makes its random choices. Threads and worker
processes only decide who computes it, so the stream does not depend on them, and a position is one
number. All clips of a batch are rendered together.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, Self

import grain
import numpy as np
from absl import flags

from nova_jax.data.transforms import ChooseConditions, Encode
from nova_jax.errors import NovaError

#: As good as endless, and sums of such lengths still fit an index.
EPOCHS = 1 << 24


class ClipSource(Protocol):
    """Random access to captioned clips, many at a time."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Clips: "frames" uint8 [B, F, H, W, 3], "caption" and "short_caption" (B strings each),
        "flow" and "fps" float32 [B]."""

    def images(self) -> Self:
        """A source of pictures, that is, of clips with one frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How clips become batches.

    Attributes:
      batch_size, image_batch_size: clips of a video batch and pictures of an image batch, over all
        processes; each process gets its equal share.
      video_fraction: share of batches that are videos; they alternate in a fixed pattern.
      picture_batches_first: how many batches are pictures only before videos mix in. Shapes and
        colors are learned from pictures several times faster (paper, section 4.1).
      text_dropout: probability that a sample's caption is dropped.
      flow_dropout: probability that its motion score gives way to `default_flow`.
      default_flow: the motion score that means any; what generation asks for by default.
      short_caption_fraction: probability of the short caption.
      seed: of the order and of the random choices.
      prefetch: batches held ready, in each worker; 0 computes them on demand.
      num_workers: processes that prepare batches; 0 uses one thread of this process.
    """

    batch_size: int = 32
    image_batch_size: int = 32
    video_fraction: float = 0.75
    picture_batches_first: int = 0
    text_dropout: float = 0.1
    flow_dropout: float = 0.0
    default_flow: float = 5.0
    short_caption_fraction: float = 0.3
    seed: int = 0
    prefetch: int = 4
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "image_batch_size"):
            if getattr(self, name) < 1:
                raise NovaError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("video_fraction", "text_dropout", "flow_dropout", "short_caption_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise NovaError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        for name in ("picture_batches_first", "seed", "prefetch", "num_workers"):
            if getattr(self, name) < 0:
                raise NovaError(f"{name} must not be negative, not {getattr(self, name)}")


def make_iterator(
    source: ClipSource,
    config: DataConfig,
    encode: Encode,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Returns an endless iterator of training batches, each the share of one process.

    A batch is what `Encode` returns: latents [B, T, h, w, C] with T = 1 for pictures, text and
    text_length, 0 where the caption was dropped, motion score (flow) and fps.

    `get_state()` and `set_state()` save and restore the position: the batches after it are the same
    to the bit. Process p of P takes every P-th clip of one shuffled stream, so that processes never
    share a clip, and together see what one process alone would.

    Raises:
      NovaError: a batch size that the processes cannot share equally.
    """
    choose = ChooseConditions(
        short_fraction=config.short_caption_fraction,
        text_dropout=config.text_dropout,
        flow_dropout=config.flow_dropout,
        default_flow=config.default_flow,
    )

    def stream(kind: int, clips: ClipSource, size: str) -> grain.MapDataset:
        share = _share(getattr(config, size), process_count, size)
        seeds = np.random.SeedSequence([config.seed, kind]).generate_state(1 + process_count)
        order = grain.MapDataset.range(len(clips)).shuffle(seed=int(seeds[0])).repeat(EPOCHS)
        indices = order[process_index::process_count].batch(share)
        return indices.map(clips.batch).random_map(choose, seed=int(seeds[1 + process_index]))

    def videos() -> grain.MapDataset:
        return stream(0, source, "batch_size")

    def pictures() -> grain.MapDataset:
        return stream(1, source.images(), "image_batch_size")

    first, fraction = config.picture_batches_first, config.video_fraction
    if fraction == 1:
        batches = videos()
    elif fraction == 0:
        batches = pictures()[first:]
    else:
        batches = grain.MapDataset.mix([videos(), pictures()[first:]], [fraction, 1 - fraction])
    if first:
        batches = grain.MapDataset.concatenate([pictures()[:first], batches])
    return _iterate(batches.map(encode), config)


def make_evaluation_iterator(
    source: ClipSource,
    config: DataConfig,
    encode: Encode,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Returns an iterator over a source, once, in order: long captions, none dropped, no pictures.

    Batches are those of `make_iterator`, of `config.batch_size` clips; a last part of a batch is
    left out, so that every batch has one shape.

    Raises:
      NovaError: a batch size that the processes cannot share equally, or too few clips for a batch.
    """
    share = _share(config.batch_size, process_count, "batch_size")
    if len(source) < config.batch_size:
        raise NovaError(
            f"{len(source)} clips do not fill a batch of {config.batch_size}; make batch_size "
            "smaller or num_clips larger"
        )
    indices = grain.MapDataset.range(len(source) // config.batch_size * config.batch_size)
    batches = indices[process_index::process_count].batch(share).map(source.batch)
    return _iterate(batches.map(encode), config)


def _share(size: int, process_count: int, name: str) -> int:
    if size % process_count:
        raise NovaError(
            f"{name} {size} is not divisible by {process_count} processes; choose a multiple"
        )
    return size // process_count


def _iterate(batches: grain.MapDataset, config: DataConfig) -> grain.DatasetIterator:
    # One thread: NumPy and OpenCV let go of the interpreter too seldom for more to help.
    threads = min(config.prefetch, 1)
    dataset = batches.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=config.prefetch)
    )
    if config.num_workers:
        # Grain's workers read absl flags; where no command has parsed any, the defaults hold.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=config.num_workers, per_worker_buffer_size=max(config.prefetch, 1)
            )
        )
    return iter(dataset)
