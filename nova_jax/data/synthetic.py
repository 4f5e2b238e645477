"""Random latents and text features of the model's shapes: what a step costs, without any data.

One batch of each kind is drawn at the start and given again and again.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import grain
import numpy as np
from jax.typing import DTypeLike

from nova_jax.config import Checked, Count, FrameRate, Seed
from nova_jax.data.batch import Batch, abstract_batch, zero_batch
from nova_jax.data.pipeline import EPOCHS, DataConfig, alternate, share_of
from nova_jax.models.config import NovaConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig(Checked):
    """Noise in place of data, for benchmarks; needs neither a codec nor a text encoder.

    Attributes:
      type: "synthetic".
      latent_frames: of a video; by default the model's base number.
      fps: frames per second, as told to the model.
      seed: of the noise.
    """

    type: Literal["synthetic"] = "synthetic"
    latent_frames: Count | None = None
    fps: FrameRate = 12.0
    seed: Seed = 0
    #: Of text features in batches, see `nova_jax.data.batch`.
    text_dtype: ClassVar[DTypeLike] = np.float32


class SyntheticDataset:
    """A `nova_jax.data.pipeline.Dataset` of noise for a model."""

    def __init__(self, config: SyntheticConfig, model: NovaConfig) -> None:
        self.config, self.model = config, model
        self.frames = config.latent_frames or model.frames

    def requirements(self) -> Mapping[str, tuple[Any, str]]:
        """Nothing: the batches follow the model."""
        return {}

    def batches(
        self, config: DataConfig, process_index: int = 0, process_count: int = 1
    ) -> grain.DatasetIterator:
        """The same batch of videos and the same of pictures, in the pattern of `config`."""

        def endless(frames: int, size: str) -> grain.MapDataset:
            whole = getattr(config, size)
            mine = share_of(whole, process_index, process_count, size)
            batch = self._draw(range(whole)[mine], frames)
            return grain.MapDataset.source([batch]).repeat(EPOCHS)

        return alternate(
            lambda: endless(self.frames, "batch_size"),
            lambda: endless(1, "image_batch_size"),
            dataclasses.replace(config, prefetch=0, num_workers=0),  # there is nothing to prepare
        )

    def held_out(
        self, config: DataConfig, count: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """`count` times one batch of videos."""
        size = config.batch_size
        mine = share_of(size, process_index, process_count, "batch_size")
        batch = self._draw(range(size, 2 * size)[mine], self.frames)  # not those of training
        return itertools.repeat(batch, count)

    def _draw(self, numbers: Sequence[int], frames: int) -> Batch:
        """Samples by number, so that a batch is the same however many processes share it."""
        model = self.model
        batch = zero_batch(abstract_batch(model, size=len(numbers), frames=frames))
        batch["fps"][:] = self.config.fps
        for index, number in enumerate(numbers):
            rng = np.random.default_rng([self.config.seed, frames, number])
            rng.standard_normal(dtype=np.float32, out=batch["latents"][index])
            batch["flow"][index] = rng.uniform(0, 10)
            if model.num_classes is None:
                rng.standard_normal(dtype=np.float32, out=batch["text"][index])
                batch["text_length"][index] = model.text_length
            else:
                batch["label"][index] = rng.integers(model.num_classes)
        return batch
