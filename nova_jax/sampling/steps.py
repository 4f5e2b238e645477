"""A frame set by set: the steps of `nova_jax.sampling.frames.next_frame` one by one.

The same programs' parts, run from the host, so that whoever wants to can look at a frame while it
fills. A group of AR steps shares a program here, too. Runs that do not look pay nothing: they take
the one program of a whole frame.

Dimensions as in `nova_jax.sampling.frames`; R tokens are N and room for a padded set.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_uint8
from nova_jax.models.nova import Nova
from nova_jax.sampling.frames import (
    Filling,
    FramePlan,
    Kept,
    Parallelism,
    describe,
    single_device,
)
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.order import Bucket
from nova_jax.sampling.schedules import Schedule
from nova_jax.sampling.state import VideoState

#: Shown where nothing is revealed yet, 0..255.
BLANK = 127


@dataclasses.dataclass(frozen=True)
class Partial:
    """Frames of a batch while they fill.

    Attributes:
        frame: number of the first sample's latent frame, from 0.
        step: AR steps that were made of it.
        steps: AR steps of a frame.
        latents: tokens that are revealed, and zeros.
        revealed: which tokens are, row-major.
    """

    frame: int
    step: int
    steps: int
    latents: Float[Array, "b h w c"]
    revealed: Bool[Array, "b n"]

    def pixels(self, codec: VideoCodec) -> UInt8[np.ndarray, "b H W 3"]:
        """The frames decoded as pictures, gray where nothing is revealed.

        Costs what the decoding of pictures does; a codec of videos sees no frame before.
        """
        pixels = np.array(to_uint8(codec.decode(self.latents[:, None])[:, 0]))
        height, width = pixels.shape[1:3]
        tokens = self.revealed.shape[1]
        side = round((height * width / tokens) ** 0.5)
        shown = np.asarray(self.revealed).reshape(-1, height // side, width // side)
        shown = shown.repeat(side, 1).repeat(side, 2)
        return np.where(shown[..., None], pixels, np.uint8(BLANK))


OnStep = Callable[[Partial], None]


@dataclasses.dataclass(frozen=True)
class StepByStep:
    """`nova_jax.sampling.frames.next_frame` of a model, with a look at each of its AR steps.

    Attributes:
        graph, params: the model in two parts.
        plan: how a frame is filled.
        parallelism: how devices share the samples.
        on_step: called after each AR step that draws something.
    """

    graph: Any
    params: Any
    plan: FramePlan
    parallelism: Parallelism
    on_step: OnStep

    @classmethod
    def of(
        cls,
        model: Nova,
        schedule: Schedule,
        sampling: SamplingConfig,
        on_step: OnStep,
        *,
        parallelism: Parallelism = single_device,
    ) -> StepByStep:
        """The same arguments as those of `nova_jax.sampling.frames.compiled_step`."""
        plan = FramePlan(model.config, schedule, sampling)
        return cls(*nnx.split(model), plan, parallelism, on_step)

    def __call__(
        self, state: VideoState, kept: Kept | None
    ) -> tuple[VideoState, Float[Array, "b h w c"]]:
        """The state after the next frame, and the frame."""
        shared: Any = {"plan": self.plan, "parallelism": self.parallelism}
        model, first = (self.graph, self.params), int(state.frame[0])
        indicators, order, number, filling = _start(*model, state, kept, **shared)
        steps = self.plan.count
        for bucket in self.plan.buckets:
            for row in zip(*bucket.rows, strict=True):
                step, start, count = map(int, row)
                if number is not None and int(number.min()) >= start + count:
                    continue  # all of it is kept
                filling = _ar_step(
                    *model, indicators, state, order, number, filling, row, bucket=bucket, **shared
                )
                latents, revealed = _look(filling[0], order, number, start + count, plan=self.plan)
                self.on_step(Partial(first, step + 1, steps, latents, revealed))
        return _finish(state, kept, filling[0], order, plan=self.plan)


@functools.partial(jax.jit, static_argnames=("graph", "plan", "parallelism"))
def _start(
    graph: Any,
    params: Any,
    state: VideoState,
    kept: Kept | None,
    *,
    plan: FramePlan,
    parallelism: Parallelism,
) -> tuple[Array, Array, Array | None, Filling]:
    """Indicator features, order, number of tokens that are kept, the frame."""

    def run(params: Any, state: VideoState, kept: Kept | None) -> Any:
        model = nnx.merge(graph, params)
        indicators = describe(model, state, plan.sampling.guidance)
        return indicators, *plan.start(model, state, kept)

    return parallelism(run, (None, 0, 0), (0, 0, 0, 0))(params, state, kept)


@functools.partial(jax.jit, static_argnames=("graph", "plan", "parallelism", "bucket"))
def _ar_step(
    graph: Any,
    params: Any,
    indicators: Float[Array, "gb m d"],
    state: VideoState,
    order: Int[Array, "b n"],
    number: Int[Array, " b"] | None,
    filling: Filling,
    row: tuple[Any, ...],
    *,
    bucket: Bucket,
    plan: FramePlan,
    parallelism: Parallelism,
) -> Filling:
    """One AR step."""

    def run(
        params: Any, indicators: Any, state: Any, order: Any, number: Any, filling: Any, row: Any
    ) -> Any:
        model = nnx.merge(graph, params)
        return plan.ar_step(model, indicators, state, order, number, filling, row, bucket)

    axes = (None, 0, 0, 0, 0, 0, None)
    return parallelism(run, axes, 0)(params, indicators, state, order, number, filling, row)


@functools.partial(jax.jit, static_argnames="plan")
def _look(
    tokens: Float[Array, "b r p"],
    order: Int[Array, "b n"],
    number: Int[Array, " b"] | None,
    end: int | Array,
    *,
    plan: FramePlan,
) -> tuple[Float[Array, "b h w c"], Bool[Array, "b n"]]:
    """The frame as it is, and which tokens are revealed."""
    ends = end if number is None else jnp.maximum(end, number)[:, None]
    revealed = jnp.argsort(order, axis=1) < ends
    return plan.latents(tokens, order), revealed


@functools.partial(jax.jit, static_argnames="plan")
def _finish(
    state: VideoState,
    kept: Kept | None,
    tokens: Float[Array, "b r p"],
    order: Int[Array, "b n"],
    *,
    plan: FramePlan,
) -> tuple[VideoState, Float[Array, "b h w c"]]:
    """The state after the frame, and the frame."""
    latents = plan.latents(tokens, order)
    seen = latents if kept is None else kept.mixed(latents)
    return state.followed_by(seen, plan.sampling.context_noise), latents
