"""What a call of a pipeline takes, and how all of its ways to answer take the same.

Letters as in `nova_jax.pipeline`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, get_type_hints

import jax
import numpy as np
from PIL import Image

from nova_jax.arguments import (
    check_negative,
    check_noise,
    check_order,
    check_prompts,
    check_seeds,
)
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.beginning import Pictures, check_beginning
from nova_jax.config import Count, convert
from nova_jax.models.config import NovaConfig
from nova_jax.request import FirstFrames, OutputType, Request
from nova_jax.rewriting.interface import Rewriter, in_other_words
from nova_jax.sampling.denoise import NoiseSource
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.steps import OnStep
from nova_jax.text.interface import TextEncoder

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class Model(Protocol):
    """What a request needs of a `nova_jax.pipeline.NovaPipeline`."""

    config: NovaConfig
    codec: VideoCodec
    text_encoder: TextEncoder | None

    def latent_frames(
        self, latent: int | None, pixel: int | None, first: FirstFrames | None = None
    ) -> int:
        """T."""

    def motion_score(self, motion_flow: float | None) -> float:
        """The motion score."""

    def sampling_with(self, sampling: SamplingConfig | None = None, **options: Any) -> Any:
        """How samples are drawn."""


Asked = TypeVar("Asked", bound=Model)


def request(
    self: Model,
    prompt: str | int | Sequence[str] | Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    num_diffusion_steps: int | None = None,
    max_latent_length: int | None = None,
    guidance_scale: float | None = None,
    guidance_trunc: float | None = None,
    guidance_renorm: float | None = None,
    image_guidance_scale: float | None = None,
    flow_shift: float | None = None,
    motion_flow: float | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    image: np.ndarray | Image.Image | None = None,
    num_images_per_prompt: int = 1,
    *,
    sampling: SamplingConfig | None = None,
    seed: int | Sequence[int] = 0,
    key: jax.Array | None = None,
    video: Pictures | None = None,
    latents: np.ndarray | None = None,
    mask: np.ndarray | Image.Image | Sequence[Image.Image] | None = None,
    outpaint: Sequence[int] | None = None,
    prompt_embeds: Sequence[np.ndarray] | None = None,
    negative_prompt_embeds: Sequence[np.ndarray] | None = None,
    output_type: OutputType = "pil",
    num_frames: int | None = None,
    batch_size: int = 32,
    disable_progress_bar: bool = False,
    order: jax.Array | None = None,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
    rewriter: Rewriter | None = None,
    **options: Any,
) -> Request:
    """What is asked for, in full: checked, and with the pipeline's own where nothing is said.

    Args:
        prompt: Prompts, or class labels of a class-conditional model; one or several.
        num_inference_steps, num_diffusion_steps: AR steps of a frame (K), diffusion steps (S).
        max_latent_length: T; also beyond the length of the training videos.
        guidance_scale: Classifier-free guidance; 1 turns it off.
        guidance_trunc: Network time, 0 to 1000, below which there is no guidance.
        guidance_renorm: Lower bound of the factor that restores the norm; 1 turns it off.
        image_guidance_scale: Guidance by the frame before; 0 turns it off.
        flow_shift: Noise-level shift of flow-matching sampling.
        motion_flow: Motion score: mean optical flow, larger is livelier.
        negative_prompt: What the unconditional passes see, one for all or one for each prompt;
            nothing by default.
        image: First frame of every video, uint8 `[H, W, 3]` of any size: it is scaled and
            cropped to fill `size`.
        num_images_per_prompt: Samples of each prompt, all different.
        sampling: How samples are drawn, in place of the pipeline's way; options come on top.
        seed: One for all prompts or one for each, from 0 to 2³² − 1.
        key: Random key in place of a seed, as `jax.random.key` makes it.
        video: First frames of every video, uint8 `[F, H, W, 3]`, in place of an image. If
            latent frames stand for fewer of them, the first ones are left out.
        latents: First latent frames `[B, t, h, w, C]` of every video, in place of an image; one
            for all prompts or one for each.
        mask: Of the image or of each frame of the video, what is painted anew: white, at least
            128 of 255, or true; the rest stays. T is then that of what is given.
        outpaint: Pixels to paint around it, at the top, right, bottom and left; the whole is
            scaled and cropped to fill `size`.
        prompt_embeds: Text features of each prompt, `[rows, text_dim]`, in place of prompts.
        negative_prompt_embeds: The same for the unconditional passes.
        output_type: "latent" leaves latents as they are; "np" gives pictures as an array.
        num_frames: F, in place of `max_latent_length`.
        batch_size: Most samples to compute together, in all devices; bounds memory.
        disable_progress_bar: Show none.
        order, noise: Reveal orders `[B, N]` of N tokens and noise of all samples, drawn
            elsewhere.
        on_step: Called after each AR step with a `nova_jax.sampling.steps.Partial`.
        rewriter: Gives a list of prompts in other words, which the model reads in their place; see
            `nova_jax.rewriting`.
        **options: Further options of sampling, as `nova_jax.sampling.options.OPTIONS` has them:
            min_guidance_scale, guidance before the first step of a frame, growing linearly;
            guidance_ceiling, network time above which there is none; later_inference_steps, AR
            steps of frames after the first; feature_cache, AR steps from one that sees all tokens
            to the next; sampler, of the loop over diffusion steps: "auto", "xla" or "pallas".

    Returns:
        The request.

    Raises:
        NovaError: An option is of another type or out of range, or does not fit the model; or
            numbers became too large for `dtype`, and a sample is not finite.
    """
    prompts = check_prompts(prompt, prompt_embeds, "prompt", self.config)
    count, given = len(prompts), (image, video, latents, mask, outpaint)
    first = check_beginning(*given, count, config=self.config, codec=self.codec)
    copies = convert(Count, num_images_per_prompt, "num_images_per_prompt")
    return Request(
        prompts=prompts,
        negative=check_negative(negative_prompt, negative_prompt_embeds, count, self.config),
        seeds=check_seeds(seed, key, count),
        copies=copies,
        frames=self.latent_frames(max_latent_length, num_frames, first),
        first=first,
        flow=self.motion_score(motion_flow),
        sampling=self.sampling_with(
            sampling,
            num_inference_steps=num_inference_steps,
            num_diffusion_steps=num_diffusion_steps,
            guidance_scale=guidance_scale,
            guidance_trunc=guidance_trunc,
            guidance_renorm=guidance_renorm,
            image_guidance_scale=image_guidance_scale,
            flow_shift=flow_shift,
            **options,
        ),
        batch_size=convert(Count, batch_size, "batch_size"),
        output_type=convert(OutputType, output_type, "output_type"),
        order=check_order(order, count * copies, self.config),
        noise=check_noise(noise),
        show_progress=not disable_progress_bar,
        on_step=on_step,
        rewriter=rewriter,
        rewritten=in_other_words(prompts, rewriter, self.text_encoder, self.config),
    )


def asking(
    request: Callable[Concatenate[Model, Arguments], Request],
    answer: Callable[[Asked, Request], Answer],
) -> Callable[Concatenate[Asked, Arguments], Answer]:
    """The method that takes what `request` takes, and gives the `answer` to it."""

    def call(self: Asked, *arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        return answer(self, request(self, *arguments, **options))

    # As a type: its name means something in the module of `answer` only.
    annotation = get_type_hints(answer)["return"]
    signature = inspect.signature(request).replace(return_annotation=annotation)
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__wrapped__ = request  # type: ignore[attr-defined]
    call.__annotations__ = request.__annotations__ | {"return": annotation}
    about, arguments = inspect.getdoc(answer) or "", inspect.getdoc(request) or ""
    first, _, rest = about.partition("\n\nReturns:")
    taken = arguments[arguments.index("Args:") : arguments.index("Returns:")].rstrip()
    raised = arguments[arguments.index("Raises:") :]
    returned = f"Returns:{rest.rstrip()}\n\n" if rest else ""
    call.__doc__ = f"{first}\n\n{taken}\n\n{returned}{raised}"
    call.__name__ = call.__qualname__ = answer.__name__.lstrip("_")
    return call
