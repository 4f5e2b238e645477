"""Videos frame after frame: `nova_jax.sampling.frames` one by one, from the first to the last.

Dimensions as there.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from nova_jax.errors import NovaError
from nova_jax.models.nova import Conditions, Nova
from nova_jax.sampling.denoise import NoiseSource
from nova_jax.sampling.frames import Kept, Parallelism, compiled_step, next_frame, single_device
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import Schedule
from nova_jax.sampling.state import VideoState, begin
from nova_jax.sampling.steps import OnStep, StepByStep


def generate(
    model: Nova,
    schedule: Schedule,
    conditions: Conditions,
    *,
    frames: int,
    config: SamplingConfig,
    keys: Key[Array, " b"],
    negative: Conditions | None = None,
    given: Float[Array, "b g h w c"] | None = None,
    kept: Bool[np.ndarray, "g n"] | None = None,
    share: Float[np.ndarray, "g h w"] | None = None,
    order: Int[Array, "b n"] | None = None,
    noise: NoiseSource | None = None,
    on_frame: Callable[[int], None] | None = None,
    on_step: OnStep | None = None,
    parallelism: Parallelism = single_device,
) -> Float[Array, "b t h w c"]:
    """Draws images (one frame) or videos.

    Args:
        model: the transformer.
        schedule: the diffusion schedule it was trained with.
        conditions: one row a sample.
        frames: T, latent frames; may exceed the length the model was trained with.
        config: sampling options.
        keys: one random key a sample; all of a sample's randomness comes from its own key.
        negative: conditions of the unconditional passes; by default no text, no class.
        given: the first latent frames, such as an image's, which are kept and not drawn.
        kept: of these, the tokens that are kept while the others are drawn; all by default.
        share: of what is drawn in what later frames see of these, 0 to 1; all by default.
        order: reveal orders, drawn from the keys by default.
        noise: noise source, drawn from the keys by default.
        on_frame: called with the number of finished frames after each.
        on_step: called after each AR step, which has a program of its own then.
        parallelism: how devices share the samples, see
            `nova_jax.distributed.mesh.SampleParallelism`.

    Returns:
        Latents, float32.

    Raises:
        NovaError: if the sampler does not run here, `frames` is not positive, or `given` is
            longer or not of this model.
    """
    size = model.config
    if frames < 1:
        raise NovaError(f"frames is {frames}; a video has at least 1")
    prefix = 0 if given is None else given.shape[1]
    shape = (len(keys), prefix, *size.latent_size, size.latent_channels)
    if given is not None and (given.shape != shape or prefix > frames):
        raise NovaError(
            f"given frames have shape {given.shape}; this model needs {shape}, of {frames} frames"
        )
    state = begin(
        size,
        conditions,
        negative,
        keys,
        given if kept is None else None,
        order,
        noise,
        slots=config.slots(frames),
        context_noise=config.context_noise,
    )
    video = [] if given is None else list(jnp.unstack(given.astype(jnp.float32), axis=1))
    step = frame_by_frame(model, state, schedule, config, on_step, parallelism=parallelism)

    def of_all(part: np.ndarray) -> Array:
        return jnp.stack([part] * len(keys))

    for frame in range(frames):
        if frame >= prefix:
            state, latents = step(state, None)
            video.append(latents)
        elif kept is not None:
            shown = None if share is None else of_all(share[frame])
            state, video[frame] = step(state, Kept(video[frame], of_all(kept[frame]), shown))
        if on_frame is not None:
            jax.block_until_ready(video[frame])
            on_frame(frame + 1)
    return jnp.stack(video, axis=1)


NextFrame = Callable[[VideoState, Kept | None], tuple[VideoState, Float[Array, "b h w c"]]]


def frame_by_frame(
    model: Nova,
    state: VideoState,
    schedule: Schedule,
    sampling: SamplingConfig,
    on_step: OnStep | None,
    *,
    parallelism: Parallelism = single_device,
) -> NextFrame:
    """What makes the next frame of states like this one, as one program or, watched, step by step.

    Where first frames are drawn otherwise than later ones there are two programs, and all samples
    of a state are at a first frame, or none.

    Raises:
        NovaError: the sampler does not run here.
    """

    def drawing(sampling: SamplingConfig) -> NextFrame:
        if on_step is None:
            return compiled_step(model, state, schedule, sampling, parallelism=parallelism)
        return StepByStep.of(model, schedule, sampling, on_step, parallelism=parallelism)

    first = drawing(sampling.of_frame(0))
    if sampling.later_inference_steps is None:
        return first
    later = drawing(sampling.of_frame(1))
    return lambda state, kept: (later if int(state.frame[0]) else first)(state, kept)


def generate_in_one(
    model: Nova,
    schedule: Schedule,
    conditions: Conditions,
    *,
    frames: int,
    config: SamplingConfig,
    keys: Key[Array, " b"],
    negative: Conditions | None = None,
) -> Float[Array, "b t h w c"]:
    """`generate` as one traced program, whose size and compile time do not grow with frames."""
    slots = config.slots(frames)
    state = begin(model.config, conditions, negative, keys, slots=slots)

    def draw(state: VideoState, first: int, end: int) -> tuple[VideoState, Array]:
        sampling = config.of_frame(first)
        one = lambda state, _: next_frame(model, state, schedule=schedule, sampling=sampling)  # noqa: E731
        return jax.lax.scan(one, state, length=end - first)

    same = config.of_frame(0) == config.of_frame(1)
    state, video = draw(state, 0, frames if same else 1)
    if not same:
        video = jnp.concatenate([video, draw(state, 1, frames)[1]])
    return video.swapaxes(0, 1)
