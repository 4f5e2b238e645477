"""What a training run is: one typed, frozen dataclass, read strictly from plain values."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from nova_jax.data.digits import DigitsConfig
from nova_jax.data.pipeline import DataConfig
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.sampling.generate import SamplingConfig
from nova_jax.training.optimizer import OptimizerConfig
from nova_jax.training.state import EMAConfig

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
        every: steps between checkpoints; there is one at the end in any case.
        keep_latest: newest checkpoints to keep.
        keep_best: checkpoints with the lowest evaluation loss to keep besides.
    """

    every: int = 1000
    keep_latest: int = 2
    keep_best: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where numbers go, besides the progress bar and metrics.jsonl.

    Attributes:
        every: steps between looks at the metrics; every step is recorded, this many at a time.
        tensorboard: write TensorBoard event files.
        wandb_project: also log to this Weights & Biases project; None for no.
    """

    every: int = 20
    tensorboard: bool = True
    wandb_project: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Loss on held-out clips, by the averaged parameters.

    Attributes:
        every: steps between evaluations; there is one at the end in any case.
        batches: video batches, the same ones each time.
    """

    every: int = 1000
    batches: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Videos drawn during training, by the averaged parameters, with the defaults of generation.

    Attributes:
        every: steps between them; None for never.
        prompts: one video each.
        seed: of their noise, the same each time.
    """

    every: int | None = 1000
    prompts: tuple[str, ...] = ()
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run. Sections named by ``type`` are plain values that their registries read.

    Attributes:
        steps: batches to train on.
        stop_at: stop after this step, to be taken up again later; None to go on to the end.
        seed: of parameters and of everything drawn in training; the data has its own.
        model: the transformer.
        schedule: noise schedule, see `nova_jax.sampling.schedules`.
        codec: pixels to latents, see `nova_jax.codecs`.
        text_encoder: prompts to features, see `nova_jax.codecs`.
        dataset: the clips.
        data: how they are batched and mixed.
        optimizer: what is trained, and how.
        ema: moving average of the parameters.
        dtype: type of the computation; parameters, softmax, norms and losses are float32.
        remat: recompute blocks in the backward pass, to save memory.
        unroll: blocks per iteration of the compiled loop over depth. 1 compiles fastest; CPUs run
            shallow models about 1.5 times faster without the loop, at the depth.
        loss_repeat: noise draws of each frame.
        fsdp: devices among which parameters are split; 1 is plain data parallelism.
        tensor: devices among which one layer is split.
        checkpoint: see `CheckpointConfig`.
        logging: see `LoggingConfig`.
        evaluation: see `EvaluationConfig`.
        samples: see `SamplesConfig`.
        sampling: defaults of generation, saved with the model.
        motion_flow: motion score that generation asks for by default, in pixels a frame.
    """

    steps: int
    stop_at: int | None = None
    seed: int = 0
    model: NovaConfig
    schedule: Mapping[str, Any]
    codec: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    dataset: DigitsConfig
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EMAConfig = EMAConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    unroll: int = 1
    loss_repeat: int = 4
    fsdp: int = 1
    tensor: int = 1
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    samples: SamplesConfig = SamplesConfig()
    sampling: SamplingConfig = SamplingConfig()
    motion_flow: float = 5.0

    def __post_init__(self) -> None:
        counts = {
            "steps": self.steps,
            "loss_repeat": self.loss_repeat,
            "unroll": self.unroll,
            "fsdp": self.fsdp,
            "tensor": self.tensor,
            "checkpoint.every": self.checkpoint.every,
            "checkpoint.keep_latest": self.checkpoint.keep_latest,
            "logging.every": self.logging.every,
            "evaluation.every": self.evaluation.every,
            "evaluation.batches": self.evaluation.batches,
        }
        for name, value in counts.items():
            if value < 1:
                raise NovaError(f"{name} is {value}; it must be at least 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Reads plain values; sections are mappings, tuples may be lists.

        Raises:
            NovaError: on an unknown or missing key, a wrong type, or an impossible value.
        """
        return from_dict(cls, values, "config")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, that `from_dict` reads back."""
        return _plain(self)

    def changeable(self) -> tuple[str, ...]:
        """What may differ when a run is taken up again: nothing that changes its parameters."""
        free = {
            "stop_at",
            "checkpoint",
            "logging",
            "evaluation",
            "samples",
            "sampling",
            "motion_flow",
        }
        return tuple(free if self.optimizer.schedule == "cosine" else free | {"steps"})


def from_dict(cls: type[T], values: Mapping[str, Any], key: str) -> T:
    """Builds a dataclass from plain values, checking every key and type below it.

    Args:
        cls: a dataclass whose fields are numbers, strings, tuples, mappings or dataclasses.
        values: its fields by name.
        key: how to call the whole in messages, such as "config.optimizer".

    Raises:
        NovaError: naming the key.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(fields)}"
            raise NovaError(f"{key}.{name}: no such key; {hint}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise NovaError(f"{key}.{name} is missing; set it in the config file")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(hints[name], v, f"{key}.{name}") for name, v in values.items()})


def _convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as the annotated type `kind`; an int may stand for a float, a list for a tuple."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _convert(kind, value, key)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_dict(typing.cast(type, kind), value, key)
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(value) == len(arguments):
            pairs = enumerate(zip(arguments, value, strict=True))
            return tuple(_convert(kind, v, f"{key}[{i}]") for i, (kind, v) in pairs)
    elif origin is Literal and value in arguments:
        return value
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif kind in (int, str, bool) and type(value) is kind:
        return value
    elif origin in (dict, Mapping.__mro__[0]) and isinstance(value, Mapping):
        return dict(value)
    wanted = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    wanted = " or ".join(map(repr, arguments)) if origin is Literal else wanted
    raise NovaError(f"{key} is {value!r}; it must be {wanted.replace('typing.', '')}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
