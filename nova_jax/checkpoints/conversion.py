"""From the released layout to a model directory of this project, and back, bit for bit.

A converted model directory keeps everything of the release but the transformer's weights, which it
has as its own parameters, in ``released/``: the frozen parts are then where they are needed, and
the way back has the very same files to give.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from nova_jax.checkpoints import rules
from nova_jax.checkpoints.diffusers import (
    WEIGHTS,
    config_from_released,
    config_to_released,
    load_transformer,
    read_json,
    schedule_from_released,
    schedule_to_released,
)
from nova_jax.checkpoints.hub import KEPT, locate
from nova_jax.checkpoints.integrity import write_checksums
from nova_jax.checkpoints.model import save_model
from nova_jax.checkpoints.open import Defaults, Weights, open_checkpoint
from nova_jax.checkpoints.parts import ReleasedPart, released_source
from nova_jax.checkpoints.run import Step
from nova_jax.checkpoints.tensors import open_tensors, write_safetensors
from nova_jax.config import to_plain
from nova_jax.errors import NovaError
from nova_jax.files import new_output, unfinished
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.sampling.schedules import Schedule

_WEIGHT_FILES = (f"{WEIGHTS}*.safetensors*", f"{WEIGHTS}*.bin*")


def released_to_native(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Writes a model directory that holds what a released model does.

    Args:
        source: directory in the released layout, or an id on the hub.
        out: a new directory.

    Raises:
        NovaError: `out` exists or cannot be made, or the source is missing, damaged or not of this
            layout.
    """
    out = new_directory(out)
    directory = Path(locate(source))
    tensors = open_tensors(directory / "transformer", [WEIGHTS])
    dtypes = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    different = len(set(dtypes.values())) > 1
    # float32 holds every value of the half types, so files of several types lose nothing.
    stored = "float32" if different else next(iter(dtypes.values()), "float32")
    model, schedule = load_transformer(directory, param_dtype=stored)
    variables = {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(nnx.state(model))
    }
    parts = to_plain(ReleasedPart(f"./{KEPT}"))
    config: dict[str, Any] = {
        "model": model.config.to_dict(),
        "schedule": to_plain(schedule),
        "codec": parts,
        "text_encoder": parts if model.config.text_dim is not None else None,
        "sampling": to_plain(Defaults().sampling),
        "dtypes": dtypes if different else stored,
    }
    with unfinished(out) as new:
        save_model(new, variables=variables, config=config, step=0, dtype=None)
        copy_frozen(directory, new / KEPT)
        write_checksums(new)
        new.rename(out)


def native_to_released(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    weights: Weights = "ema",
    step: Step = "latest",
    dtype: str | None = None,
    parts: str | None = None,
) -> None:
    """Writes a complete directory in the released layout, which PyTorch users load as any other.

    Args:
        source: model directory, or work directory of a training run.
        out: a new directory.
        weights, step: of a training run, see `open_checkpoint`.
        dtype: type of the transformer's tensors; by default what they were released in, or float32.
        parts: released model that autoencoder, text encoder and tokenizer come from; by default the
            one that the model was trained with.

    Raises:
        NovaError: `out` exists or cannot be made, the source is no checkpoint of this project, or
            it has parts that the released layout does not know.
    """
    out = new_directory(out)
    checkpoint = open_checkpoint(source, weights=weights, step=step)
    if checkpoint.kind == "released":
        raise NovaError(f"{source} is in the released layout already; give a model of this project")
    config = checkpoint.config
    codec = config.get("codec") or {"type": "none"}
    origin = parts or released_source(codec, Path(checkpoint.directory))
    if origin is None:
        raise NovaError(
            f"{source} was trained with codec {codec.get('type')!r}, which the released "
            "layout does not know; give --parts=MODEL, a released model with a fitting autoencoder"
        )
    base = Path(locate(origin))
    dtypes = dtype or config.get("dtypes", "float32")
    # In the type of the files, so that what this type cannot hold is found before one is written.
    kept = dtypes if isinstance(dtypes, str) else "float32"
    trained, schedule = checkpoint.load_transformer(param_dtype=kept)
    if not is_released(trained.config, base):
        raise NovaError(
            f"{source} has sizes that the layout of {origin} has no place for, such as another "
            "number of classes than 1000; it stays a model of this project"
        )
    with unfinished(out) as new:
        copy_frozen(base, new)
        write_transformer(new, trained, schedule, dtypes)
        new.rename(out)


def is_released(model: NovaConfig, base: Path) -> bool:
    """Whether the layout of the released model `base` can say what a transformer is."""
    released = config_to_released(model, read_json(base / "transformer" / "config.json"))
    with contextlib.suppress(NovaError):
        return config_from_released(released) == model
    return False


def write_transformer(
    directory: Path, transformer: Nova, schedule: Schedule, dtypes: str | Mapping[str, str]
) -> None:
    """Writes a transformer and its schedule where `copy_frozen` has written the rest.

    Args:
        directory: in the released layout, without weights of a transformer.
        transformer: one that `is_released`.
        schedule: the noise schedule it was trained with.
        dtypes: type of the tensors, of all or by released name.
    """
    model = transformer.config
    # The base's own files stay where they say the same, to the byte.
    file = directory / "transformer" / "config.json"
    released = read_json(file)
    if config_from_released(released) != model:
        released = config_to_released(model, released)
        file.write_text(json.dumps(released, indent=2) + "\n", encoding="utf-8")
    file = directory / "scheduler" / "scheduler_config.json"
    if schedule_from_released(read_json(file)) != schedule:
        values = schedule_to_released(schedule)
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    variables = {p: v.get_value() for p, v in nnx.to_flat_state(nnx.state(transformer))}
    tensors = (
        (name, value.astype(jnp.dtype(dtypes if isinstance(dtypes, str) else dtypes[name])))
        for name, value in rules.to_released(model, variables)
    )
    write_safetensors(directory / "transformer", WEIGHTS, tensors)


def new_directory(place: str | os.PathLike[str]) -> Path:
    """Where a converted model goes; an empty directory there makes room.

    Raises:
        NovaError: something else is there, or nothing can be written there.
    """
    if os.fspath(place):
        with contextlib.suppress(OSError):
            os.rmdir(place)  # only ever an empty one
    return new_output(place)


def copy_frozen(source: Path, out: Path, only: Collection[str] | None = None) -> None:
    """Copies a release but for the transformer's weights, and what tools leave behind.

    Args:
        source: in the released layout.
        out: made if it is missing.
        only: files and folders of the release to copy; by default all.
    """
    transformer = source / "transformer"

    def left_out(folder: str, names: list[str]) -> set[str]:
        patterns = (".*", *_WEIGHT_FILES) if Path(folder) == transformer else (".*",)
        left = shutil.ignore_patterns(*patterns)(folder, names)
        wanted = names if only is None or Path(folder) != source else only
        return left | (set(names) - set(wanted))

    shutil.copytree(source, out, ignore=left_out, dirs_exist_ok=True)
