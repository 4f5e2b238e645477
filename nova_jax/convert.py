"""Converts a model between the released layout (PyTorch, diffusers) and this project's.

    python -m nova_jax.convert BAAI/nova-d48w1024-osp480 models/osp480    released to native
    python -m nova_jax.convert models/osp480 released/osp480              native to released
    python -m nova_jax.convert runs/mine released/mine --weights=raw      training run to released

What IN is decides the direction. OUT must not exist.
"""

from __future__ import annotations

from absl import flags

from nova_jax import cli
from nova_jax.checkpoints.conversion import native_to_released, new_directory, released_to_native
from nova_jax.checkpoints.open import open_checkpoint

WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "raw"], "Of a training run: averaged or raw parameters."
)
STEP = flags.DEFINE_string(
    "step", "latest", 'Of a training run: "latest", "best", or the step of a checkpoint.'
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "float16", "bfloat16"],
    "To the released layout: type of the tensors written; by default what they were released in, "
    "or float32.",
)
PARTS = flags.DEFINE_string(
    "parts",
    None,
    "To the released layout: released model to take autoencoder, text encoder and tokenizer from; "
    "by default the one that the model was trained with.",
)


def main(arguments: list[str]) -> None:
    """Converts IN to OUT."""
    source, out = arguments[0], new_directory(arguments[1])
    options = {"weights": WEIGHTS.value, "step": STEP.value}
    checkpoint = open_checkpoint(source, **options)
    if checkpoint.kind == "released":
        released_to_native(checkpoint.directory, out)
    else:
        native_to_released(source, out, dtype=DTYPE.value, parts=PARTS.value, **options)
    print(out)


if __name__ == "__main__":
    cli.run(main, arguments="IN OUT")
