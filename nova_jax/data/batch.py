"""What a training batch is: what datasets fill, training steps take and plans compile for.

    latents       float32 [B, T, h, w, C]    as the transformer sees them
    text          float32 or float16 [B, L, d]    of models of text; zero after a caption's last row
    text_length   int32 [B]    of models of text: rows of the caption, 0 where it was dropped
    label         int32 [B]    of models of classes: `num_classes` where it was dropped
    flow          float32 [B]    motion score in pixels a frame
    fps           float32 [B]    frames per second

    B samples   T latent frames, 1 for pictures   h, w, C latent   L text rows   d text width

The type of text is that of the dataset (``text_dtype`` of its config). For people to read, and not
for a training step, a batch may also have "caption" (B strings) and "dropped" (bool [B]).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from nova_jax.models.config import NovaConfig

Batch = dict[str, Any]


def abstract_batch(
    model: NovaConfig,
    *,
    size: int,
    frames: int,
    latent_size: tuple[int, int] | None = None,
    text_dtype: DTypeLike = np.float32,
    sharding: Sharding | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and types of a batch.

    Args:
      model: what the batch is for.
      size: B.
      frames: T.
      latent_size: (h, w); by default the model's own.
      text_dtype: of the features of captions.
      sharding: where every array lives.
    """

    def array(*shape: int, dtype: DTypeLike = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

    batch = {
        "latents": array(frames, *(latent_size or model.latent_size), model.latent_channels),
        "flow": array(),
        "fps": array(),
    }
    if model.text_dim is None or model.text_length is None:
        return batch | {"label": array(dtype=np.int32)}
    return batch | {
        "text": array(model.text_length, model.text_dim, dtype=text_dtype),
        "text_length": array(dtype=np.int32),
    }


def zero_batch(like: Mapping[str, jax.ShapeDtypeStruct]) -> Batch:
    """Returns a batch of zeros, for a dataset to fill, of what `abstract_batch` says."""
    return {name: np.zeros(array.shape, array.dtype) for name, array in like.items()}
