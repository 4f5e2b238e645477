"""From clips as a source gives them to the arrays a training step takes.

Letters in shapes:

    B clips   F pixel frames   T latent frames   h, w, C latent   L text rows   d text width
"""

import dataclasses
from typing import Any

import numpy as np

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_float
from nova_jax.text.interface import TextEncoder

Batch = dict[str, Any]


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

    def __call__(self, clips: Batch, draws: np.ndarray) -> Batch:
        """Replaces "caption" and "short_caption" by "caption" and "dropped" (bool [B]); "flow".

        Args:
          clips: as a source gives them.
          draws: random numbers, uniform over [0, 1), [3, B].
        """
        shares = np.array([[self.short_fraction], [self.text_dropout], [self.flow_dropout]])
        short, dropped, any_flow = draws < shares
        forms = zip(clips["caption"], clips["short_caption"], short, strict=True)
        return clips | {
            "caption": [brief if use else full for full, brief, use in forms],
            "dropped": dropped,
            "flow": np.where(any_flow, np.float32(self.default_flow), clips["flow"]),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
    """Pixels to latents and captions to text features.

    With `keep_captions` the batch also has "caption" (list of B strings) and "dropped" (bool [B]),
    for people to read: jitted functions do not take strings.
    """

    codec: VideoCodec
    text_encoder: TextEncoder
    text_length: int
    keep_captions: bool = False

    def __call__(self, clips: Batch) -> Batch:
        """Returns a training batch of NumPy arrays.

        Returns:
          latents: float32 [B, T, h, w, C].
          text: float32 [B, L, d]; text_length: int32 [B], 0 where the caption was dropped.
          flow: float32 [B], motion score in pixels a frame; fps: float32 [B].
        """
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
