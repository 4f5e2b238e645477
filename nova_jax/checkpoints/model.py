"""Finished models in the project's own format, written and read; and the model of a training run.

A model directory is what `generate` and `evaluate` read and what ships in the package:

    config.json        what the model is: transformer, noise schedule, codec, text encoder, ...;
                       `dtypes` are those of the release, of all tensors or by released name
    params/            its variables, a flat {dotted path: array} in Orbax's format
    checksums.json     size and CRC-32 of every file under params/
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils.epath import Path
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding, SingleDeviceSharding

from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.checkpoints.adapters import adapter_scale, apply_adapters
from nova_jax.checkpoints.integrity import (
    CHECKSUMS,
    CONFIG,
    FORMAT,
    PARAMS,
    absolute,
    check_space,
    config_errors,
    damage,
    read_config,
    storage_errors,
    verify_checksums,
    write_checksums,
    write_config,
)
from nova_jax.checkpoints.parts import codec_from_dict, text_encoder_from_dict
from nova_jax.checkpoints.run import choose_checkpoint
from nova_jax.distributed import multihost
from nova_jax.distributed.mesh import MeshLayout, parameter_shardings, replicated
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.sampling.schedules import Schedule, schedule_from_dict
from nova_jax.text.interface import TextEncoder

# What config.json says of a model; the rest of a run's config is about its training.
MODEL_KEYS = (
    "model",
    "schedule",
    "codec",
    "text_encoder",
    "sampling",
    "motion_flow",
    "dataset",
    "dtypes",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to use, with all that belongs to it.

    Attributes:
        model: the transformer with its parameters, float32.
        schedule: the noise schedule it was trained with.
        codec: pixels to latents and back; None if it was trained on latents and none was named.
        text_encoder: prompts to features; None for a class-conditional model, or as `codec`.
        config: config.json as it stands.
        step: training steps behind it.
    """

    model: Nova
    schedule: Schedule
    codec: VideoCodec | None
    text_encoder: TextEncoder | None
    config: dict[str, Any]
    step: int


def save_model(
    directory: str | os.PathLike[str],
    *,
    variables: Mapping[str, jax.Array],
    config: Mapping[str, Any],
    step: int,
    dtype: jax.typing.DTypeLike | None = jnp.float32,
) -> None:
    """Writes a model directory, replacing an earlier one of this format.

    Args:
        directory: where to.
        variables: every variable of the model by dotted path.
        config: plain values under `MODEL_KEYS`; other keys are left out.
        step: training steps behind the model.
        dtype: stored type; a half type halves the files. None keeps the types there are.

    Raises:
        NovaError: if something else is at `directory`, or the disk is full.
    """
    directory = absolute(directory)
    params = directory / PARAMS
    stored = {name: value.astype(dtype or value.dtype) for name, value in variables.items()}
    described = FORMAT | {"step": step} | {key: config[key] for key in MODEL_KEYS if key in config}

    def prepare() -> None:
        there = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
        # A process that was killed while it saved leaves these, or some of them.
        ours = (PARAMS, CONFIG, CHECKSUMS)
        if PARAMS not in there and not all(name.startswith(ours) for name in there):
            raise NovaError(f"{directory} exists and is no model directory; choose another place")
        with storage_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            check_space(directory, stored)
            for name in there:
                if name.startswith(PARAMS):
                    (directory / name).rmtree()

    def finish() -> None:
        with storage_errors(directory):
            write_checksums(directory)
            write_config(directory, described)

    multihost.on_first(prepare)
    with storage_errors(directory), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(params, stored)
    multihost.on_first(finish)


def load_model(
    directory: str | os.PathLike[str],
    *,
    which: Literal["ema", "raw"] = "ema",
    checkpoint: Literal["latest", "best"] | int = "latest",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> LoadedModel:
    """Loads a model directory, or the model of a training run from its work directory.

    Args:
        directory: a model directory or a work directory.
        which: of a training run: averaged or current parameters.
        checkpoint: of a training run: the newest, the one with the lowest evaluation loss, or the
            one of this step.
        dtype: type the model computes in; parameters are float32 in any case.

    Raises:
        NovaError: if there is no checkpoint, it is not one of this project, or it is damaged.
    """
    directory = absolute(directory)
    transformer = load_trained(directory, which=which, checkpoint=checkpoint, dtype=dtype)
    config = transformer.config
    with config_errors(directory):
        codec, encoder = config.get("codec"), config.get("text_encoder")
        base = pathlib.Path(directory)
        codec = None if codec is None else codec_from_dict(codec, base)
        text_encoder = None if encoder is None else text_encoder_from_dict(encoder, base)
    return LoadedModel(
        model=transformer.model,
        schedule=transformer.schedule,
        codec=codec,
        text_encoder=text_encoder,
        config=config,
        step=transformer.step,
    )


def read_model_config(directory: str | os.PathLike[str]) -> NovaConfig:
    """What the transformer of a model directory or a work directory is.

    Raises:
        NovaError: if config.json is missing, damaged, or of something else.
    """
    directory = Path(directory)
    config = read_config(directory)
    with config_errors(directory):
        return NovaConfig.from_dict(config["model"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedTransformer:
    """The part of a `LoadedModel` that was trained; its attributes are those."""

    model: Nova
    schedule: Schedule
    config: dict[str, Any]
    step: int


def load_trained(
    directory: str | os.PathLike[str],
    *,
    which: Literal["ema", "raw"] = "ema",
    checkpoint: Literal["latest", "best"] | int = "latest",
    dtype: jax.typing.DTypeLike = jnp.float32,
    mesh: MeshLayout | None = None,
) -> LoadedTransformer:
    """Loads what `load_model` does, without the codec and the text encoder.

    Args:
        directory, which, checkpoint, dtype: see `load_model`.
        mesh: devices that parameters are put on, as `nova_jax.distributed.mesh` says; by default
            all on the first.

    Raises:
        NovaError: see `load_model`.
    """
    directory = absolute(directory)
    config = read_config(directory)
    if (directory / PARAMS).is_dir():
        source, trees, step = directory, [PARAMS], config.get("step", 0)
    else:
        source = choose_checkpoint(directory, checkpoint)
        trees, step = ["frozen", "ema" if which == "ema" else "params"], int(source.name)
    verify_checksums(source)
    with config_errors(directory):
        model_config = NovaConfig.from_dict(config["model"])
        schedule = schedule_from_dict(config["schedule"])
        lora = None if source == directory else config.get("lora")
        scale = None if lora is None else adapter_scale(lora["rank"], lora["alpha"])
    abstract = nnx.eval_shape(lambda: Nova(model_config, rngs=nnx.Rngs(0), dtype=dtype))
    shardings = {} if mesh is None else parameter_shardings(abstract, mesh)

    # Adapters, which the model knows nothing of, have a copy on every device.
    default = SingleDeviceSharding(jax.devices()[0]) if mesh is None else replicated(mesh)
    variables: dict[str, jax.Array] = {}
    for tree in trees:
        restored = flatten_dict(_restore(source / tree, shardings, default), sep=".")
        if scale is None or tree == "frozen":
            variables |= restored
        else:
            variables = apply_adapters(variables, restored, scale)

    graphdef, state = nnx.split(abstract)
    expected = flatten_dict(nnx.to_pure_dict(state), sep=".")
    _check_fit(source, {k: v.shape for k, v in variables.items()}, expected)
    values = {name: jnp.asarray(value, expected[name].dtype) for name, value in variables.items()}
    return LoadedTransformer(
        model=nnx.merge(graphdef, unflatten_dict(values, sep=".")),
        schedule=schedule,
        config=config,
        step=step,
    )


# ---- config.json and checksums.json ------------------------------------------------------------


def _restore(
    directory: Path, shardings: Mapping[str, Sharding], default: Sharding
) -> dict[str, Any]:
    """A tree of arrays as it was saved, each where its dotted path says."""
    with damage(directory), ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(directory).item_metadata.tree

        def abstract(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
            sharding = shardings.get(".".join(entry.key for entry in path), default)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return checkpointer.restore(directory, jax.tree.map_with_path(abstract, saved))


def _check_fit(
    source: Path,
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, jax.ShapeDtypeStruct],
) -> None:
    for name in sorted(expected.keys() | shapes.keys()):
        wanted = expected[name].shape if name in expected else "nothing"
        if shapes.get(name, "nothing") != wanted:
            raise NovaError(
                f"checkpoint {source} does not fit its config.json: {name} is "
                f"{shapes.get(name, 'missing')}, the model has {wanted}; restore both from one copy"
            )
