"""Training on records of pixels (``--raw``): encoded on the way, as the moving digits are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jax.typing import DTypeLike

from nova_jax.config import Checked, Count, FrameRate, Natural
from nova_jax.data.records import Bucket, Records
from nova_jax.errors import NovaError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawConfig(Checked):
    """Records that ``nova_jax.prepare --raw`` wrote.

    Attributes:
      type: "raw".
      path: of the directory.
      size, frames: of the clips; records of other shapes are left out.
      held_out: the last so many records are for evaluation alone. With 0 it looks at those of
        training.
      fps: what samples are drawn with, and pictures are said to have.
    """

    type: Literal["raw"] = "raw"
    path: str
    size: tuple[Count, Count]
    frames: Count = 1
    held_out: Natural = 64
    fps: FrameRate = 12.0
    #: Of text features in batches, see `nova_jax.data.batch`.
    text_dtype: ClassVar[DTypeLike] = np.float32


class RawSource:
    """A `nova_jax.data.pipeline.ClipSource` of the records of one shape.

    Args:
      config: which.
      held_out: take the first so many of the records kept for evaluation, again from the start if
        there are fewer; None takes all others.
      images: give the middle frame of each clip.
    """

    def __init__(
        self, config: RawConfig, held_out: int | None = None, *, images: bool = False
    ) -> None:
        self.config, self._held_out, self._images = config, held_out, images
        self._records = Records(Path(config.path))
        metadata = self._records.metadata
        if metadata.kind != "raw":
            raise NovaError(f"{config.path} holds latents; give dataset.type 'latents'")
        shape = (config.frames, *config.size)
        wanted = Bucket(frames=config.frames, size=config.size, latent=shape)
        if wanted not in metadata.buckets:
            raise NovaError(
                f"{config.path} has no clips of {wanted.name}, only of "
                f"{', '.join(bucket.name for bucket in metadata.buckets)}; change dataset.size and "
                "dataset.frames"
            )
        indices = self._records.of_bucket(metadata.buckets.index(wanted))
        kept = min(config.held_out, len(indices))
        if kept == len(indices):
            raise NovaError(
                f"dataset.held_out {config.held_out} leaves no record to train on; make it smaller"
            )
        train, evaluation = indices[: len(indices) - kept], indices[len(indices) - kept :]
        if held_out is None:
            self._indices = train
        else:
            self._indices = np.resize(evaluation if kept else train, held_out)

    def __reduce__(self) -> tuple:
        again = functools.partial(RawSource, images=self._images)
        return again, (self.config, self._held_out)

    def __len__(self) -> int:
        return len(self._indices)

    def images(self) -> RawSource:
        """The same clips as pictures: the middle frame of each."""
        return RawSource(self.config, self._held_out, images=True)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """See `nova_jax.data.pipeline.ClipSource`."""
        records = self._records.read(self._indices[np.asarray(indices)])
        frames = np.stack([record["frames"] for record in records])
        still = self._images or self.config.frames == 1
        if self._images:
            middle = self.config.frames // 2
            frames = frames[:, middle : middle + 1]
        return {
            "frames": frames,
            "caption": [record["caption"] for record in records],
            "short_caption": [r["short_caption"] or r["caption"] for r in records],
            "flow": np.array([0 if still else r["flow"] for r in records], np.float32),
            "fps": np.array([self.config.fps if still else r["fps"] for r in records], np.float32),
        }
