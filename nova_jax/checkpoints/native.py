"""The project's own checkpoints: training runs (Orbax, resumable) and finished models.

A model directory is what `generate` and `evaluate` read and what ships in the package:

    config.json        what the model is: transformer, noise schedule, codec, text encoder, ...;
                       `dtypes` are those of the release, of all tensors or by released name
    params/            its variables, a flat {dotted path: array} in Orbax's format
    checksums.json     size and CRC-32 of every file under params/

A training run keeps resumable checkpoints in its work directory:

    config.json        the resolved config of the run, a superset of a model's
    checkpoints/STEP/  params, frozen, ema, optimizer, data (position), checksums.json

Orbax reads some damaged files without complaint, hence the checksums: whatever is not exactly as
it was written is refused before Orbax sees it. A run whose newest checkpoint is damaged goes on
from the one before; the damaged one stays, as checkpoints/STEP.damaged.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Self

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils.epath import Path
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from nova_jax.checkpoints.parts import codec_from_dict, text_encoder_from_dict
from nova_jax.codecs.interfaces import TextEncoder, VideoCodec
from nova_jax.distributed import multihost
from nova_jax.distributed.mesh import parameter_shardings, replicated
from nova_jax.errors import NovaError
from nova_jax.files import crc32, write_whole
from nova_jax.models.config import NovaConfig
from nova_jax.models.lora import LoraConfig, apply_adapters
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

logger = logging.getLogger(__name__)


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
    directory = _absolute(directory)
    params = directory / _PARAMS
    stored = {name: value.astype(dtype or value.dtype) for name, value in variables.items()}
    described = FORMAT | {"step": step} | {key: config[key] for key in MODEL_KEYS if key in config}

    def prepare() -> None:
        there = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
        # A process that was killed while it saved leaves these, or some of them.
        ours = (_PARAMS, _CONFIG, _CHECKSUMS)
        if _PARAMS not in there and not all(name.startswith(ours) for name in there):
            raise NovaError(f"{directory} exists and is no model directory; choose another place")
        with _storage_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            _check_space(directory, stored)
            for name in there:
                if name.startswith(_PARAMS):
                    (directory / name).rmtree()

    def finish() -> None:
        with _storage_errors(directory):
            write_checksums(directory)
            write_config(directory, described)

    multihost.on_first(prepare)
    with _storage_errors(directory), ocp.StandardCheckpointer() as checkpointer:
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
    directory = _absolute(directory)
    transformer = load_trained(directory, which=which, checkpoint=checkpoint, dtype=dtype)
    config = transformer.config
    with _config_errors(directory):
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
    with _config_errors(directory):
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
    mesh: Mesh | None = None,
) -> LoadedTransformer:
    """Loads what `load_model` does, without the codec and the text encoder.

    Args:
        directory, which, checkpoint, dtype: see `load_model`.
        mesh: devices that parameters are put on, as `nova_jax.distributed.mesh` says; by default
            all on the first.

    Raises:
        NovaError: see `load_model`.
    """
    directory = _absolute(directory)
    config = read_config(directory)
    if (directory / _PARAMS).is_dir():
        source, trees, step = directory, [_PARAMS], config.get("step", 0)
    else:
        source = _choose_checkpoint(directory, checkpoint)
        trees, step = ["frozen", "ema" if which == "ema" else "params"], int(source.name)
    verify_checksums(source)
    with _config_errors(directory):
        model_config = NovaConfig.from_dict(config["model"])
        schedule = schedule_from_dict(config["schedule"])
        lora = None if source == directory else config.get("lora")
        scale = None if lora is None else LoraConfig(**lora).scale
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
        self.directory = _absolute(workdir) / _CHECKPOINTS
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
        multihost.on_first(self._check_losses)
        with _storage_errors(self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=options)

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
                args=ocp.args.Composite(data=ocp.args.JsonSave(data.get_state()), **items),
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
        return self._read(source, trees, data)

    def restore_newest(
        self, trees: Mapping[str, Any], data: grain.DatasetIterator
    ) -> tuple[int, dict[str, Any]] | None:
        """Reads the newest checkpoint back that is whole, and puts `data` at its position.

        First waits for the one that is still being written. Then, from the newest down, a
        checkpoint whose files are not what was written is named in a warning and renamed to
        ``STEP.damaged``, where nothing looks at it again, and the one before it is tried. What is
        whole and does not fit `trees` is an error: that is no damage.

        Args:
            trees: pytrees of arrays that say structure, types and sharding; their values are not
                used and may be donated already.
            data: an iterator over the same data, at any position.

        Returns:
            Steps done, and the trees; None, with `data` where it was, if there is no checkpoint.

        Raises:
            NovaError: if there are checkpoints and every one of them is damaged.
        """
        self.wait()
        newest = multihost.on_first(self._newest_whole)
        self._manager.reload()
        if newest is None:
            return None
        return newest, self._read(self.directory / str(newest), trees, data)

    def _check_losses(self) -> None:
        """Sets checkpoints aside whose evaluation loss Orbax would fail to read at its start."""
        for checkpoint in _steps(self.directory):
            try:
                _evaluation_loss(checkpoint)
            except NovaError as error:
                _set_aside(checkpoint, error)

    def _newest_whole(self) -> int | None:
        """Step of the newest checkpoint that is whole, with those after it set aside."""
        checkpoints = _steps(self.directory)
        for checkpoint in reversed(checkpoints):
            try:
                verify_checksums(checkpoint)
            except NovaError as error:
                _set_aside(checkpoint, error)
            else:
                return int(checkpoint.name)
        if checkpoints:
            raise NovaError(
                f"every checkpoint in {self.directory} is damaged; restore one from a copy, "
                "or choose another --workdir to start anew"
            )
        return None

    def _read(
        self, source: Path, trees: Mapping[str, Any], data: grain.DatasetIterator
    ) -> dict[str, Any]:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(trees))
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        with _damage(source):
            restored = self._manager.restore(
                int(source.name),
                args=ocp.args.Composite(data=ocp.args.JsonRestore(), **items),
            )
        data.set_state(restored["data"])
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Among several processes an error is the end: the others do not come to finish a write.
        if error is None or jax.process_count() == 1:
            self.close()

    def _seal(self) -> None:
        """Called when a checkpoint is written and does not have its final name yet."""
        for checkpoint in self.directory.iterdir():
            if ocp.path.step.is_tmp_checkpoint(checkpoint):
                write_checksums(checkpoint)


def has_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Whether a run has left something in its work directory to go on from."""
    return bool(_steps(Path(workdir) / _CHECKPOINTS))


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
    workdir = _absolute(workdir)
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


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads ``directory/config.json``.

    Raises:
        NovaError: if it is missing, damaged, or of something else.
    """
    directory = Path(directory)
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


def write_config(directory: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
    """Writes ``directory/config.json``, whole or not at all."""
    directory = Path(directory)
    write_whole(directory / _CONFIG, json.dumps(config, indent=2) + "\n")


def write_checksums(directory: str | os.PathLike[str]) -> None:
    """Records what every file in a subdirectory of `directory` holds.

    Files of `directory` itself may change: config.json by hand, Orbax's own by Orbax.
    """
    directory = Path(directory)
    folders = [path for path in directory.iterdir() if path.is_dir()]
    files = sorted(file for folder in folders for file in _files(folder))
    table = {str(file.relative_to(directory)): _recorded(file) for file in files}
    write_whole(directory / _CHECKSUMS, json.dumps(table, indent=1) + "\n")


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def verify_checksums(directory: str | os.PathLike[str]) -> None:
    """Compares the files of a checkpoint with what was written.

    Raises:
        NovaError: naming the first file that is missing, cut short or changed.
    """
    directory = Path(directory)
    remedy = "restore it from a copy"
    listing = directory / _CHECKSUMS
    try:
        table = json.loads(listing.read_text())
    except (OSError, ValueError) as error:
        raise NovaError(f"checkpoint file {listing} is missing or damaged; {remedy}") from error
    for name, recorded in table.items():
        file = directory / name
        if not file.is_file():
            raise NovaError(f"checkpoint file {file} is missing; {remedy}")
        if _recorded(file) != recorded:
            raise NovaError(f"checkpoint file {file} is damaged or cut short; {remedy}")


def _recorded(file: Path) -> list[int]:
    return [file.stat().length, crc32(file)]


# ---- Helpers -----------------------------------------------------------------------------------


def _absolute(path: str | os.PathLike[str]) -> Path:
    """A path that does not depend on the working directory; gs:// and s3:// never do."""
    path = Path(path)
    return path if path.is_absolute() else path.absolute()


def _steps(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first; unfinished ones have another name, or a mark in gs://."""
    found = directory.iterdir() if directory.is_dir() else ()
    complete = (p for p in found if p.name.isdigit() and not ocp.path.step.is_tmp_checkpoint(p))
    return sorted(complete, key=lambda path: int(path.name))


def _set_aside(checkpoint: Path, damage: NovaError) -> None:
    """Renames a damaged checkpoint so that nobody takes it for one; says so in a warning."""
    place = checkpoint.with_name(f"{checkpoint.name}.damaged")
    while place.exists():
        place = place.with_name(f"{place.name}+")
    checkpoint.rename(place)
    logger.warning("%s; set aside as %s, going on from the one before", damage, place)


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


def _restore(
    directory: Path, shardings: Mapping[str, Sharding], default: Sharding
) -> dict[str, Any]:
    """A tree of arrays as it was saved, each where its dotted path says."""
    with _damage(directory), ocp.StandardCheckpointer() as checkpointer:
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


def _check_space(directory: Path, arrays: Any) -> None:
    """A full disk is best found before Orbax's threads find it, each with a traceback."""
    if "://" in str(directory):
        return
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
