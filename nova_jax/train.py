"""Trains a model: ``python -m nova_jax.train --config=FILE --workdir=DIR [--config.key=value]``.

The same command goes on with a run that was stopped. ``--preview`` trains nothing and writes
pictures of what training would see.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from nova_jax import cli
from nova_jax.data.digits import DigitsSource
from nova_jax.data.pipeline import make_iterator
from nova_jax.data.preview import write_preview
from nova_jax.errors import NovaError
from nova_jax.training.config import TrainConfig
from nova_jax.training.loop import build_parts, train

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, such as configs/digits_t2v.py; --config.key=value changes it."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; a stopped run goes on there.")
PREVIEW = flags.DEFINE_bool("preview", False, "Only write preview.png and .mp4 to --workdir.")


def main() -> None:
    """Runs the command."""
    if CONFIG.value is None:
        raise NovaError("--config is missing; give a recipe, such as configs/digits_t2v.py")
    if not WORKDIR.value:
        raise NovaError("--workdir is missing; name a directory for the results")
    logging.set_verbosity(logging.ERROR)  # Orbax explains itself at length
    config, workdir = TrainConfig.from_dict(CONFIG.value.to_dict()), Path(WORKDIR.value)
    if PREVIEW.value:
        preview(config, workdir)
        return

    result = train(config, workdir)
    print(f"{result.step} of {config.steps} steps done, {result.seconds:.0f} s, in {workdir}")
    if not result.finished:
        print("Stopped; the same command goes on from here.")
        return
    print(f"Parameters: {result.parameters:,}")
    print(*(f"  {name:16} {value:.4f}" for name, value in result.evaluation.items()), sep="\n")
    print(f"Next: python -m nova_jax.generate --checkpoint={workdir / 'model'} --prompt=...")


def preview(config: TrainConfig, out_dir: Path) -> None:
    """Writes a contact sheet and a video of the first training batches."""
    parts = build_parts(config)
    encode = parts.encode(keep_captions=True)
    batches = make_iterator(DigitsSource(config.dataset), config.data, encode)
    print(*write_preview(batches, parts.codec, out_dir), sep="\n")


if __name__ == "__main__":
    cli.run(main)
