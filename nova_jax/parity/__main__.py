"""Compares this implementation with recorded numbers of the PyTorch release.

    python -m nova_jax.parity DIR [DIR ...] [--json=FILE]
    python -m nova_jax.parity --live DIR

Each DIR holds a model in the released layout, ``golden.safetensors`` with inputs, randomness and
results of recorded calls, ``case.json`` with the arguments of those that have any, and
``tolerance.json``. The model is one of

    transformer/ and scheduler/    generation and training steps
    an autoencoder                 pixels to moments and latents, latents to pixels
    a Phi text encoder             token ids to last hidden states
    all of them, model_index.json  prompts to pixels

With --live, DIR is any model in the released layout, and what is compared with is computed on the
spot by the PyTorch package, where that is installed.

With --dtype, the model computes in that type instead of float32; its errors against the recorded
float32 numbers are then shown and not judged. --worst shows one line for each kind of array.

Every recorded array that is not an input is compared; the command fails (exit code 1) if one is
past its tolerance or has nothing to be compared with.
"""

import sys
from collections.abc import Sequence

from absl import flags

from nova_jax import cli, media
from nova_jax.files import new_output
from nova_jax.parity.compare import format_table, json_table, worst
from nova_jax.parity.replay import check

_JSON = flags.DEFINE_string("json", None, "Also write the table to this new file.")
_LIVE = flags.DEFINE_bool("live", False, "Compare with the PyTorch package, run on the spot.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "Type the model computes in."
)
_WORST = flags.DEFINE_bool("worst", False, "Of arrays that differ in numbers alone, the worst.")


def main(directories: Sequence[str]) -> None:
    """Compares the folders, prints the table and exits with 1 if anything is amiss."""
    file = new_output(_JSON.value) if _JSON.value is not None else None
    rows, missing = check(
        directories,
        on_folder=lambda name: print(f"running {name}", flush=True),
        live=_LIVE.value,
        dtype=_DTYPE.value,
    )
    print(format_table(rows, missing, worst(rows) if _WORST.value else None))
    if file is not None:
        media.save(file, json_table(rows, missing).encode())
    if missing or any(row.verdict != "ok" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, arguments="DIR ...")
