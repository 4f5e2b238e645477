"""From pixels and captions to what a model trains on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_float
from nova_jax.data.batch import Batch
from nova_jax.text.interface import TextEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
    """Pixels to latents and captions to text features, for a batch (`nova_jax.data.batch`).

    Attributes:
      codec, text_encoder: what encodes them.
      text_length: rows of text features in a batch; longer captions are cut.
      keep_captions: see `nova_jax.training.datasets.build_dataset`.
    """

    codec: VideoCodec
    text_encoder: TextEncoder
    text_length: int
    keep_captions: bool = False

    def __call__(self, clips: Mapping[str, Any]) -> Batch:
        """Encodes clips of a `nova_jax.data.pipeline.ClipSource`; "dropped" ones have no text."""
        dropped = clips.get("dropped", np.zeros(len(clips["caption"]), bool))
        shown = ["" if drop else text for text, drop in zip(clips["caption"], dropped, strict=True)]
        text, lengths = self.text_encoder.encode(shown, self.text_length)
        batch = {
            "latents": np.asarray(self.codec.encode(to_float(clips["frames"])), np.float32),
            "text": text,
            "text_length": lengths,
            "flow": clips["flow"],
            "fps": clips["fps"],
        }
        if self.keep_captions:
            batch |= {"caption": clips["caption"], "dropped": dropped}
        return batch
