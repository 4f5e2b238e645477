"""How samples are drawn: the config, and its fields by the names that a user gives them.

A new option is a field of `SamplingConfig`, or of `GuidanceConfig` in it, and an entry of
`OPTIONS`; `NovaPipeline`, `nova_jax.export` and the flags of `nova_jax.generate` have it then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, get_args

from nova_jax.errors import NovaError
from nova_jax.kernels.diffusion_sampler.api import Implementation
from nova_jax.sampling.guidance import GuidanceConfig


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How samples are drawn.

    Attributes:
        num_inference_steps: K, AR steps of a frame, 1 or more; steps that reveal no token drop.
        num_diffusion_steps: S, diffusion steps of an AR step.
        guidance: guidance options.
        flow_shift: noise-level shift of flow matching's sampling steps; None for the schedule's.
        sampler: implementation of the loop over diffusion steps.
    """

    num_inference_steps: int = 64
    num_diffusion_steps: int = 25
    guidance: GuidanceConfig = GuidanceConfig()
    flow_shift: float | None = None
    sampler: Implementation = "auto"


@dataclasses.dataclass(frozen=True)
class Option:
    """What a user may say about sampling.

    Attributes:
        field: of `SamplingConfig`; after a dot, of what is in it.
        kind: int, float, or str for one of `choices`.
        help: what it means, for the command line.
        minimum: the least that the command line takes; None where there is no such bound.
        choices: what a str may be.
    """

    field: str
    kind: type
    help: str
    minimum: int | None = None
    choices: tuple[str, ...] = ()


#: By name; those that the PyTorch release has are called as it calls them.
OPTIONS: Mapping[str, Option] = {
    "num_inference_steps": Option(
        "num_inference_steps", int, "Autoregressive steps of a frame.", minimum=1
    ),
    "num_diffusion_steps": Option(
        "num_diffusion_steps", int, "Diffusion steps of each.", minimum=1
    ),
    "guidance_scale": Option("guidance.scale", float, "Guidance by the prompt; 1: off."),
    "min_guidance_scale": Option(
        "guidance.min_scale", float, "Guidance before a frame's first step, growing linearly."
    ),
    "guidance_trunc": Option("guidance.trunc", float, "Network time below which it is off."),
    "guidance_renorm": Option("guidance.renorm", float, "Lower bound of its norm factor; 1: off."),
    "image_guidance_scale": Option(
        "guidance.image_scale", float, "Guidance by the frame before; 0: off."
    ),
    "flow_shift": Option("flow_shift", float, "Noise-level shift of flow matching."),
    "sampler": Option(
        "sampler", str, "How diffusion steps run; auto chooses.", choices=get_args(Implementation)
    ),
}


def with_options(config: SamplingConfig, options: Mapping[str, Any]) -> SamplingConfig:
    """The config with `OPTIONS` on top; those that are None stay what they are.

    Raises:
        TypeError: there is no such option.
        NovaError: a value is not a number where one is wanted, or out of range.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            raise TypeError(f"{name!r} is no option of sampling; there are {', '.join(OPTIONS)}")
        if value is None:
            continue
        option = OPTIONS[name]
        if option.kind is not str and not isinstance(value, Real):
            raise NovaError(f"{name} is {value!r}; it must be a number")
        config = _replaced(config, option.field.split("."), value)
    return config


def _replaced(config: Any, path: Sequence[str], value: Any) -> Any:
    """A dataclass with one field, at the end of a path of fields, replaced."""
    first, *rest = path
    value = _replaced(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: value})
