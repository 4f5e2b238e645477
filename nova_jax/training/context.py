"""What training lets the temporal encoder see of the frames before: the remedies against drift.

A model that fills frame after frame sees its own frames when it generates, with their faults, and
clean ones when it trains: its faults add up. Each remedy takes some of that difference away, and
each is off by default, as in the release:

- noise on the frames before, each frame's level drawn anew (GameNGen, arXiv 2408.14837, section
  3.2.1; URSA, arXiv 2510.24717): faults smaller than the noise no longer matter;
- a part of another video in all frames but the first (CutMix, arXiv 1905.04899, of what is seen):
  what a frame has lost comes back in the next one, and what does not belong there goes, by the
  first frame and the prompt;
- frames left out, begin of video in their place (as guidance by the frame before needs it): what
  the prompt says is taken from the prompt;
- the model's own frames in place of the clip's (scheduled sampling, arXiv 1506.03099, in two passes
  over all frames at once as in arXiv 1906.07651): the faults themselves;
- a window of a longer clip with its first frame before it, as generation beyond the length of the
  window sees it (`nova_jax.sampling.state`).

Dimensions: B videos, T frames, F = B·T, N tokens of a frame, h×w latent size, C latent channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key

from nova_jax.config import Checked, Count, Fraction, Range
from nova_jax.models.layers import unpatchify
from nova_jax.models.nova import Conditions, Context, Nova
from nova_jax.sampling.denoise import KeyedNoise, denoise_set
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.order import to_reveal_order, to_row_major
from nova_jax.sampling.schedules import Schedule
from nova_jax.sampling.state import with_noise

# Frames that start the movement of a window from later on, which its first frame says nothing of.
LEAD = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextConfig(Checked):
    """What is done to the frames that the temporal encoder sees.

    Attributes:
        noise: Largest noise level, 0 to 1, of frame + level·noise; each frame
            draws its own level, evenly.
        cutmix: Largest height and width, relative to the frame's, 0 to 1, of a rectangle that shows
            another video of the batch, in all frames but the first; each video draws its own.
        dropout: Share of frames that are left out, 0 to 1.
        own: Share of training steps whose frames are the model's own, 0 to 1.
        own_steps: Diffusion steps that they are drawn with.
        window: Frames that a training step sees of longer clips: the first one, and others in a
            row from a random place. None: clips as they are.
    """

    noise: Fraction = 0.0
    cutmix: Fraction = 0.0
    dropout: Fraction = 0.0
    own: Fraction = 0.0
    own_steps: Count = 4
    window: Annotated[int, Range(LEAD + 2)] | None = None

    @property
    def changes_frames(self) -> bool:
        """Whether the temporal encoder sees anything but the frames themselves."""
        return bool(self.noise or self.cutmix or self.dropout or self.own)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ContextDraws:
    """Everything random about what the temporal encoder sees of a batch.

    Attributes:
        level: noise level of each frame.
        noise: of each frame.
        known: slots of the temporal encoder whose frame is not left out.
        own: whether the frames are the model's own.
        own_keys: of what these are drawn from.
        rectangle: first row and column, last row and column, of what shows another video, 0 to 1.
    """

    level: Float[Array, "b t"]
    noise: Float[Array, "b t h w c"]
    known: Bool[Array, "b t"]
    own: Bool[Array, ""]
    own_keys: Key[Array, " f"]
    rectangle: Float[Array, "b 4"]

    @classmethod
    def sample(
        cls, config: ContextConfig, key: Key[Array, ""], shape: tuple[int, ...]
    ) -> ContextDraws:
        """Draws for videos of shape [B, T, h, w, C]."""
        level, noise, known, own, own_keys, size, place = jax.random.split(key, 7)
        rows = shape[:2]
        extent = config.cutmix * jax.random.uniform(size, (shape[0], 2))
        first = (1 - extent) * jax.random.uniform(place, (shape[0], 2))
        return cls(
            level=config.noise * jax.random.uniform(level, rows),
            noise=jax.random.normal(noise, shape),
            known=jax.random.uniform(known, rows) >= config.dropout,
            own=jax.random.uniform(own) < config.own,
            own_keys=jax.random.split(own_keys, rows[0] * rows[1]),
            rectangle=jnp.concatenate([first, first + extent], axis=1),
        )


def draw_start(key: Key[Array, ""], length: int, window: int) -> Int[Array, ""]:
    """Where a window of clips of so many frames goes on after the first one.

    In half of all cases right after it: nothing else shows how videos begin.
    """
    half, where = jax.random.split(key)
    start = jax.random.randint(where, (), 1, length - window + 2)
    return jnp.where(jax.random.bernoulli(half), start, 1)


def window_of(
    latents: Float[Array, "b l h w c"], start: Int[Array, ""], window: int
) -> Float[Array, "b {window} h w c"]:
    """The first frame, and the frames from `start`, 1 or more, on."""
    rest = jax.lax.dynamic_slice_in_dim(latents, start, window - 1, axis=1)
    return jnp.concatenate([latents[:, :1], rest], axis=1)


def frame_weights(start: Int[Array, ""], window: int) -> Float[Array, " {window}"]:
    """What each frame of a window counts in the loss: on average 1, also over all but the first.

    Those that lead into a window from later on count nothing: neither where they are nor which way
    they move can be known.
    """
    later = jnp.arange(1, window)
    counts = jnp.where((start > 1) & (later <= LEAD), 0.0, 1.0)
    return jnp.concatenate([jnp.ones(1), counts / jnp.mean(counts)])


def make_context(
    config: ContextConfig,
    draws: ContextDraws,
    latents: Float[Array, "b t h w c"],
    own: Callable[[], Float[Array, "b t h w c"]],
) -> Context:
    """What the temporal encoder sees of videos; `own` makes the model's own frames, see below."""
    frames = latents
    if config.own:
        frames = jax.lax.cond(draws.own, own, lambda: latents)
    if config.cutmix:
        frames = cutmix(frames, draws.rectangle)
    if config.noise:
        frames = with_noise(frames, draws.level[..., None, None, None], draws.noise)
    return Context(frames, draws.known)


def cutmix(
    latents: Float[Array, "b t h w c"], rectangle: Float[Array, "b 4"]
) -> Float[Array, "b t h w c"]:
    """Videos with a rectangle of the one before them in the batch, in all frames but the first.

    As much is added as is taken away, on average: what only loses parts teaches a model to answer
    with more than it sees, which adds up when it sees its own answers.

    Args:
        latents: of videos; a video alone stays as it is.
        rectangle: first row and column, last row and column, relative to the frame's size.
    """
    h, w = latents.shape[2:4]
    top, left, bottom, right = jnp.split(rectangle, 4, axis=1)
    rows, columns = (jnp.arange(h)[None] + 0.5) / h, (jnp.arange(w)[None] + 0.5) / w
    rows, columns = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)
    inside = rows[:, None, :, None, None] & columns[:, None, None, :, None]
    later = (jnp.arange(latents.shape[1]) > 0)[None, :, None, None, None]
    return jnp.where(inside & later, jnp.roll(latents, 1, axis=0), latents)


def own_frames(
    model: Nova,
    schedule: Schedule,
    latents: Float[Array, "b t h w c"],
    conditions: Conditions,
    order: Int[Array, "f n"],
    num_visible: Int[Array, ""],
    *,
    keys: Key[Array, " f"],
    steps: int,
) -> Float[Array, "b t h w c"]:
    """Each frame as the model draws it from the clip's frames before, all masked tokens at once."""
    features = model(latents, conditions, order, num_visible)
    tokens, size = order.shape[1], model.config
    new = denoise_set(
        model.diffusion_head,
        features,
        KeyedNoise(keys, tokens, size.token_dim),
        frame=0,
        step=0,
        start=0,
        count=tokens,
        steps=schedule.sampling_steps(steps, None),
        guidance=GuidanceConfig(scale=1.0),
        scale=1.0,
        implementation="xla",
    )
    known = to_reveal_order(rearrange(model.tokens(latents), "b t n p -> (b t) n p"), order)
    new = jnp.where((jnp.arange(tokens) < num_visible)[:, None], known, new)
    new = unpatchify(to_row_major(new, order), size.patch_size, size.grid)
    return rearrange(new, "(b t) h w c -> b t h w c", t=latents.shape[1])
