"""Inputs of recorded calls as this package takes them: options, conditions, randomness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Conditions
from nova_jax.parity.compare import Arrays
from nova_jax.sampling.denoise import GivenNoise
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.order import set_sizes
from nova_jax.sampling.schedules import Schedule
from nova_jax.training.loss import TrainingDraws

Arguments = Mapping[str, Any]

# Arguments of recorded calls, by their names in the release.
GENERATION_ARGUMENTS = {
    "batch",
    "max_latent_length",
    "num_inference_steps",
    "num_diffusion_steps",
    "guidance_scale",
    "min_guidance_scale",
    "guidance_trunc",
    "guidance_renorm",
    "image_guidance_scale",
    "spatiotemporal_guidance_scale",  # accepted by the release, and without effect
    "motion_flow",
    "fps",
    "flow_shift",
    "image_latent",
}
TRAINING_ARGUMENTS = {
    "batch",
    "frames",
    "loss_repeat",
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "motion_flow",
    "fps",
    "steps",
}


def check_arguments(call: str, arguments: Arguments, known: Iterable[str]) -> None:
    """Raises a `NovaError` that names an argument of a call that is not known."""
    if unknown := sorted(set(arguments) - set(known)):
        raise NovaError(f"case.json: {call} has the unknown argument {unknown[0]!r}")


def videos(x: np.ndarray) -> Float[Array, "b t h w c"]:
    """Arrays [B, C, H, W] or [B, C, T, H, W] of images or videos."""
    return jnp.asarray(np.moveaxis(x[:, :, None] if x.ndim == 4 else x, 1, -1))


def channels_last(x: np.ndarray) -> Float[Array, "*b h w c"]:
    """Arrays [..., C, H, W] of images."""
    return jnp.asarray(np.moveaxis(x, -3, -1))


def conditions(
    config: NovaConfig,
    call: str,
    arguments: Arguments,
    recorded: Arrays,
    *,
    flow: float | Sequence[float] | None = None,
) -> Conditions:
    """Text or class conditions of a call, and for videos motion unless `flow` is None.

    Flow and frame rate are one number for all samples or one for each.
    """
    batch, fps = arguments["batch"], arguments.get("fps")
    if config.text_dim is None:
        return Conditions(label=jnp.asarray(recorded[f"{call}.in.labels"], jnp.int32))
    assert config.text_length is not None
    text = np.zeros((batch, config.text_length, config.text_dim), np.float32)
    length = np.zeros(batch, np.int32)
    for i in range(batch):  # recorded unpadded
        prompt = recorded[f"{call}.in.text.{i}"][: config.text_length]
        length[i] = len(prompt)
        text[i, : len(prompt)] = prompt

    def per_sample(value: Any) -> jax.Array | None:
        if value is None or flow is None or not config.is_video:
            return None
        return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))

    return Conditions(
        jnp.asarray(text), jnp.asarray(length), flow=per_sample(flow), fps=per_sample(fps)
    )


def sampling_config(arguments: Arguments) -> SamplingConfig:
    """Options of a generation, or of a pipeline's call."""
    return SamplingConfig(
        num_inference_steps=arguments["num_inference_steps"],
        num_diffusion_steps=arguments["num_diffusion_steps"],
        guidance=GuidanceConfig(
            scale=arguments.get("guidance_scale", 1.0),
            min_scale=arguments.get("min_guidance_scale"),
            trunc=arguments.get("guidance_trunc") or 0.0,
            renorm=arguments.get("guidance_renorm", 1.0),
            image_scale=arguments.get("image_guidance_scale"),
        ),
        flow_shift=arguments.get("flow_shift"),
    )


def noise(
    config: NovaConfig, schedule: Schedule, options: SamplingConfig, call: str, recorded: Arrays
) -> GivenNoise:
    """The noise of a call, and its reveal order."""
    step_noise = recorded.get(f"{call}.in.step_noise")
    steps = schedule.sampling_steps(options.num_diffusion_steps, options.flow_shift)
    return GivenNoise(
        images=channels_last(recorded[f"{call}.in.noise"]),
        step_images=None if step_noise is None else channels_last(step_noise),
        order=jnp.asarray(recorded[f"{call}.in.order"], jnp.int32),
        steps=len(set_sizes(config.num_tokens, options.num_inference_steps)),
        draws=steps.noise_draws,
        patch=config.patch_size,
    )


def draws(config: NovaConfig, step: str, loss_repeat: int, recorded: Arrays) -> TrainingDraws:
    """What a recorded training step drew."""
    order = np.argsort(recorded[f"{step}.in.mask_uniform"][..., 0], axis=1, kind="stable")
    ratio = float(recorded[f"{step}.in.mask_ratio"][0])
    visible = int(np.round((1 - ratio) * config.num_tokens))
    noise = rearrange(recorded[f"{step}.in.noise"], "(r f) n p -> r f n p", r=loss_repeat)
    index = rearrange(recorded[f"{step}.in.timestep_index"], "(r f) n -> r f n", r=loss_repeat)
    return TrainingDraws(
        order=jnp.asarray(order, jnp.int32),
        num_visible=jnp.asarray(visible, jnp.int32),
        noise=jnp.asarray(noise),
        timestep_index=jnp.asarray(index, jnp.int32),
    )
