"""Where a run stands, from what it has written: its config, metrics, checkpoints and lock."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections import Counter, deque
from collections.abc import Mapping

import numpy as np
from etils.epath import Path

from nova_jax.checkpoints.integrity import CONFIG, read_config
from nova_jax.checkpoints.run import complete_checkpoints
from nova_jax.distributed.lock import holder
from nova_jax.errors import NovaError
from nova_jax.training.metrics import METRICS, whole_lines
from nova_jax.training.step import not_finite

#: Losses are means over so many steps.
RECENT = 100


@dataclasses.dataclass(frozen=True)
class Status:
    """Where a run stands.

    Attributes:
        step, steps: done and to be done.
        running: which process is at it, since when, and its last sign of life; empty if none is.
            One that was killed leaves it behind.
        losses: means over the last `RECENT` steps, by group: "train_video", "train_image".
        validation: the step and the loss of the last validation; None before the first.
        speed: what was last measured, such as "seconds_per_step".
        checkpoints: their steps, oldest first.
        skipped: how many steps were left out, by what of them was not finite.
    """

    step: int
    steps: int
    running: str
    losses: Mapping[str, float]
    validation: tuple[int, float] | None
    speed: Mapping[str, float]
    checkpoints: tuple[int, ...]
    skipped: Mapping[str, int]

    def text(self) -> str:
        """A line each."""
        lines = [f"step {self.step:,} of {self.steps:,}, {100 * self.step / self.steps:.1f} %"]
        if self.step == self.steps:
            lines.append("finished")
        else:
            lines.append(f"running: {self.running}" if self.running else "not running")
        if seconds := self.speed.get("seconds_per_step"):
            left = datetime.timedelta(seconds=round((self.steps - self.step) * seconds))
            told = [f"{name} {value:.4g}" for name, value in self.speed.items()]
            lines.append(f"time left {left}; {', '.join(told)}")
        lines += [f"{group} loss {loss:.4f}" for group, loss in self.losses.items()]
        if self.validation is not None:
            lines.append("validation loss {1:.4f} at step {0:,}".format(*self.validation))
        kept = ", ".join(f"{step:,}" for step in self.checkpoints)
        lines.append(f"checkpoints: {kept or 'none yet'}")
        for what, count in self.skipped.items():
            lines.append(f"{count} steps skipped, their {what} not finite")
        return "\n".join(lines)


def read_status(workdir: Path) -> Status:
    """Reads where the run in a directory stands; changes nothing there.

    Raises:
        NovaError: there is no run in it, or its config is damaged.
    """
    config = read_config(workdir) if (workdir / CONFIG).exists() else {}
    if (steps := config.get("steps")) is None:  # a model directory has a config, too
        raise NovaError(f"{workdir} holds no run; give the --workdir of one")
    step, validation = 0, None
    speed: dict[str, float] = {}
    losses: dict[str, deque[float]] = {}
    skipped: Counter[str] = Counter()
    for line in map(json.loads, whole_lines(workdir / METRICS)):
        groups = _by_group(line)
        for group, values in groups.items():
            if group.startswith("train_"):
                step = max(step, line["step"])
                losses.setdefault(group, deque(maxlen=RECENT)).append(values["loss"])
                if reason := not_finite(values):
                    skipped[reason] += 1
        speed = groups.get("speed", speed)
        if "validation" in groups:
            validation = (line["step"], groups["validation"]["loss"])
    return Status(
        step=step,
        steps=steps,
        running=holder(workdir / "lock"),
        losses={group: float(np.nanmean(recent)) for group, recent in losses.items()},
        validation=validation,
        speed=speed,
        checkpoints=tuple(int(path.name) for path in complete_checkpoints(workdir)),
        skipped=skipped,
    )


def _by_group(line: Mapping[str, float | None]) -> dict[str, dict[str, float]]:
    """The numbers of a line; what was not finite is not a number again."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in line.items():
        group, _, rest = name.partition("/")
        if rest:
            groups.setdefault(group, {})[rest] = np.nan if value is None else value
    return groups
