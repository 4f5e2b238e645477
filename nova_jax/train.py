"""Trains a model: ``python -m nova_jax.train --config=FILE --workdir=DIR [--config.key=value]``.

The same command goes on with a run that was stopped. ``--preview`` trains nothing and writes
pictures of what training would see; ``--status --workdir=DIR`` says where a run stands. On many
hosts every one runs the same command, with ``--coordinator``, ``--num_processes`` and
``--process_id`` where they cannot find each other (see docs/clusters.md).
"""

from __future__ import annotations

from pathlib import Path

from absl import flags, logging
from etils import epath

from nova_jax import cli
from nova_jax.config import Count, Natural
from nova_jax.data.preview import write_preview
from nova_jax.distributed import multihost
from nova_jax.errors import NovaError
from nova_jax.files import output_folder
from nova_jax.training.config import TrainConfig
from nova_jax.training.loop import build_parts, train
from nova_jax.training.status import read_status

CONFIG = cli.define_config("Recipe, such as digits_t2v; --config.key=value changes it.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; a stopped run goes on there.")
PREVIEW = flags.DEFINE_bool("preview", False, "Only write preview.png and .mp4 to --workdir.")
STATUS = flags.DEFINE_bool("status", False, "Only print where the run in --workdir stands.")
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Of a run of several processes: HOST:PORT of process 0, or auto where JAX can find it.",
)
NUM_PROCESSES = cli.define("num_processes", Count, None, "How many processes there are.")
PROCESS_ID = cli.define("process_id", Natural, None, "Which this is, from 0.")
COORDINATOR_TIMEOUT = cli.define(
    "coordinator_timeout", Count, 300, "Seconds until all processes must have come together."
)
LOST_AFTER = cli.define(
    "lost_after", Count, 100, "Seconds without a sign of life after which a process counts as lost."
)


def main() -> None:
    """Runs the command."""
    if not WORKDIR.value:
        raise NovaError("--workdir is missing; name a directory for the results")
    if STATUS.value:
        print(read_status(epath.Path(WORKDIR.value)).text())
        return
    if CONFIG.value is None:
        raise NovaError("--config is missing; give a recipe, such as digits_t2v")
    logging.set_verbosity(logging.FATAL)  # Orbax explains itself at length, and raises its errors
    config, workdir = TrainConfig.from_dict(CONFIG.value.to_dict()), epath.Path(WORKDIR.value)
    if PREVIEW.value:
        preview(config, output_folder(WORKDIR.value))
        return
    if "://" not in WORKDIR.value:  # a bucket says with the first file whether it takes any
        output_folder(WORKDIR.value)

    multihost.join(
        COORDINATOR.value,
        NUM_PROCESSES.value,
        PROCESS_ID.value,
        timeout=COORDINATOR_TIMEOUT.value,
        lost_after=LOST_AFTER.value,
    )
    result = train(config, workdir)
    if not multihost.is_first():
        return
    print(f"{result.step} of {config.steps} steps done, {result.seconds:.0f} s, in {workdir}")
    for name, value in result.speed.items():
        print(f"  {name:18} {value:.4g}")
    for what, count in result.skipped.items():
        print(f"{count} steps were skipped, their {what} not finite")
    if not result.finished:
        print("Stopped; the same command goes on from here.")
        return
    print(f"Parameters: {result.parameters:,}")
    print(*(f"  {name:18} {value:.4f}" for name, value in result.validation.items()), sep="\n")
    if config.codec is None:
        print(f"Next: python -m nova_jax.convert {workdir} OUT --parts=RELEASED_MODEL")
    else:
        print(f"Next: python -m nova_jax.generate --checkpoint={workdir / 'model'} --prompt=...")


def preview(config: TrainConfig, out_dir: Path) -> None:
    """Writes a contact sheet and a video of the first training batches."""
    parts = build_parts(config, keep_captions=True)
    if parts.codec is None:
        raise NovaError("config.codec is missing; a preview needs it to turn latents into pixels")
    print(*write_preview(parts.dataset.batches(config.data), parts.codec, out_dir), sep="\n")


if __name__ == "__main__":
    cli.run(main)
