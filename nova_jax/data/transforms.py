"""From clips as a source gives them to training batches."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_float
from nova_jax.data.batch import Batch
from nova_jax.text.interface import TextEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChooseConditions:
    """Takes the short caption with probability `short_fraction`; drops captions and motion scores.

    A dropped caption is the empty string: no text rows, which is what the model learns the
    unconditional case from (classifier-free guidance). A dropped motion score is `default_flow`, so
    that the model learns to take it for "as the caption says".
    """

    short_fraction: float
    text_dropout: float
    flow_dropout: float
    default_flow: float

    def __call__(self, clips: Mapping[str, Any], draws: np.ndarray) -> dict[str, Any]:
        """Replaces "caption" and "short_caption" by "caption" and "dropped" (bool [B]); "flow".

        Args:
          clips: as a `nova_jax.data.pipeline.ClipSource` gives them.
          draws: random numbers, uniform over [0, 1), [3, B].
        """
        shares = np.array([[self.short_fraction], [self.text_dropout], [self.flow_dropout]])
        short, dropped, any_flow = draws < shares
        forms = zip(clips["caption"], clips["short_caption"], short, strict=True)
        return {
            **clips,
            "caption": [brief if use else full for full, brief, use in forms],
            "dropped": dropped,
            "flow": np.where(any_flow, np.float32(self.default_flow), clips["flow"]),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
    """Pixels to latents and captions to text features.

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
        """Returns a batch, see `nova_jax.data.batch`, of what `ChooseConditions` gives."""
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
