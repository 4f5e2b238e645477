"""How samples are drawn: the config, and its fields by the names that a user gives them.

A new option is a field of `SamplingConfig`, or of `GuidanceConfig` in it, and an entry of
`OPTIONS`; `NovaPipeline`, `nova_jax.export` and the flags of `nova_jax.generate` have it then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from nova_jax.config import Checked, Range, convert, field_types
from nova_jax.kernels.diffusion_sampler.api import Implementation
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.order import set_sizes

#: More than this are more than a frame has tokens, or a schedule noise levels.
Steps = Annotated[int, Range(1, 10_000)]


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Checked):
    """How samples are drawn.

    Attributes:
        num_inference_steps: K, AR steps of a frame; steps that reveal no token drop.
        num_diffusion_steps: S, diffusion steps of an AR step.
        later_inference_steps: K of frames after a video's first one; None for the same.
        feature_cache: AR steps from one in which the spatial decoder sees all tokens of the frame
            to the next one; between them only the tokens that are new or due are, beside keys and
            values of the others, see `nova_jax.models.spatial_decoder` (after LazyMAR, arXiv
            2503.12450). None: in every step, and nothing is kept.
        guidance: guidance options.
        flow_shift: noise-level shift of flow matching's sampling steps; None for the schedule's.
        window: W, latent frames that the temporal encoder looks over: of a longer video it sees the
            first frame and the W − 2 before the one that is drawn, at the first W positions. None:
            all frames, whose positions are squeezed into the trained length (sine-cosine ones).
        context_noise: level of the noise that the temporal encoder sees on frames, as in training,
            see `nova_jax.training.context`.
        sampler: implementation of the loop over diffusion steps.
    """

    num_inference_steps: Steps = 64
    num_diffusion_steps: Steps = 25
    guidance: GuidanceConfig = GuidanceConfig()
    flow_shift: Annotated[float, Range(0.01, 100)] | None = None
    window: Annotated[int, Range(3, 10_000)] | None = None
    context_noise: Annotated[float, Range(0, below=1)] = 0.0
    sampler: Implementation = "auto"
    later_inference_steps: Steps | None = None
    feature_cache: Steps | None = None

    def of_frame(self, frame: int) -> SamplingConfig:
        """How a frame is drawn, by its number in the video, from 0."""
        steps = (frame and self.later_inference_steps) or self.num_inference_steps
        return dataclasses.replace(self, num_inference_steps=steps, later_inference_steps=None)

    def sets(self, tokens: int, frames: int) -> list[list[int]]:
        """Tokens that each AR step reveals, of each of so many frames of so many tokens."""
        steps = (self.of_frame(frame).num_inference_steps for frame in range(frames))
        return [set_sizes(tokens, number).tolist() for number in steps]

    def slots(self, frames: int) -> int:
        """S, latent frames that the temporal encoder looks over in a video of so many."""
        return min(frames, self.window or frames)


@dataclasses.dataclass(frozen=True)
class Option:
    """What a user may say about sampling.

    Attributes:
        field: of `SamplingConfig`; after a dot, of what is in it.
        help: what it means, for the command line.
    """

    field: str
    help: str

    @property
    def kind(self) -> Any:
        """The field's type, with its range."""
        kind: Any = SamplingConfig
        for name in self.field.split("."):
            kind = field_types(kind)[name]
        return kind


#: By name; those that the PyTorch release has are called as it calls them.
OPTIONS: Mapping[str, Option] = {
    "num_inference_steps": Option("num_inference_steps", "Autoregressive steps of a frame."),
    "num_diffusion_steps": Option("num_diffusion_steps", "Diffusion steps of each."),
    "later_inference_steps": Option(
        "later_inference_steps", "Autoregressive steps of frames after the first; else the same."
    ),
    "feature_cache": Option(
        "feature_cache", "Autoregressive steps from one that sees all tokens to the next; else all."
    ),
    "guidance_scale": Option("guidance.scale", "Guidance by the prompt; 1: off."),
    "min_guidance_scale": Option(
        "guidance.min_scale", "Guidance before a frame's first step, growing linearly."
    ),
    "guidance_trunc": Option("guidance.trunc", "Network time below which it is off."),
    "guidance_ceiling": Option("guidance.ceiling", "Network time above which it is off."),
    "guidance_renorm": Option("guidance.renorm", "Lower bound of its norm factor; 1: off."),
    "image_guidance_scale": Option("guidance.image_scale", "Guidance by the frame before; 0: off."),
    "flow_shift": Option("flow_shift", "Noise-level shift of flow matching."),
    "window": Option("window", "Latent frames that a next one is made from, of longer videos."),
    "context_noise": Option("context_noise", "Noise on the frames that a next one is made from."),
    "sampler": Option("sampler", "How diffusion steps run; auto chooses."),
}


def with_options(config: SamplingConfig, options: Mapping[str, Any]) -> SamplingConfig:
    """The config with `OPTIONS` on top; those that are None stay what they are.

    But who gives AR steps means all frames: then the config's own ones of later frames do not hold.

    Raises:
        TypeError: there is no such option.
        NovaError: a value is of another type than its field, or out of range.
    """
    if options.get("num_inference_steps") is not None:
        config = dataclasses.replace(config, later_inference_steps=None)
    for name, value in options.items():
        if name not in OPTIONS:
            raise TypeError(f"{name!r} is no option of sampling; there are {', '.join(OPTIONS)}")
        if value is not None:
            option = OPTIONS[name]
            value = convert(option.kind, value, name)
            config = _replaced(config, option.field.split("."), value)
    return config


def _replaced(config: Any, path: Sequence[str], value: Any) -> Any:
    """A dataclass with one field, at the end of a path of fields, replaced."""
    first, *rest = path
    value = _replaced(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: value})
