"""Training runs: resumable checkpoints in a work directory, by Orbax.

    config.json        the resolved config of the run, a superset of a model's
    checkpoints/STEP/  params, frozen, ema, optimizer, data (position), checksums.json

A run whose newest checkpoint is damaged, or holds a number that is not finite, goes on from the one
before; the damaged one stays, as checkpoints/STEP.damaged.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol, Self

import jax
import orbax.checkpoint as ocp
from etils.epath import Path
from flax.traverse_util import flatten_dict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from nova_jax.checkpoints.finite import check_finite, in_words, not_finite
from nova_jax.checkpoints.integrity import (
    CHECKPOINTS,
    CONFIG,
    FORMAT,
    PARAMS,
    absolute,
    damage,
    read_config,
    verify_checksums,
    write_checksums,
    write_config,
    writing,
)
from nova_jax.distributed import multihost
from nova_jax.errors import NovaError

logger = logging.getLogger(__name__)

#: Which of a run's checkpoints: "latest", "best" by evaluation loss, or that of a number of steps.
Step = str | int


class Position(Protocol):
    """What has a position that is saved with a run, such as an iterator of Grain."""

    def get_state(self) -> dict[str, Any]: ...  # noqa: D102
    def set_state(self, state: dict[str, Any]) -> None: ...  # noqa: D102


class RunCheckpoints:
    """The resumable checkpoints of one training run.

    Writing is asynchronous: `save` returns when the arrays are copied, and training goes on.

    Args:
        workdir: of the run; checkpoints go to ``workdir/checkpoints``.
        keep_latest: newest checkpoints to keep.
        keep_best: checkpoints to keep for their low validation loss, besides the newest.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, keep_latest: int, keep_best: int):
        self.directory = absolute(workdir) / CHECKPOINTS
        latest = preservation_policy.LatestN(keep_latest)
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: -metrics["loss"],
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: -metrics["loss"],
            preservation_policy=preservation_policy.AnyPreservationPolicy([latest, best]),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            cleanup_tmp_directories=True,
        )
        multihost.on_first(self._check_losses)
        try:
            with writing(self.directory):
                self._manager = ocp.CheckpointManager(self.directory, options=options)
        except (ValueError, TypeError, LookupError) as error:  # of Orbax's own files
            raise NovaError(
                f"a _CHECKPOINT_METADATA in {self.directory} is damaged ({error}); restore it from "
                "a copy"
            ) from error

    def save(
        self, step: int, trees: Mapping[str, Any], data: Position, loss: float | None = None
    ) -> None:
        """Starts writing the checkpoint of `step`; nothing happens if it exists.

        Args:
            step: steps done.
            trees: pytrees of arrays by name.
            data: its position is saved.
            loss: validation loss, by which the best checkpoint is known; one that is not finite
                counts as none.

        Raises:
            NovaError: an array is not finite, and nothing is written; or there is no space.
        """
        if step in self._manager.all_steps():
            return
        check_finite(
            trees,
            f"{self.directory}: step {step} was not saved",
            "lower optimizer.learning_rate; the same command goes on from the checkpoint before",
        )
        validated = loss is not None and math.isfinite(loss)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with writing(self.directory, trees):
            self._manager.save(
                step,
                args=ocp.args.Composite(data=ocp.args.JsonSave(data.get_state()), **items),
                metrics={"loss": loss} if validated else None,
            )

    def restore(self, step: int, trees: Mapping[str, Any], data: Position) -> dict[str, Any]:
        """Reads a checkpoint back, bit for bit, and puts `data` at its position.

        `trees` and `data` are those of `restore_newest`.

        Raises:
            NovaError: if the checkpoint is damaged or not finite.
        """
        self.wait()  # it may be the one that is still being written
        source = self.directory / str(step)
        verify_checksums(source)
        restored = self._read(source, trees, data)
        check_finite(restored, f"checkpoint {source}", "go on from an earlier one")
        return restored

    def restore_newest(
        self, trees: Mapping[str, Any], data: Position
    ) -> tuple[int, dict[str, Any]] | None:
        """Reads the newest checkpoint back that is whole, and puts `data` at its position.

        First waits for the one that is still being written. Then, from the newest down, a
        checkpoint whose files are not what was written, or which is not finite, is named in a
        warning and renamed to ``STEP.damaged``, where nothing looks at it again, and the one before
        it is tried. What is whole and does not fit `trees` is an error: that is no damage.

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
        refused: dict[int, str] = {}
        while True:
            newest = multihost.on_first(partial(self._newest_whole, refused))
            self._manager.reload()
            if newest is None:
                return None
            source = self.directory / str(newest)
            restored = self._read(source, trees, data)
            if not (found := not_finite(restored)):
                return newest, restored
            refused[newest] = f"checkpoint {source}: {in_words(found)}"
            del restored  # there is not always memory for two

    def _check_losses(self) -> None:
        """Sets checkpoints aside whose validation loss Orbax would fail to read at its start."""
        for checkpoint in complete_checkpoints(self.directory.parent):
            try:
                _validation_loss(checkpoint)
            except NovaError as error:
                _set_aside(checkpoint, error)

    def _newest_whole(self, refused: Mapping[int, str]) -> int | None:
        """Step of the newest checkpoint that is whole, with those after it set aside.

        `refused` says what is wrong with numbers of some that were read.
        """
        checkpoints = complete_checkpoints(self.directory.parent)
        for checkpoint in reversed(checkpoints):
            try:
                if reason := refused.get(int(checkpoint.name)):
                    raise NovaError(reason)
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

    def _read(self, source: Path, trees: Mapping[str, Any], data: Position) -> dict[str, Any]:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(trees))
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        with damage(source):
            restored = self._manager.restore(
                int(source.name), args=ocp.args.Composite(data=ocp.args.JsonRestore(), **items)
            )
        data.set_state(restored["data"])
        return {name: restored[name] for name in trees}

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            NovaError: if a write failed for want of space.
        """
        with writing(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases Orbax's threads."""
        with writing(self.directory):
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
    return bool(complete_checkpoints(Path(workdir)))


def claim_workdir(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any],
    free: tuple[str, ...] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Makes `workdir` the place of a run, or finds that it already is; writes config.json.

    Args:
        workdir: created if it is missing.
        config: the resolved config, plain values.
        free: dotted keys, or sections of them, that may differ when a run is taken up again.
        defaults: by dotted key, what a run was made with that does not have the key yet.

    Raises:
        NovaError: if it holds a run of another config; nothing is changed then.
    """
    workdir = absolute(workdir)
    config = json.loads(json.dumps(FORMAT | dict(config)))
    if (workdir / PARAMS).is_dir():
        raise NovaError(f"{workdir} is a model directory, not a run's; choose another --workdir")
    if (workdir / CONFIG).exists():
        old, new = (flatten_dict(c, sep=".") for c in (read_config(workdir), config))
        defaults, missing = defaults or {}, object()
        old = {key: defaults[key] for key in new if key in defaults} | old
        different = [
            f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)"
            for key in sorted(old.keys() | new.keys())
            if old.get(key, missing) != new.get(key, missing)
            and not any(key == name or key.startswith(f"{name}.") for name in free)
        ]
        if different:
            if len(different) > 5:
                different[5:] = [f"{len(different) - 5} more"]
            raise NovaError(
                f"{workdir} is the work directory of another config: {', '.join(different)}; "
                "choose another --workdir or undo the changes"
            )
    elif (workdir / CHECKPOINTS).exists():
        raise NovaError(f"{workdir} has checkpoints but no {CONFIG}; choose another --workdir")
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        write_config(workdir, config)


def complete_checkpoints(workdir: Path) -> list[Path]:
    """Directories of a run's checkpoints, by step, oldest first, without unfinished ones."""
    directory = workdir / CHECKPOINTS
    found = directory.iterdir() if directory.is_dir() else ()
    # Unfinished ones have another name, or a mark in gs://.
    complete = (p for p in found if p.name.isdigit() and not ocp.path.step.is_tmp_checkpoint(p))
    return sorted(complete, key=lambda path: int(path.name))


def _set_aside(checkpoint: Path, damage: NovaError) -> None:
    """Renames a damaged checkpoint so that nobody takes it for one; says so in a warning."""
    place = checkpoint.with_name(f"{checkpoint.name}.damaged")
    while place.exists():
        place = place.with_name(f"{place.name}+")
    checkpoint.rename(place)
    logger.warning("%s; set aside as %s, going on from the one before", damage, place)


def choose_checkpoint(workdir: Path, step: Step) -> Path:
    """The directory of one of a run's checkpoints.

    Raises:
        NovaError: there is no such checkpoint.
    """
    steps = complete_checkpoints(workdir)
    if not steps:
        raise NovaError(f"{workdir} has no checkpoint yet; let the training run write one")
    if step == "latest":
        return steps[-1]
    if step == "best":
        losses = [(_validation_loss(path), path) for path in steps]
        validated = [(loss, path) for loss, path in losses if loss is not None]
        if not validated:
            raise NovaError(f"{workdir} has no validated checkpoint; use the latest")
        return min(validated)[1]
    if (chosen := workdir / CHECKPOINTS / str(step)) not in steps:
        kept = ", ".join(path.name for path in steps)
        raise NovaError(f"{workdir} has no checkpoint of step {step}; there are {kept}")
    return chosen


def _validation_loss(checkpoint: Path) -> float | None:
    file = checkpoint / "metrics" / "metrics"
    with damage(file):
        loss = json.loads(file.read_text())["loss"] if file.exists() else math.nan
        return loss if math.isfinite(loss) else None
