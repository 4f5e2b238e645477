"""What a training run is: one typed, frozen dataclass, read strictly from plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from nova_jax.config import (
    Checked,
    Count,
    MotionScore,
    Natural,
    NotNegative,
    Seed,
    from_dict,
    to_plain,
)
from nova_jax.data.pipeline import DataConfig
from nova_jax.distributed.mesh import MeshConfig
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.layers import Remat
from nova_jax.sampling.options import SamplingConfig
from nova_jax.training.context import ContextConfig
from nova_jax.training.datasets import DatasetConfig
from nova_jax.training.guard import GuardConfig
from nova_jax.training.lora import LoraConfig
from nova_jax.training.optimizer import OptimizerConfig
from nova_jax.training.start import InitConfig
from nova_jax.training.state import EMAConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Checked):
    """When to save and what to keep.

    Attributes:
        every: steps between checkpoints; there is one at the end in any case.
        keep_latest: newest checkpoints to keep.
        keep_best: checkpoints with the lowest validation loss to keep besides.
    """

    every: Count = 1000
    keep_latest: Count = 2
    keep_best: Natural = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig(Checked):
    """Where numbers go, besides the progress bar and metrics.jsonl.

    Attributes:
        every: number of steps after which the metrics of all of them are fetched and recorded.
        tensorboard: whether TensorBoard event files are written.
        wandb_project: Weights & Biases project that metrics also go to; None for none.
        profile: first of the five steps that a profiler trace in profile/ shows; None for no trace.
    """

    every: Count = 20
    tensorboard: bool = True
    wandb_project: str | None = None
    profile: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig(Checked):
    """Loss on held-out clips, by the averaged parameters.

    Attributes:
        every: steps between validations; there is one at the end in any case.
        batches: video batches, the same ones each time.
    """

    every: Count = 1000
    batches: Count = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig(Checked):
    """Videos drawn during training, by the averaged parameters, with the defaults of generation.

    Attributes:
        every: steps between two drawings; None draws no videos.
        prompts: prompts of which each gives one video.
        seed: seed of the videos' noise, which is the same each time.
    """

    every: Count | None = 1000
    prompts: tuple[str, ...] = ()
    seed: Seed = 0

    def due(self, step: int, last: bool) -> bool:
        """Whether it is time for some after a step, which may be the run's last."""
        return bool(self.every and self.prompts) and (last or step % (self.every or 1) == 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """A whole run. Sections named by ``type`` are plain values that their registries read.

    Attributes:
        steps: number of batches to train on.
        stop_at: step after which the run stops, to be taken up again later; None to go on to the
            end.
        seed: seed of the parameters and of all that training draws; the data has a seed of its own.
        model: size and options of the transformer.
        init: checkpoint whose parameters the run starts from; None to draw them.
        lora: adapters to train in place of the parameters of ``init``; None to train all of these.
        schedule: noise schedule, see `nova_jax.sampling.schedules`.
        codec: pixels to latents, see `nova_jax.checkpoints.parts`; None where the dataset brings
            latents.
        text_encoder: prompts to features, see `nova_jax.checkpoints.parts`; None where the dataset
            brings features, or the model takes class labels.
        dataset: what to train on, by its ``type``, see `nova_jax.training.datasets`.
        data: how the dataset's clips are batched and mixed.
        optimizer: which parameters are trained, and how.
        ema: moving average of the parameters.
        guard: what to do about numbers that are not finite.
        dtype: type of the computation; parameters, softmax, norms and losses are float32 anyway.
        remat: what blocks recompute in the backward pass, to save memory: nothing, all but matrix
            products ("dots"), or everything ("full").
        unroll: blocks per iteration of the compiled loop over depth. 1 compiles fastest; with as
            many as a model has, CPUs run shallow ones about 1.5 times faster.
        loss_repeat: number of noisy copies of each frame, each with noise and times of its own.
        first_frame_loss: weight of a video's first frame in the loss. 0 trains a model that is
            always given its first frame (image to video).
        context: what the temporal encoder sees of the frames before, see
            `nova_jax.training.context.ContextConfig`.
        mesh: how devices share the work; it may change when a run is taken up again.
        checkpoint: see `CheckpointConfig`.
        logging: see `LoggingConfig`.
        validation: see `ValidationConfig`.
        samples: see `SamplesConfig`.
        sampling: defaults of generation, saved with the model.
        motion_flow: motion score that generation asks for by default, in pixels a frame.
    """

    steps: Count
    stop_at: Count | None = None
    seed: Seed = 0
    model: NovaConfig
    init: InitConfig | None = None
    lora: LoraConfig | None = None
    schedule: Mapping[str, Any]
    codec: Mapping[str, Any] | None = None
    text_encoder: Mapping[str, Any] | None = None
    dataset: DatasetConfig
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EMAConfig = EMAConfig()
    guard: GuardConfig = GuardConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    unroll: Count = 1
    loss_repeat: Count = 4
    first_frame_loss: NotNegative = 1.0
    context: ContextConfig = ContextConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    validation: ValidationConfig = ValidationConfig()
    samples: SamplesConfig = SamplesConfig()
    sampling: SamplingConfig = SamplingConfig()
    motion_flow: MotionScore = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora and not self.init:
            raise NovaError("lora needs a model to adapt; set init.checkpoint")
        if self.lora and self.optimizer.freeze:
            raise NovaError("lora trains adapters alone; leave optimizer.freeze out")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Reads plain values; sections are mappings, tuples may be lists.

        Raises:
            NovaError: on an unknown or missing key, a wrong type, or an impossible value.
        """
        return from_dict(cls, values, "config")

    @property
    def clip_frames(self) -> int:
        """Latent frames of a training video, which may be fewer or more than the model's base."""
        return getattr(self.dataset, "latent_frames", None) or self.model.frames

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, that `from_dict` reads back."""
        return to_plain(self)

    def defaults(self) -> dict[str, Any]:
        """By dotted key, the default of every field that has one, of the classes in use."""
        return dict(_defaults(self))

    def changeable(self) -> tuple[str, ...]:
        """Names of what may differ when a run is taken up again: all that changes parameters by
        rounding alone, or not at all."""
        free = {
            "stop_at",
            "mesh",
            "remat",
            "unroll",
            "data.prefetch",
            "data.num_workers",
            "guard",
            "checkpoint",
            "logging",
            "validation",
            "evaluation",  # what 0.1.0 called it
            "samples",
            "sampling",
            "motion_flow",
        }
        return tuple(free if self.optimizer.schedule == "cosine" else free | {"steps"})


def _defaults(config: Any, section: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _defaults(value, f"{section}{field.name}.")
        elif field.default is not dataclasses.MISSING:
            yield f"{section}{field.name}", to_plain(field.default)
