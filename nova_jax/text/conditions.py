"""Prompts as the transformer takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Conditions
from nova_jax.text.interface import TextEncoder


def conditions_of(
    prompts: Sequence[Any],
    encoder: TextEncoder | None,
    config: NovaConfig,
    *,
    flow: float,
    fps: float,
) -> Conditions:
    """Conditions, one row for each prompt.

    Args:
        prompts: all texts, all class labels, or all text features [rows, text_dim].
        encoder: of texts; None for a class-conditional model.
        config: the model's.
        flow, fps: motion score and frame rate, which an image model does not take.
    """
    motion: dict[str, jax.Array] = {}
    if config.is_video:
        ones = np.ones(len(prompts), np.float32)
        motion = {"flow": jnp.asarray(flow * ones), "fps": jnp.asarray(fps * ones)}
    if encoder is None:
        return Conditions(label=jnp.asarray(prompts, jnp.int32), **motion)
    length = config.text_length or 0
    if isinstance(prompts[0], np.ndarray):
        rows = [embed[:length] for embed in prompts]
        lengths = np.array([len(embed) for embed in rows], np.int32)
        text = np.stack([np.pad(row, ((0, length - len(row)), (0, 0))) for row in rows])
    else:
        text, lengths = encoder.encode(prompts, length)
    return Conditions(text=jnp.asarray(text), text_length=jnp.asarray(lengths), **motion)
