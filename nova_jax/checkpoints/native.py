"""The project's own checkpoints: training runs (Orbax, resumable) and finished models.

A model directory is what `generate` and `evaluate` read and what ships in the package:

    config.json        what the model is: transformer, noise schedule, codec, text encoder, ...;
                       `dtypes` are those of the release, of all tensors or by released name
    params/            its variables, a flat {dotted path: array} in Orbax's format
    checksums.json     size and CRC-32 of every file under params/

A training run keeps resumable checkpoints in its work directory:

    config.json        the resolved config of the run, a superset of a model's
    checkpoints/STEP/  params, frozen, ema, optimizer (Orbax), data (Grain), checksums.json

Orbax reads some damaged files without complaint, hence the checksums: whatever is not exactly as
it was written is refused before Orbax sees it.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from nova_jax.checkpoints.parts import codec_from_dict, text_encoder_from_dict
from nova_jax.codecs.interfaces import TextEncoder, VideoCodec
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.sampling.schedules import Schedule, schedule_from_dict

FORMAT = {"format": "nova_jax", "version": 1}
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
_CONFIG, _CHECKSUMS = "config.json", "checksums.json"
_PARAMS, _CHECKPOINTS = "params", "checkpoints"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to use, with all that belongs to it.

    Attributes:
        model: the transformer with its parameters, float32.
        schedule: the noise schedule it was trained with.
        codec: pixels to latents and back.
        text_encoder: prompts to features; None for a class-conditional model.
        config: config.json as it stands.
        step: training steps behind it.
    """

    model: Nova
    schedule: Schedule
    codec: VideoCodec
    text_encoder: TextEncoder | None
    config: dict[str, Any]
    step: int


# ---- Finished models ---------------------------------------------------------------------------


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
    directory = Path(directory).absolute()
    if directory.exists() and any(directory.iterdir()) and not (directory / _PARAMS).exists():
        raise NovaError(f"{directory} exists and is no model directory; choose another place")
    stored = {name: value.astype(dtype or value.dtype) for name, value in variables.items()}
    described = FORMAT | {"step": step} | {key: config[key] for key in MODEL_KEYS if key in config}
    with _storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        _check_space(directory, stored)
        params = directory / _PARAMS
        if params.exists():
            shutil.rmtree(params)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(params, stored)
        write_checksums(directory)
        write_config(directory, described)


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
    directory = Path(directory).absolute()
    config = read_config(directory)
    if (directory / _PARAMS).is_dir():
        source, trees, step = directory, [_PARAMS], config.get("step", 0)
    else:
        source = _choose_checkpoint(directory, checkpoint)
        trees, step = ["frozen", "ema" if which == "ema" else "params"], int(source.name)
    verify_checksums(source)
    variables: dict[str, jax.Array] = {}
    for tree in trees:
        variables |= flatten_dict(_restore(source / tree), sep=".")

    with _config_errors(directory):
        model_config = NovaConfig.from_dict(config["model"])
        schedule = schedule_from_dict(config["schedule"])
        codec = codec_from_dict(config["codec"], directory)
        encoder = config.get("text_encoder")
        text_encoder = None if encoder is None else text_encoder_from_dict(encoder, directory)

    abstract = nnx.eval_shape(lambda: Nova(model_config, rngs=nnx.Rngs(0), dtype=dtype))
    graphdef, state = nnx.split(abstract)
    expected = flatten_dict(nnx.to_pure_dict(state), sep=".")
    _check_fit(source, {k: v.shape for k, v in variables.items()}, expected)
    values = {name: jnp.asarray(value, expected[name].dtype) for name, value in variables.items()}
    return LoadedModel(
        model=nnx.merge(graphdef, unflatten_dict(values, sep=".")),
        schedule=schedule,
        codec=codec,
        text_encoder=text_encoder,
        config=config,
        step=step,
    )


# ---- Training runs -----------------------------------------------------------------------------


class RunCheckpoints:
    """The resumable checkpoints of one training run.

    Writing is asynchronous: `save` returns when the arrays are copied, and training goes on.

    Args:
        workdir: of the run; checkpoints go to ``workdir/checkpoints``.
        keep_latest: newest checkpoints to keep.
        keep_best: checkpoints to keep for their low evaluation loss, besides the newest.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, keep_latest: int, keep_best: int):
        self.directory = Path(workdir).absolute() / _CHECKPOINTS
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: -metrics["loss"],
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [
                    preservation_policy.LatestN(keep_latest),
                    preservation_policy.BestN(
                        get_metric_fn=lambda metrics: -metrics["loss"],
                        n=keep_best,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            cleanup_tmp_directories=True,
        )
        for step in _steps(self.directory):
            _evaluation_loss(step)  # names the file if it is damaged; Orbax would not
        with _storage_errors(self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """Steps done at the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        trees: Mapping[str, Any],
        data: grain.DatasetIterator,
        loss: float | None = None,
    ) -> None:
        """Starts writing the checkpoint of `step`; nothing happens if it exists.

        Args:
            step: steps done.
            trees: pytrees of arrays by name.
            data: its position is saved.
            loss: evaluation loss, by which the best checkpoint is known.
        """
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        _check_space(self.directory, trees)
        with _storage_errors(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(data), **items),
                metrics=None if loss is None else {"loss": loss},
            )

    def restore(
        self, step: int, trees: Mapping[str, Any], data: grain.DatasetIterator
    ) -> dict[str, Any]:
        """Reads a checkpoint back, bit for bit, and puts `data` at its position.

        Args:
            step: which one.
            trees: pytrees of arrays that say structure, types and sharding.
            data: an iterator over the same data.

        Raises:
            NovaError: if the checkpoint is damaged.
        """
        self.wait()  # it may be the one that is still being written
        source = self.directory / str(step)
        verify_checksums(source)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(trees))
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        with _damage(source):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(data), **items),
            )
        return {name: restored[name] for name in trees}

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            NovaError: if a write failed for want of space.
        """
        with _storage_errors(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases Orbax's threads."""
        with _storage_errors(self.directory):
            self._manager.close()

    def _seal(self) -> None:
        """Called when a checkpoint is written and does not have its final name yet."""
        for checkpoint in self.directory.iterdir():
            if not (checkpoint / _CHECKSUMS).exists():
                write_checksums(checkpoint)


def claim_workdir(
    workdir: str | os.PathLike[str], config: Mapping[str, Any], free: tuple[str, ...] = ()
) -> None:
    """Makes `workdir` the place of a run, or finds that it already is; writes config.json.

    Args:
        workdir: created if it is missing.
        config: the resolved config, plain values.
        free: dotted keys, or sections of them, that may differ when a run is taken up again.

    Raises:
        NovaError: if it holds a run of another config; nothing is changed then.
    """
    workdir = Path(workdir).absolute()
    config = json.loads(json.dumps(FORMAT | dict(config)))
    if (workdir / _CONFIG).exists():
        old, new = (flatten_dict(c, sep=".") for c in (read_config(workdir), config))
        missing = object()
        different = [
            f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)"
            for key in sorted(old.keys() | new.keys())
            if old.get(key, missing) != new.get(key, missing)
            and not any(key == name or key.startswith(f"{name}.") for name in free)
        ]
        if different:
            raise NovaError(
                f"{workdir} is the work directory of another config: {', '.join(different)}; "
                "choose another --workdir or undo the changes"
            )
    elif (workdir / _CHECKPOINTS).exists():
        raise NovaError(f"{workdir} has checkpoints but no {_CONFIG}; choose another --workdir")
    with _storage_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        write_config(workdir, config)


# ---- config.json and checksums.json ------------------------------------------------------------


def read_config(directory: Path) -> dict[str, Any]:
    """Reads ``directory/config.json``.

    Raises:
        NovaError: if it is missing, damaged, or of something else.
    """
    file = directory / _CONFIG
    if not file.is_file():
        problem = "has no config.json" if directory.is_dir() else "is not a directory"
        raise NovaError(
            f"checkpoint {directory} {problem}; "
            "give a model directory or the --workdir of a training run"
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise NovaError(f"{file} is damaged: {error}; restore it from a copy") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT["format"]:
        raise NovaError(f"{file} is not of nova_jax; give a nova_jax checkpoint, or convert it")
    if config.get("version") != FORMAT["version"]:
        raise NovaError(
            f"{file} has format version {config.get('version')}, this nova_jax reads "
            f"{FORMAT['version']}; install the version that wrote it"
        )
    return config


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Writes ``directory/config.json``, whole or not at all."""
    partial = directory / f"{_CONFIG}.partial"
    partial.write_text(json.dumps(config, indent=2) + "\n")
    partial.replace(directory / _CONFIG)


def write_checksums(directory: Path) -> None:
    """Records what every file in a subdirectory of `directory` holds.

    Files of `directory` itself may change: config.json by hand, Orbax's own by Orbax.
    """
    files = sorted(file for file in directory.glob("*/**/*") if file.is_file())
    table = {str(file.relative_to(directory)): _checksum(file) for file in files}
    partial = directory / f"{_CHECKSUMS}.partial"
    partial.write_text(json.dumps(table, indent=1) + "\n")
    partial.replace(directory / _CHECKSUMS)


def verify_checksums(directory: Path) -> None:
    """Compares the files of a checkpoint with what was written.

    Raises:
        NovaError: naming the first file that is missing, cut short or changed.
    """
    remedy = "restore it from a copy, or delete this checkpoint to use the one before it"
    listing = directory / _CHECKSUMS
    try:
        table = json.loads(listing.read_text())
    except (OSError, ValueError) as error:
        raise NovaError(f"checkpoint file {listing} is missing or damaged; {remedy}") from error
    for name, recorded in table.items():
        file = directory / name
        if not file.is_file():
            raise NovaError(f"checkpoint file {file} is missing; {remedy}")
        if _checksum(file) != recorded:
            raise NovaError(f"checkpoint file {file} is damaged or cut short; {remedy}")


def _checksum(file: Path) -> list[int]:
    crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return [file.stat().st_size, crc]


# ---- Helpers -----------------------------------------------------------------------------------


def _steps(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first; Orbax gives unfinished ones another name."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name))


def _choose_checkpoint(workdir: Path, checkpoint: Literal["latest", "best"] | int) -> Path:
    steps = _steps(workdir / _CHECKPOINTS)
    if not steps:
        raise NovaError(f"{workdir} has no checkpoint yet; let the training run write one")
    if checkpoint == "latest":
        return steps[-1]
    if checkpoint == "best":
        losses = [(_evaluation_loss(step), step) for step in steps]
        evaluated = [(loss, step) for loss, step in losses if loss is not None]
        if not evaluated:
            raise NovaError(f"{workdir} has no evaluated checkpoint; use the latest")
        return min(evaluated)[1]
    if (chosen := workdir / _CHECKPOINTS / str(checkpoint)) not in steps:
        kept = ", ".join(step.name for step in steps)
        raise NovaError(f"{workdir} has no checkpoint of step {checkpoint}; there are {kept}")
    return chosen


def _evaluation_loss(checkpoint: Path) -> float | None:
    file = checkpoint / "metrics" / "metrics"
    with _damage(file):
        return json.loads(file.read_text())["loss"] if file.exists() else None


def _restore(directory: Path) -> dict[str, Any]:
    """A tree of arrays as it was saved, on the first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with _damage(directory), ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(directory).item_metadata.tree
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved
        )
        return checkpointer.restore(directory, abstract)


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


def _check_space(directory: Path, arrays: Any) -> None:
    """A full disk is best found before Orbax's threads find it, each with a traceback."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    if (free := shutil.disk_usage(directory).free) < needed:
        raise NovaError(
            f"{directory}: no space left on device for a checkpoint of {needed >> 20} MiB "
            f"({free >> 20} MiB free); free some and run the same command again"
        )


@contextmanager
def _config_errors(directory: Path) -> Iterator[None]:
    """Says which file a part of the config that makes no sense is in."""
    try:
        yield
    except (NovaError, KeyError, TypeError) as error:
        raise NovaError(f"{directory / _CONFIG}: {error}; restore it from a copy") from error


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever Orbax cannot read is damage: it has no one exception for it."""
    try:
        yield
    except Exception as error:
        raise NovaError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); restore it from a copy"
        ) from error


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turns a full disk into a user's error; Orbax and TensorStore report it in many ways."""
    try:
        yield
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error) and "ENOSPC" not in str(error):
            raise
        raise NovaError(
            f"{path}: no space left on device; free some and run the same command again"
        ) from error
