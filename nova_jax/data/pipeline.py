"""The Grain pipeline: shuffled, sharded, prefetched batches, at a position that can be saved.

A batch is a function of its number: a permutation of the clips (a new one for each epoch) says
which clips it holds, a generator seeded by its number makes its random choices. Threads and worker
processes only decide who computes it, so the stream does not depend on them, and a position is one
number. All clips of a batch are rendered together.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import grain
import numpy as np
from absl import flags

from nova_jax.config import Checked, Count, Fraction, MotionScore, Natural, Seed
from nova_jax.data.transforms import Encode
from nova_jax.errors import NovaError

#: As good as endless, and sums of such lengths still fit an index.
EPOCHS = 1 << 24

#: More would only wait for each other.
_WORKERS_PER_CORE = 16


class Dataset(Protocol):
    """What a run trains on: batches for its model, however they come about.

    A batch, see `nova_jax.data.batch`, holds NumPy arrays of one process's share of the samples.
    """

    def requirements(self) -> Mapping[str, tuple[Any, str]]:
        """What the model must be for these batches: (value, section of the config it comes from)
        by field of `nova_jax.models.config.NovaConfig`."""

    def batches(
        self, config: "DataConfig", process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator:
        """An endless stream. Its `get_state()` and `set_state()` save and restore the position: the
        batches after it are the same to the bit, on any number of processes and workers."""

    def held_out(
        self, config: "DataConfig", count: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Mapping[str, Any]]:
        """`count` batches that training does not see, the same ones each time."""


class ClipSource(Protocol):
    """Random access to captioned clips, many at a time."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Clips: "frames" uint8 [B, F, H, W, 3], "caption" and "short_caption" (B strings each),
        "flow" and "fps" float32 [B]."""

    def images(self) -> Self:
        """A source of pictures, that is, of clips with one frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
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

    batch_size: Count = 32
    image_batch_size: Count = 32
    video_fraction: Fraction = 0.75
    picture_batches_first: Natural = 0
    text_dropout: Fraction = 0.1
    flow_dropout: Fraction = 0.0
    default_flow: MotionScore = 5.0
    short_caption_fraction: Fraction = 0.3
    seed: Seed = 0
    prefetch: Natural = 4
    num_workers: Natural = 0

    def choices(self, draws: np.ndarray) -> np.ndarray:
        """Whether to take the short caption, to drop the caption, and to drop the motion score.

        A sample without its caption has no text rows, which is what the model learns the
        unconditional case from (classifier-free guidance). A dropped motion score is
        `default_flow`, so that the model learns to take it for "as the caption says".

        Args:
          draws: random numbers, uniform over [0, 1), [3] or [3, B]; the answers have their shape.
        """
        return (draws.T < (self.short_caption_fraction, self.text_dropout, self.flow_dropout)).T


def make_iterator(
    source: ClipSource,
    config: DataConfig,
    encode: Encode,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Returns an endless iterator of training batches, see `Dataset.batches`.

    Process p of P takes the p-th of P equal parts of every batch that one process alone would see,
    with the same random choices.

    Raises:
      NovaError: a batch size that the processes cannot share equally.
    """

    def stream(kind: int, clips: ClipSource, size: str) -> grain.MapDataset:
        whole = getattr(config, size)
        mine = share_of(whole, process_index, process_count, size)
        seeds = np.random.SeedSequence([config.seed, kind]).generate_state(2)
        order = grain.MapDataset.range(len(clips)).shuffle(seed=int(seeds[0])).repeat(EPOCHS)

        def load(indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
            batch = clips.batch(indices[mine])
            draws = rng.random((3, whole))  # of all processes, so that their number is no matter
            short, dropped, any_flow = config.choices(draws[:, mine])
            forms = zip(batch["caption"], batch["short_caption"], short, strict=True)
            return batch | {
                "caption": [brief if use else full for full, brief, use in forms],
                "dropped": dropped,
                "flow": np.where(any_flow, np.float32(config.default_flow), batch["flow"]),
            }

        return order.batch(whole).random_map(load, seed=int(seeds[1]))

    return alternate(
        lambda: stream(0, source, "batch_size").map(encode),
        lambda: stream(1, source.images(), "image_batch_size").map(encode),
        config,
    )


def alternate(
    videos: Callable[[], grain.MapDataset],
    pictures: Callable[[], grain.MapDataset],
    config: DataConfig,
) -> grain.DatasetIterator:
    """An iterator over batches of videos and of pictures, in the pattern that `config` asks for.

    `videos` and `pictures` make endless datasets of batches; only those in the pattern are made.
    """
    first, fraction = config.picture_batches_first, config.video_fraction
    if fraction == 1:
        batches = videos()
    elif fraction == 0:
        batches = pictures()[first:]
    else:
        batches = grain.MapDataset.mix([videos(), pictures()[first:]], [fraction, 1 - fraction])
    if first:
        batches = grain.MapDataset.concatenate([pictures()[:first], batches])
    return BatchIterator(batches, config)


@dataclasses.dataclass(frozen=True)
class ClipDataset:
    """A `Dataset` of clips that are encoded on the way.

    Attributes:
      source: the clips to train on.
      held_out_source: makes a source of this many other clips.
      encode: pixels and captions to batches.
      fits: see `Dataset.requirements`.
    """

    source: ClipSource
    held_out_source: Callable[[int], ClipSource]
    encode: Encode
    fits: Mapping[str, tuple[Any, str]]

    def requirements(self) -> Mapping[str, tuple[Any, str]]:
        """See `Dataset`."""
        return self.fits

    def batches(
        self, config: DataConfig, process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator:
        """See `make_iterator`."""
        return make_iterator(self.source, config, self.encode, process_index, process_count)

    def held_out(
        self, config: DataConfig, count: int, process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator:
        """See `make_evaluation_iterator`."""
        source = self.held_out_source(count * config.batch_size)
        return make_evaluation_iterator(source, config, self.encode, process_index, process_count)


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
    mine = share_of(config.batch_size, process_index, process_count, "batch_size")
    if len(source) < config.batch_size:
        raise NovaError(
            f"{len(source)} clips do not fill a batch of {config.batch_size}; make batch_size "
            "smaller or num_clips larger"
        )
    whole = grain.MapDataset.range(len(source)).batch(config.batch_size, drop_remainder=True)
    batches = whole.map(lambda indices: source.batch(indices[mine]))
    return BatchIterator(batches.map(encode), config)


def share_of(size: int, process_index: int, process_count: int, name: str) -> slice:
    """Which samples of a batch of `size` are those of a process; messages call the size `name`.

    Raises:
      NovaError: the processes cannot share it equally.
    """
    if size % process_count:
        raise NovaError(
            f"{name} {size} is not divisible by {process_count} processes; choose a multiple"
        )
    share = size // process_count
    return slice(process_index * share, (process_index + 1) * share)


class BatchIterator(grain.DatasetIterator):
    """Batches, prepared by threads or processes as `config` says.

    Its state is the number of batches taken, whoever prepares them; Grain's own is not.

    Raises:
      NovaError: more processes than this machine should start.
    """

    def __init__(self, batches: grain.MapDataset, config: DataConfig):
        super().__init__()
        self._batches, self._config, self._taken = batches, config, 0
        self._prepared: grain.DatasetIterator | None = None
        if config.num_workers > (most := _WORKERS_PER_CORE * (os.cpu_count() or 1)):
            raise NovaError(
                f"data.num_workers is {config.num_workers}; this machine has cores for {most}"
            )

    def __next__(self) -> dict[str, Any]:
        if self._prepared is None:
            self._prepared = _prepare(self._batches[self._taken :], self._config)
        batch = next(self._prepared)
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position."""
        return {"next_batch": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position."""
        self.close()
        self._taken = state["next_batch"]

    def close(self) -> None:
        """Ends the threads or processes."""
        if self._prepared is not None:
            self._prepared.close()
            self._prepared = None


def _prepare(batches: grain.MapDataset, config: DataConfig) -> grain.DatasetIterator:
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
