"""Where the numbers and pictures of a run go: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import IO, Any

import jax
import numpy as np
from etils.epath import Path
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from nova_jax.distributed import multihost
from nova_jax.errors import NovaError
from nova_jax.files import write_whole
from nova_jax.media import encode_gif, encode_png
from nova_jax.training.step import Batch, Metrics, not_finite

#: Of a work directory: a line for each set of scalars.
METRICS = "metrics.jsonl"


class MetricWriter:
    """Writes scalars, pictures and videos of a run.

    ``metrics.jsonl`` has a line for each set of scalars, with their step; it is always written.
    A run that is taken up again at a step drops what was written of later ones. Of several
    processes only the first writes; the others may call everything, to no effect.

    Args:
        workdir: of the run.
        config: plain values, for Weights & Biases.
        first_step: what was recorded of steps after this one is dropped.
        tensorboard: also write event files to ``workdir/tensorboard``.
        wandb_project: also log to this project.

    Raises:
        NovaError: if Weights & Biases is asked for and not installed.
    """

    def __init__(
        self,
        workdir: Path,
        config: Mapping[str, Any],
        *,
        first_step: int = 0,
        tensorboard: bool = True,
        wandb_project: str | None = None,
    ):
        self._lines: IO[str] | None = None
        self._run = self._board = None
        if not multihost.is_first():
            return
        if wandb_project is not None:
            self._run = _start_wandb(wandb_project, workdir, config)
        self._workdir, self._tensorboard = workdir, tensorboard
        self._open(first_step)

    def _open(self, first_step: int) -> None:
        file = self._workdir / METRICS
        kept = [line for line in whole_lines(file) if json.loads(line)["step"] <= first_step]
        if "://" in str(file):
            self._lines = _Rewritten(file, kept)
        else:
            write_whole(file, "".join(kept))
            self._lines = file.open("a")
        if self._tensorboard:
            self._board = SummaryWriter(
                str(self._workdir / "tensorboard"), purge_step=first_step + 1, write_to_disk=True
            )

    def go_back(self, step: int) -> None:
        """Drops what was recorded of steps after this one; Weights & Biases keeps it."""
        if self._lines is not None:
            self._close_files()
            self._open(step)

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Records numbers of one step, if there are any, as ``group/name``."""
        if self._lines is None or not values:
            return
        named = {f"{group}/{name}": float(value) for name, value in values.items()}
        # JSON has no word for what is not finite.
        line = {name: value if math.isfinite(value) else None for name, value in named.items()}
        self._lines.write(json.dumps({"step": step} | line) + "\n")
        if self._board is not None:
            for name, value in named.items():
                self._board.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log(named, step=step)

    def video(self, step: int, name: str, frames: UInt8[np.ndarray, "f h w 3"], fps: float) -> None:
        """Records a clip, as a moving picture; one frame is a still one."""
        if self._board is self._run is None:
            return
        still = len(frames) == 1
        encoded = encode_png(frames[0]) if still else encode_gif(frames, fps)
        if self._board is not None:
            height, width = frames.shape[1:3]
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=encoded
            )
            summary = Summary(value=[Summary.Value(tag=name, image=image)])
            self._board.file_writer.add_summary(summary, step)
        if self._run is not None:
            import wandb

            media = (
                wandb.Image(Image.fromarray(frames[0]))
                if still
                else wandb.Video(io.BytesIO(encoded), format="gif")
            )
            self._run.log({name: media}, step=step)

    def flush(self) -> None:
        """Brings everything to disk."""
        if self._lines is not None:
            self._lines.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes files and connections."""
        self._close_files()
        if self._run is not None:
            self._run.finish()

    def _close_files(self) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._board is not None:
            self._board.close()


class StepLog:
    """Metrics from when steps are queued until they are written, and a progress bar.

    `done` steps of the run's `steps` come before the first. What is counted in `skipped` is said at
    `nova_jax.training.step.not_finite`.
    """

    def __init__(self, writer: MetricWriter, done: int, steps: int):
        self.skipped: Counter[str] = Counter()
        self._writer = writer
        self._pending: list[tuple[int, tuple[int, ...], Metrics]] = []
        self._bar = tqdm(
            desc="compiling the training step",
            total=steps,
            initial=min(done, steps),
            unit="step",
            dynamic_ncols=True,
            disable=not multihost.is_first(),
        )

    def add(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Takes note of a step that has been queued; does not wait for it."""
        self._pending.append((step, batch["latents"].shape[1:4], metrics))

    def write(self) -> None:
        """Waits for the steps that have been queued and writes down what they gave."""
        finished = self._take()
        for step, shape, metrics in finished:
            kind = "train_video" if shape[0] > 1 else "train_image"
            of_bucket = {f"loss_{'x'.join(map(str, shape))}": metrics["loss"]}
            self._writer.scalars(step, kind, metrics | of_bucket)
        self._bar.set_description(refresh=False)
        self._bar.update(len(finished))
        self._bar.set_postfix(loss=f"{np.mean([metrics['loss'] for *_, metrics in finished]):.4f}")

    def go_back(self, step: int) -> None:
        """Forgets what steps after this one gave, but for how many were skipped."""
        self._take()
        self._writer.go_back(step)
        self._bar.n = step

    def close(self) -> None:
        """Leaves the progress bar as it is."""
        self._bar.close()

    def _take(self) -> list[tuple[int, tuple[int, ...], Any]]:
        taken, self._pending = jax.device_get(self._pending), []
        self.skipped.update(filter(None, (not_finite(metrics) for *_, metrics in taken)))
        return taken


class _Rewritten(io.StringIO):
    """A file on an object store, which cannot append: every flush writes it anew."""

    def __init__(self, file: Path, lines: Iterable[str]):
        super().__init__()
        self._file = file
        self.writelines(lines)

    def flush(self) -> None:
        if not self.closed:
            self._file.write_text(self.getvalue())

    def close(self) -> None:
        self.flush()
        super().close()


def whole_lines(file: Path) -> list[str]:
    """Whole lines; a run that was killed may have left half a line."""
    with contextlib.suppress(FileNotFoundError):
        return [line for line in file.read_text().splitlines(True) if line.endswith("}\n")]
    return []


def _start_wandb(project: str, workdir: Path, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise NovaError(
            "logging.wandb_project is set and wandb is not installed; "
            "pip install 'nova_jax[wandb]', or leave wandb_project out"
        ) from error
    place = None if "://" in str(workdir) else str(workdir)
    return wandb.init(
        project=project, dir=place, config=dict(config), name=workdir.name, resume="allow"
    )
