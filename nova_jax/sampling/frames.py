"""Generation frame by frame, each frame set by set (paper, sections 3.2 to 3.4).

For each frame: one pass of the temporal encoder over the frames before it, then K AR steps of the
spatial decoder and the diffusion head, all in one compiled program, the same for every frame
(`next_frame`). What is looked back at is encoded anew for each frame: beside the spatial decoder
this costs 1 to 3 % of the released video model's operations, and leaves prompts and windows free
to change from frame to frame.

Dimensions: B samples, G guidance passes, T frames, S slots of the temporal encoder, N tokens of a
frame, M indicator features, P values of a token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from nova_jax.kernels.diffusion_sampler.api import checked
from nova_jax.models import flops
from nova_jax.models.config import NovaConfig
from nova_jax.models.layers import unpatchify
from nova_jax.models.nova import Conditions, Nova
from nova_jax.models.spatial_decoder import Known, SpatialDecoder
from nova_jax.sampling import traces
from nova_jax.sampling.denoise import denoise_set
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.order import (
    Bucket,
    bucket_steps,
    kept_first,
    set_sizes,
    to_reveal_order,
    to_row_major,
)
from nova_jax.sampling.schedules import SamplingSteps, Schedule
from nova_jax.sampling.state import VideoState

# A frame while it is filled: R tokens in reveal order, zero where none is set, and with
# `feature_cache`, but for frames of which something is kept, what the spatial decoder knows of it.
Filling = tuple[Float[Array, "b r p"], Known | None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kept:
    """What a frame keeps of another one, in editing.

    Attributes:
        latents: that frame.
        tokens: which tokens are kept, row-major; the others are drawn.
        share: of what is drawn in what later frames see, 0 to 1; None for all.
    """

    latents: Float[Array, "b h w c"]
    tokens: Bool[Array, "b n"]
    share: Float[Array, "b h w"] | None = None

    def mixed(self, drawn: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """What later frames see of a frame."""
        if self.share is None:
            return drawn
        share = self.share[..., None]
        return share * drawn + (1 - share) * self.latents


def stack_passes(
    conditions: Conditions, negative: Conditions, guidance: GuidanceConfig
) -> Conditions:
    """Conditions of all guidance passes, stacked on the batch axis."""
    passes = [conditions, negative, negative][: guidance.passes]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=0), *passes)


def describe(model: Nova, state: VideoState, guidance: GuidanceConfig) -> Float[Array, "gb m d"]:
    """The next frame's indicator features, guidance passes stacked on the batch axis."""
    conditions = stack_passes(state.conditions, state.negative, guidance)
    # Room for the frame that is described; what is in it is not looked at.
    latents = jnp.pad(state.seen, ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    latents = jnp.concatenate([latents] * guidance.passes)
    known = None
    if guidance.passes == 3:  # the second sees no frames
        known = jnp.asarray(np.repeat(np.arange(3), len(state)) != 1)
        known = jnp.broadcast_to(known[:, None], latents.shape[:2])
    # No slot sees a later one, so that it does not matter what is in those still to come.
    features = model.temporal_encoder(latents, model.embed_conditions(conditions), known)
    slot = jnp.tile(jnp.minimum(state.frame, state.slots - 1), guidance.passes)
    return jnp.take_along_axis(features, slot[:, None, None, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class FramePlan:
    """How a frame of a model is filled: its AR steps, by the program that they share.

    R tokens are N and room for a padded set that reaches past them.

    Attributes:
        config: the model's.
        schedule, sampling: how samples are drawn.
    """

    config: NovaConfig
    schedule: Schedule
    sampling: SamplingConfig

    @functools.cached_property
    def steps(self) -> SamplingSteps:
        """Diffusion steps of an AR step."""
        return self.schedule.sampling_steps(
            self.sampling.num_diffusion_steps, self.sampling.flow_shift
        )

    @functools.cached_property
    def buckets(self) -> list[Bucket]:
        """AR steps in groups."""
        sizes = set_sizes(self.config.num_tokens, self.sampling.num_inference_steps)
        cost = functools.partial(flops.ar_step, self.config, len(self.steps.time))
        return bucket_steps(sizes, cost)

    @property
    def count(self) -> int:
        """AR steps."""
        return sum(len(bucket.counts) for bucket in self.buckets)

    def blank(self, batch: int) -> Float[Array, "b r p"]:
        """R tokens, none of them set."""
        room = max(bucket.width for bucket in self.buckets)
        return jnp.zeros((batch, self.config.num_tokens + room, self.config.token_dim))

    def features(
        self,
        decoder: SpatialDecoder,
        indicators: Float[Array, "gb m d"],
        order: Int[Array, "gb n"],
        tokens: Float[Array, "gb r p"],
        known: Known | None,
        step: Int[Array, ""],
        start: Int[Array, ""],
        prefix: int,
        width: int,
    ) -> tuple[Float[Array, "gb q d"], Known | None]:
        """Features of the set that is due, and what is then known of the frame.

        Args:
            decoder, indicators: what they are made by, and from.
            order, tokens: of the frame.
            known: see `Filling`.
            step, start: number of the step, first token of its set.
            prefix, width: most tokens that are visible, and that are due.
        """
        only = (start, width)
        if known is None:
            return decoder(tokens[:, :prefix], start, order, indicators, only=only), None

        def all_of_it(known: Known) -> tuple[Float[Array, "gb q d"], Known]:
            whole = (tokens[:, :prefix], start, order, indicators, only)
            return decoder.revise(known, *whole, first=0, most=prefix)

        first, size = part_of(start, width, self.config.num_tokens)

        def a_part(known: Known) -> tuple[Float[Array, "gb q d"], Known]:
            new, places = (
                jax.lax.dynamic_slice_in_dim(x, first, size, axis=1) for x in (tokens, order)
            )
            part = (new, start, places, indicators[:, :0], only)
            return decoder.revise(known, *part, first=first, most=prefix)

        assert self.sampling.feature_cache is not None
        if not prefix:
            return all_of_it(known)  # nothing is known yet
        return jax.lax.cond(step % self.sampling.feature_cache == 0, all_of_it, a_part, known)

    def ar_step(
        self,
        model: Nova,
        indicators: Float[Array, "gb m d"],
        state: VideoState,
        order: Int[Array, "b n"],
        kept: Int[Array, " b"] | None,
        filling: Filling,
        row: tuple[Int[Array, ""], ...],
        bucket: Bucket,
    ) -> Filling:
        """Draws one set of tokens, all in reveal order.

        Args:
            order, kept: reveal order, and how many of its first tokens are kept.
            filling: the frame before the step.
            row: the step's number, its first token, and how many it draws.
            bucket: that the step is of.
        """
        (tokens, known), (step, start, count), guidance = filling, row, self.sampling.guidance
        if kept is not None:
            # What all samples keep they see, also within the set.
            first = jnp.clip(kept.min(), start, start + count)
            start, count = first, start + count - first
        orders, visible = (jnp.concatenate([x] * guidance.passes) for x in (order, tokens))
        prefix = bucket.prefix if kept is None else bucket.end
        features, known = self.features(
            model.spatial_decoder,
            *(indicators, orders, visible, known, step, start, prefix, bucket.width),
        )
        new = denoise_set(
            model.diffusion_head,
            features,
            state.noise,
            state.drawn,
            step,
            start,
            count,
            self.steps,
            guidance,
            guidance.scale_at(step, self.count),
            self.sampling.sampler,
        )
        drawn = jax.lax.dynamic_update_slice_in_dim(tokens, new, start, axis=1)
        if kept is None:
            return drawn, known
        is_kept = jnp.arange(tokens.shape[1])[None] < kept[:, None]
        return jnp.where(is_kept[..., None], tokens, drawn), known

    def start(
        self, model: Nova, state: VideoState, kept: Kept | None
    ) -> tuple[Int[Array, "b n"], Int[Array, " b"] | None, Filling]:
        """Reveal order, how many tokens are kept, and the frame, in which those are set."""
        tokens = self.blank(len(state))
        if kept is None:
            rows, cached = self.sampling.guidance.passes * len(state), self.sampling.feature_cache
            known = None if cached is None else model.spatial_decoder.unknown(rows)
            return state.order, None, (tokens, known)
        order, number = kept_first(state.order, kept.tokens)
        old = to_reveal_order(model.tokens(kept.latents), order)
        return order, number, (tokens.at[:, : self.config.num_tokens].set(old), None)

    def latents(
        self, tokens: Float[Array, "b r p"], order: Int[Array, "b n"]
    ) -> Float[Array, "b h w c"]:
        """The frame of tokens in reveal order."""
        tokens = to_row_major(tokens[:, : self.config.num_tokens], order)
        return unpatchify(tokens, self.config.patch_size, self.config.grid)


def part_of(start: int | Int[Array, ""], width: int, tokens: int) -> tuple[Int[Array, ""], int]:
    """First and number of the tokens that a step maps anew: the set before, and the one due.

    The set before has at most one token more than there is room for in this one: sets grow, but for
    rounding.

    Args:
        start, width: the first token that is due, and how many are at most.
        tokens: of the frame.
    """
    size = min(2 * width + 1, tokens)
    return jnp.clip(start - width - 1, 0, tokens - size), size


def fill(
    model: Nova,
    indicators: Float[Array, "gb m d"],
    state: VideoState,
    kept: Kept | None,
    *,
    schedule: Schedule,
    sampling: SamplingConfig,
) -> Float[Array, "b h w c"]:
    """Latents of the next frame, filled set by set.

    Args:
        model, schedule, sampling: see `generate`; number of AR steps is that of this frame.
        indicators: what `describe` gives.
        state: of the videos.
        kept: what stays as it is; None for nothing.
    """
    plan = FramePlan(model.config, schedule, sampling)
    order, number, filling = plan.start(model, state, kept)
    for bucket in plan.buckets:

        def ar_step(
            filling: Filling, row: tuple[Int[Array, ""], ...], bucket: Bucket = bucket
        ) -> tuple[Filling, None]:
            draw = functools.partial(
                plan.ar_step, model, indicators, state, order, number, row=row, bucket=bucket
            )
            if number is None:
                return draw(filling), None
            step_is_kept = number.min() >= row[1] + row[2]
            return jax.lax.cond(step_is_kept, lambda same: same, draw, filling), None

        filling, _ = jax.lax.scan(ar_step, filling, jax.tree.map(jnp.asarray, bucket.rows))
    return plan.latents(filling[0], order)


def next_frame(
    model: Nova,
    state: VideoState,
    kept: Kept | None = None,
    *,
    schedule: Schedule,
    sampling: SamplingConfig,
) -> tuple[VideoState, Float[Array, "b h w c"]]:
    """The next frame of every sample, and the state after it."""
    indicators = describe(model, state, sampling.guidance)
    latents = fill(model, indicators, state, kept, schedule=schedule, sampling=sampling)
    seen = latents if kept is None else kept.mixed(latents)
    return state.followed_by(seen, sampling.context_noise), latents


class Parallelism(Protocol):
    """How devices share a program; part of the program, so it must be hashable."""

    def __call__(self, function: Callable[..., Any], in_axes: Any, out_axes: Any) -> Any:
        """`function` of all samples, out of one of any number of samples.

        Args:
            function: of arrays; it gives the same for a sample whatever the others are.
            in_axes, out_axes: as `jax.vmap` takes them: which axis has the samples' rows.
        """


def single_device(function: Callable[..., Any], in_axes: Any, out_axes: Any) -> Any:
    """The `Parallelism` of one device."""
    return function


@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("schedule", "sampling", "parallelism")
)
def next_frame_program(
    graph: Any,
    params: Any,
    state: VideoState,
    kept: Kept | None,
    *,
    schedule: Schedule,
    sampling: SamplingConfig,
    parallelism: Parallelism,
) -> tuple[VideoState, Float[Array, "b h w c"]]:
    """`next_frame`, compiled, of a model in two parts."""

    def run(params: Any, state: VideoState, kept: Kept | None) -> Any:
        model = nnx.merge(graph, params)
        return next_frame(model, state, kept, schedule=schedule, sampling=sampling)

    return parallelism(run, (None, 0, 0), (0, 0))(params, state, kept)


def compiled_step(
    model: Nova,
    state: VideoState,
    schedule: Schedule,
    sampling: SamplingConfig,
    *,
    parallelism: Parallelism = single_device,
) -> Callable[[VideoState, Kept | None], tuple[VideoState, Float[Array, "b h w c"]]]:
    """`next_frame` of a model as one program, for states like this one.

    Raises:
        NovaError: the sampler does not run here.
    """
    graph, params = nnx.split(model)
    static: Any = {"schedule": schedule, "sampling": sampling, "parallelism": parallelism}
    if checked(sampling.sampler) == "pallas":
        # What the kernel cannot do it says here, before the program is compiled.
        jax.eval_shape(functools.partial(next_frame_program, graph, params, **static), state, None)

    def program(state: VideoState, kept: Kept | None) -> Any:
        # A frame lies as frames that are seen.
        like, arrays = (state, state.seen), (params, state, kept)
        return traces.run(next_frame_program, graph, static, arrays, like)

    return program
