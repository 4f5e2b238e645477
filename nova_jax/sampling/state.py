"""What a video is while it is made: one pytree, out of which its next frame comes.

The temporal encoder has S slots. Frame t is described from the t frames before it as long as they
find room; then the first one stays where it is, as an anchor, and the S − 2 right before t follow
it. Positions never leave the S that all of it began with, and the memory of a video does not grow.

Every leaf has one row a sample, so that samples of different frames, prompts and seeds can be
joined into one state and taken apart again (`join`, `rows_of`, `apart`).

Dimensions: B samples, S slots, N tokens of a frame, g given frames, h×w latents, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Conditions
from nova_jax.sampling.denoise import KeyedNoise, NoiseSource
from nova_jax.sampling.keys import context_keys, noise_keys, order_keys
from nova_jax.sampling.order import reveal_order

# A `VideoState`, or any other pytree whose leaves have one row a sample.
Rows = TypeVar("Rows")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VideoState:
    """All that the next frame of B samples is made from.

    Attributes:
        conditions: text or class, and motion.
        negative: the same for the unconditional passes.
        keys: each sample's random key.
        order: reveal order, the same for all frames of a sample.
        noise: where noise comes from.
        seen: frames as the temporal encoder sees them, the first one first; zero where there is
            none yet.
        frame: index of the next frame.
        drawn: frames that were drawn so far, the given ones not counted; noise goes by it.
    """

    conditions: Conditions
    negative: Conditions
    keys: Key[Array, " b"]
    order: Int[Array, "b n"]
    noise: NoiseSource
    seen: Float[Array, "b s h w c"]
    frame: Int[Array, " b"]
    drawn: Int[Array, " b"]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def slots(self) -> int:
        """S."""
        return self.seen.shape[1] + 1

    def followed_by(self, latents: Float[Array, "b h w c"], context_noise: float) -> VideoState:
        """The state after a frame was drawn."""
        if context_noise:
            latents = noised(latents, self.keys, self.frame, context_noise)
        return dataclasses.replace(
            self,
            seen=_remember(self.seen, latents, self.frame),
            frame=self.frame + 1,
            drawn=self.drawn + 1,
        )


@functools.partial(jax.jit, static_argnames=("config", "slots", "context_noise"))
def begin(
    config: NovaConfig,
    conditions: Conditions,
    negative: Conditions | None,
    keys: Key[Array, " b"],
    given: Float[Array, "b g h w c"] | None = None,
    order: Int[Array, "b n"] | None = None,
    noise: NoiseSource | None = None,
    *,
    slots: int,
    context_noise: float = 0.0,
) -> VideoState:
    """The state of videos that begin with the given frames, or with none.

    Args:
        config: the model's.
        conditions, negative, keys: see `VideoState`; by default `unconditional`.
        given: latents, all of which count as context.
        order, noise: drawn from the keys by default.
        slots: S.
        context_noise: see `nova_jax.sampling.options.SamplingConfig`.
    """
    batch, (own_order, own_noise) = len(keys), draws(config, keys)
    count = 0 if given is None else given.shape[1]
    seen = jnp.zeros((batch, 0, *config.latent_size, config.latent_channels))
    if given is not None:
        seen = given.astype(jnp.float32)
        if context_noise:
            frames = jnp.broadcast_to(jnp.arange(count)[:, None], (count, batch))
            noise_all = jax.vmap(noised, (1, None, 0, None), 1)
            seen = noise_all(seen, keys, frames, context_noise)
    # As `_remember` leaves them: all of them or, where they are more, the first and the last ones.
    if count > (room := slots - 1):
        seen = jnp.concatenate([seen[:, :1], seen[:, count - room + 1 :]], axis=1)[:, :room]
    seen = jnp.pad(seen, ((0, 0), (0, room - seen.shape[1]), (0, 0), (0, 0), (0, 0)))
    return VideoState(
        conditions=conditions,
        negative=unconditional(conditions, config) if negative is None else negative,
        keys=keys,
        order=own_order if order is None else order,
        noise=own_noise if noise is None else noise,
        seen=seen,
        frame=jnp.full(batch, count, jnp.int32),
        drawn=jnp.zeros(batch, jnp.int32),
    )


def draws(config: NovaConfig, keys: Key[Array, " b"]) -> tuple[Int[Array, "b n"], KeyedNoise]:
    """Reveal order and noise of each sample, out of its key."""
    noise = KeyedNoise(noise_keys(keys), config.num_tokens, config.token_dim)
    return reveal_order(order_keys(keys), config.num_tokens), noise


def unconditional(conditions: Conditions, config: NovaConfig) -> Conditions:
    """The same conditions without text or class; motion stays."""
    if config.num_classes is not None:
        assert conditions.label is not None
        return dataclasses.replace(
            conditions, label=jnp.full_like(conditions.label, config.num_classes)
        )
    assert conditions.text_length is not None
    return dataclasses.replace(conditions, text_length=jnp.zeros_like(conditions.text_length))


def join(parts: Sequence[Rows]) -> Rows:
    """One state of all samples of several, which have the same shapes but for their number."""
    return _join(tuple(parts)) if len(parts) > 1 else parts[0]


def rows_of(state: Rows, first: int, count: int) -> Rows:
    """The state of some of the samples alone."""
    return jax.tree.map(lambda leaf: leaf[first : first + count], state)


def apart(state: Rows) -> list[Rows]:
    """The states of all samples, each one alone."""
    return _apart(state) if _count(state) > 1 else [state]


def _count(state: Rows) -> int:
    return len(jax.tree.leaves(state)[0])


@jax.jit
def _join(parts: Sequence[Rows]) -> Rows:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@jax.jit
def _apart(state: Rows) -> list[Rows]:
    return [rows_of(state, row, 1) for row in range(_count(state))]


def with_noise(
    latents: Float[Array, "*b h w c"],
    level: float | Float[Array, "*b 1 1 1"],
    noise: Float[Array, "*b h w c"],
) -> Float[Array, "*b h w c"]:
    """latents + level·noise: how frames are noised that others are made from.

    Not (1 − level)·latents + level·noise, as in flow matching: that pales them, and a model that
    is trained to follow pale frames with full ones makes each frame bolder than the one before.
    """
    return latents + level * noise


def noised(
    latents: Float[Array, "b h w c"], keys: Key[Array, " b"], frame: Int[Array, " b"], level: float
) -> Float[Array, "b h w c"]:
    """A frame as later ones see it, with noise of each sample's own key."""
    normal = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))
    return with_noise(latents, level, normal(context_keys(keys, frame)))


def _remember(
    seen: Float[Array, "b s h w c"], latents: Float[Array, "b h w c"], frame: Int[Array, " b"]
) -> Float[Array, "b s h w c"]:
    """The frames with one more: behind the others or, where all is full, for the oldest but one."""
    room = seen.shape[1]
    if room == 0:
        return seen
    next_one = jnp.arange(room)[None] == frame[:, None]
    behind = jnp.where(next_one[..., None, None, None], latents[:, None], seen)
    moved = jnp.concatenate([seen[:, :1], seen[:, 2:], latents[:, None]], axis=1)[:, :room]
    return jnp.where((frame < room)[:, None, None, None, None], behind, moved)
