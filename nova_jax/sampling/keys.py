"""Every random key of a sample and of a training step, by what is drawn with it.

A sample's key is made of its seed and its number among the samples of its prompt, and all that is
random about the sample comes from that key; so the same seed gives the same video in any batch. A
training step's key is made of the run's seed and the step's number, so a run carries no generator.
What is derived here never changes: seeds would give other videos.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Integer, Key

# Validation draws the same whatever the run's seed is.
_VALIDATION_SEED = 20241220


def seed_key(seed: int | Integer[Array, ""]) -> Key[Array, ""]:
    """Of a seed; a caller may have a key of its own in place of one."""
    return jax.random.key(seed)


def sample_key(seed: Key[Array, ""], copy: int | Int[Array, ""]) -> Key[Array, ""]:
    """Of one sample: the key of its seed, and which of the samples of its prompt it is, from 0."""
    return jax.random.fold_in(seed, copy)


def order_keys(samples: Key[Array, " b"]) -> Key[Array, " b"]:
    """Of the reveal order of each sample."""
    return _fold_in(samples, 0)


def noise_keys(samples: Key[Array, " b"]) -> Key[Array, " b"]:
    """Of all noise of each sample, see `noise_key`."""
    return _fold_in(samples, 1)


def image_keys(samples: Key[Array, " b"]) -> Key[Array, " b"]:
    """Of the latent of the picture that each sample begins with."""
    return _fold_in(samples, 2)


def context_keys(samples: Key[Array, " b"], frame: Int[Array, " b"]) -> Key[Array, " b"]:
    """Of the noise on a frame when later ones are made from it, see `SamplingConfig`."""
    return _fold_in(_fold_in(samples, 3), frame)


def noise_key(
    noise: Key[Array, ""], frame: int | Array, step: int | Array, draw: int | Array
) -> Key[Array, ""]:
    """Of one Gaussian draw.

    Args:
        noise: the sample's, one of `noise_keys`.
        frame: which of the generated frames.
        step: which AR step of the frame.
        draw: which noisy diffusion step of the AR step; -1 for the noise that it starts from.
    """
    for index in (frame, step, draw + 1):
        noise = jax.random.fold_in(noise, index)
    return noise


def training_key(seed: int, step: int | Int[Array, ""]) -> Key[Array, ""]:
    """Of a training step, of which `step` came before it."""
    return jax.random.fold_in(seed_key(seed), step)


def context_and_window_keys(
    training: Key[Array, ""],
) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Of what the temporal encoder sees in a training step, and of the window that it sees."""
    # A key folded with i is the i-th that it is split into; the loss takes four, from 0 to 3.
    context, window = jax.random.split(jax.random.fold_in(training, 4))
    return context, window


def validation_key(batch: int | Int[Array, ""]) -> Key[Array, ""]:
    """Of a batch of validation, by its number."""
    return jax.random.fold_in(seed_key(_VALIDATION_SEED), batch)


def _fold_in(keys: Key[Array, " b"], purpose: int | Int[Array, " b"]) -> Key[Array, " b"]:
    return jax.vmap(jax.random.fold_in, in_axes=(0, 0 if jnp.ndim(purpose) else None))(
        keys, purpose
    )
