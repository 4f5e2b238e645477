"""The one rule for what a name is, and what can then be asked of it: `open_checkpoint`.

Whatever takes a checkpoint (generation, training that starts from one, conversion, evaluation,
comparison with the release, preparation of data) takes any of three kinds, by name:

    a released model      model_index.json, transformer/, vae/, ...; and nova_jax.json, where this
                          project has saved it: what the other files have no place for
    a model directory     of this project: config.json, params/
    a training run        its work directory: config.json, checkpoints/

The first two are on the Hugging Face hub, too; `nova_jax.checkpoints.hub` says which names lead
there.
"""

from __future__ import annotations

import abc
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from etils.epath import Path
from jax.typing import DTypeLike

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.checkpoints import diffusers, model
from nova_jax.checkpoints.adapters import adapter_scale
from nova_jax.checkpoints.hub import locate
from nova_jax.checkpoints.integrity import CONFIG, PARAMS, absolute, config_errors, read_config
from nova_jax.checkpoints.parts import codec_from_dict, text_encoder_from_dict
from nova_jax.checkpoints.run import Step, choose_checkpoint
from nova_jax.config import Checked, Count, FrameRate, MotionScore, convert
from nova_jax.distributed.mesh import MeshLayout
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.embeddings import DEFAULT_FLOW, DEFAULT_FPS
from nova_jax.models.nova import Nova
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import Schedule, schedule_from_dict
from nova_jax.text.interface import TextEncoder

_INDEX = "model_index.json"  # of a released model
NOTES = "nova_jax.json"  # beside it

Kind = Literal["released", "model", "run"]
#: Parameters of a training run: averaged, or as they are.
Weights = Literal["ema", "raw"]


@dataclasses.dataclass(frozen=True)
class Defaults(Checked):
    """How a model generates unless told otherwise; see `nova_jax.pipeline.NovaPipeline`."""

    frames: Count = 1
    sampling: SamplingConfig = SamplingConfig(guidance=GuidanceConfig(scale=5.0))
    motion_flow: MotionScore = DEFAULT_FLOW
    fps: FrameRate = DEFAULT_FPS


@dataclasses.dataclass(frozen=True)
class Checkpoint(abc.ABC):
    """A checkpoint of which nothing but its configuration is loaded yet.

    In the loaders `dtype` is the type of the computation, and of frozen parts that of the
    parameters, too; `param_dtype` is the type that the transformer's parameters are kept in. On a
    `mesh` parameters lie as `nova_jax.distributed.mesh` says; by default all on the first device.
    They raise `NovaError`, naming what is missing, unknown, damaged or of another shape.

    Attributes:
        kind: what it is.
        directory: where it is.
        config: config.json of this project as it stands; of a released model what its nova_jax.json
            says, mostly nothing.
    """

    kind: ClassVar[Kind]
    _file: ClassVar[str] = CONFIG
    directory: Path
    config: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Training steps behind it; 0 where a released model does not say."""
        return self.config.get("step", 0)

    @abc.abstractmethod
    def model_config(self) -> NovaConfig:
        """What the transformer is."""

    def defaults(self) -> Defaults:
        """How it generates unless told otherwise."""
        otherwise = self._otherwise()
        with config_errors(self.directory, self._file):
            dataset = convert(Mapping[str, Any], self.config.get("dataset", {}), "dataset")
            sampling = self.config.get("sampling", otherwise.sampling)
            return Defaults(
                frames=self.config.get("frames", otherwise.frames),
                sampling=convert(SamplingConfig, sampling, "sampling"),
                motion_flow=self.config.get("motion_flow", otherwise.motion_flow),
                fps=self.config.get("fps", dataset.get("fps", otherwise.fps)),
            )

    @abc.abstractmethod
    def _otherwise(self) -> Defaults:
        """Defaults where its config does not say."""

    @abc.abstractmethod
    def load_transformer(
        self,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        mesh: MeshLayout | None = None,
    ) -> tuple[Nova, Schedule]:
        """Loads the transformer, with the noise schedule it was trained with."""

    @abc.abstractmethod
    def load_autoencoder(
        self, *, dtype: DTypeLike = jnp.float32, mesh: MeshLayout | None = None
    ) -> VideoCodec | None:
        """Loads the autoencoder; None if the model was trained on latents and none is named."""

    @abc.abstractmethod
    def load_text_encoder(
        self, *, dtype: DTypeLike = jnp.float32, mesh: MeshLayout | None = None
    ) -> TextEncoder | None:
        """Loads the text encoder; None if none is named."""


@dataclasses.dataclass(frozen=True)
class _Released(Checkpoint):
    """A model in the released layout."""

    kind: ClassVar[Kind] = "released"
    _file: ClassVar[str] = NOTES

    def model_config(self) -> NovaConfig:
        return diffusers.read_model_config(pathlib.Path(self.directory))

    def _otherwise(self) -> Defaults:
        return Defaults()

    def load_transformer(self, **options: Any) -> tuple[Nova, Schedule]:
        return diffusers.load_transformer(pathlib.Path(self.directory), **options)

    def load_autoencoder(self, **options: Any) -> VideoCodec:
        return diffusers.load_autoencoder(pathlib.Path(self.directory) / "vae", **options)

    def load_text_encoder(self, **options: Any) -> TextEncoder:
        return diffusers.load_text_encoder(pathlib.Path(self.directory), **options)


@dataclasses.dataclass(frozen=True)
class _ModelDirectory(Checkpoint):
    """A finished model of this project."""

    kind: ClassVar[Kind] = "model"

    def model_config(self) -> NovaConfig:
        with config_errors(self.directory):
            return NovaConfig.from_dict(self.config["model"])

    def _otherwise(self) -> Defaults:
        return Defaults(frames=self.model_config().frames, sampling=SamplingConfig())

    def load_transformer(self, **options: Any) -> tuple[Nova, Schedule]:
        with config_errors(self.directory):
            schedule = schedule_from_dict(self.config["schedule"])
        return self._load(self.model_config(), **options), schedule

    def _load(self, config: NovaConfig, **options: Any) -> Nova:
        return model.load_parameters(config, self.directory, PARAMS, **options)

    def load_autoencoder(self, **options: Any) -> VideoCodec | None:
        if (settings := self.config.get("codec")) is None:
            return None
        with config_errors(self.directory):
            return codec_from_dict(settings, pathlib.Path(self.directory), **options)

    def load_text_encoder(self, **options: Any) -> TextEncoder | None:
        if (settings := self.config.get("text_encoder")) is None:
            return None
        with config_errors(self.directory):
            return text_encoder_from_dict(settings, pathlib.Path(self.directory), **options)


@dataclasses.dataclass(frozen=True)
class _Run(_ModelDirectory):
    """A training run: one of its checkpoints, and of that the parameters that are asked for."""

    kind: ClassVar[Kind] = "run"
    checkpoint: Path
    weights: Weights

    @property
    def step(self) -> int:
        return int(self.checkpoint.name)

    def _load(self, config: NovaConfig, **options: Any) -> Nova:
        with config_errors(self.directory):
            lora = self.config.get("lora")
            scale = None if lora is None else adapter_scale(lora["rank"], lora["alpha"])
        return model.load_parameters(
            config,
            self.checkpoint,
            "ema" if self.weights == "ema" else "params",
            frozen="frozen",
            adapters=scale,
            **options,
        )


def open_checkpoint(
    source: str | os.PathLike[str],
    *,
    weights: Weights = "ema",
    step: Step = "latest",
    part: str | None = "*",
) -> Checkpoint:
    """Finds what a name is, and reads what it says of itself.

    Args:
        source: a directory of any of the three kinds, or an id on the Hugging Face hub.
        weights: of a training run: averaged or current parameters.
        step: of a training run: which of its checkpoints.
        part: see `nova_jax.checkpoints.hub.locate`.

    Raises:
        NovaError: there is no such directory or model, or the directory is none of the three.
    """
    convert(Weights, weights, "weights")
    convert(str | int, step, "step")
    directory = locate(source, part)
    if (directory / _INDEX).is_file():
        noted = (directory / NOTES).is_file()
        return _Released(directory, read_config(directory, NOTES) if noted else {})
    if (directory / CONFIG).is_file():
        directory = absolute(directory)
        config = read_config(directory)
        if (directory / PARAMS).is_dir():
            return _ModelDirectory(directory, config)
        return _Run(directory, config, choose_checkpoint(directory, step), weights)
    # A release of some of its parts, such as the frozen ones that data is prepared with.
    if any((directory / part).is_dir() for part in ("transformer", "vae", "text_encoder")):
        return _Released(directory, {})
    below = (*directory.iterdir(), *directory.glob("snapshots/*"))
    near = [
        str(path) for path in below if any((path / name).is_file() for name in (_INDEX, CONFIG))
    ]
    hint = f"; did you mean {' or '.join(sorted(near)[:3])}?" if near else ""
    raise NovaError(
        f"{directory} is no checkpoint: it has no {CONFIG}, as a model directory and the --workdir "
        f"of a training run have, and no {_INDEX}, as a released model has{hint}"
    )


def load_frozen_parts(
    checkpoint: Checkpoint, config: NovaConfig, *, offload: bool = False, **options: Any
) -> tuple[VideoCodec, TextEncoder | None]:
    """Loads what turns prompts into a transformer's conditions, and its latents into pixels.

    Args:
        checkpoint: where it is.
        config: what the transformer is.
        offload: whether parameters wait in the host's memory while they are not used; each part
            goes there before the next one is read.
        **options: `dtype` and `mesh`, see `Checkpoint`.

    Returns:
        The autoencoder, and the text encoder; None for a class-conditional model.

    Raises:
        NovaError: the checkpoint names none, or one that does not fit the transformer.
    """
    codec = checkpoint.load_autoencoder(**options)
    codec = codec.offloaded() if codec and offload else codec
    text_encoder = None if config.text_dim is None else checkpoint.load_text_encoder(**options)
    text_encoder = text_encoder.offloaded() if text_encoder and offload else text_encoder
    missing = ["codec"] if codec is None else []
    missing += ["text_encoder"] if config.text_dim is not None and text_encoder is None else []
    if codec is None or missing:
        raise NovaError(
            f"{checkpoint.directory} was trained on latents and names no "
            f"{' and no '.join(missing)}; put that of the data into its config.json, as "
            '{"type": "released", "source": DIR}'
        )
    facts = [("latent_channels", codec.latent_channels, "autoencoder")]
    facts += [("text_dim", text_encoder.dim, "text encoder")] if text_encoder is not None else []
    for name, given, part in facts:
        if (wanted := getattr(config, name)) != given:
            raise NovaError(
                f"{checkpoint.directory}: the transformer has {name} {wanted}, the {part} gives "
                f"{given}; they are of different models"
            )
    return codec, text_encoder
