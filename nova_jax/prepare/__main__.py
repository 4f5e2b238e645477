"""Turns videos, pictures and captions into training data.

    python -m nova_jax.prepare --input=DIR_OR_MANIFEST --checkpoint=RELEASED_DIR --out=DIR
    python -m nova_jax.prepare --inspect=DIR

The same command goes on with a run that was stopped. Several processes share the work with
``--shard=i/n``, or by themselves where a launcher says how many they are.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from absl import flags, logging

from nova_jax import cli
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.config import from_dict
from nova_jax.data.fingerprints import probe_codec, same_probe
from nova_jax.data.records import read_metadata
from nova_jax.distributed.lock import claim_share
from nova_jax.distributed.multihost import launched_as, parse_shard, stop_requests
from nova_jax.errors import NovaError
from nova_jax.files import output_folder
from nova_jax.prepare.clips import read_clips
from nova_jax.prepare.encoders import load_encoders
from nova_jax.prepare.foreign import CODEWITHGPU, TFDS, Read, open_codewithgpu, open_tfds
from nova_jax.prepare.inspection import write_page
from nova_jax.prepare.manifest import Item, Skip, read_manifest
from nova_jax.prepare.parts import REPORT
from nova_jax.prepare.preparation import PrepareConfig, prepare

INPUT = flags.DEFINE_string(
    "input",
    None,
    "Directory of videos and pictures with .txt captions; .jsonl, .csv or .parquet; "
    "codewithgpu:DIR; tfds://NAME.",
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Model whose autoencoder and text encoder are used: directory of a released model or its id on "
    "the Hugging Face hub, model directory, or --workdir of a training run.",
)
OUT = flags.DEFINE_string("out", None, "Where the records go; a stopped run goes on there.")
CONFIG = cli.define_config("Recipe, such as prepare_t2v; --config.key=value changes it.")
RAW = flags.DEFINE_bool("raw", False, "Keep pixels and captions; needs no --checkpoint.")
SHARD = flags.DEFINE_string("shard", None, "i/n: do every n-th row, from i; 0/1 does all.")
INSPECT = flags.DEFINE_string("inspect", None, "Finished directory to write a page about.")
STRICT = flags.DEFINE_bool("strict", False, "Stop at the first input that cannot be used.")


def main() -> None:
    """Runs the command."""
    if INSPECT.value:
        inspect(Path(INSPECT.value), CHECKPOINT.value)
        return
    need_packages()
    for flag in (INPUT, OUT):
        if not flag.value:
            raise NovaError(f"--{flag.name} is missing; see --help")
    if not (CHECKPOINT.value or RAW.value):
        raise NovaError("--checkpoint is missing; give a released model, or --raw to keep pixels")
    out = output_folder(OUT.value)
    check_apart(INPUT.value, out)
    values = {} if CONFIG.value is None else CONFIG.value.to_dict()
    config = from_dict(PrepareConfig, values, "config")
    shard = parse_shard(SHARD.value) if SHARD.value else launched_as(os.environ)
    logging.set_verbosity(logging.ERROR)
    items, skips, read = open_input(INPUT.value, config)
    with claim_share(out, shard):
        encoders = (
            None
            if RAW.value
            else load_encoders(CHECKPOINT.value, text_length=config.text_length, dtype=config.dtype)
        )
        with stop_requests() as stopping:
            report = prepare(
                items,
                skips,
                out,
                config,
                encoders,
                read=read,
                shard=shard,
                strict=STRICT.value,
                stopping=stopping,
            )
    print(*report.lines(out), sep="\n")
    if not report.left and not (report.metadata and report.metadata.shards):
        raise NovaError(f"nothing could be used; {out / REPORT} lists the reasons")


def need_packages() -> None:
    """Says at once what is not installed, before an hour of work.

    Raises:
      NovaError: the extra "prepare" of the package is missing, or a part of it.
    """
    for package in ("av", "pyarrow", "scenedetect"):
        try:
            importlib.import_module(package)  # here: PyAV fails if two threads import it at once
        except ImportError as error:
            raise NovaError(
                f"preparing data needs {package}: pip install 'nova_jax[prepare]'"
            ) from error


def inspect(directory: Path, checkpoint: str | None) -> None:
    """Writes the page about a finished directory, with clips if the autoencoder is at hand."""
    encoding = read_metadata(directory).encoding
    output_folder(directory)
    codec = None
    if encoding is not None:
        try:
            named = checkpoint or encoding.source
            codec = open_checkpoint(named, part="vae").load_autoencoder()
        except NovaError as error:
            if checkpoint:
                raise
            print(f"clips are not shown: {error}")
        if codec is not None and not same_probe(encoding.codec_probe, probe_codec(codec)):
            raise NovaError(
                f"{checkpoint or encoding.source} has another autoencoder than {directory} was "
                "prepared with; give --checkpoint with that one"
            )
    print(write_page(directory, codec))


def check_apart(name: str, out: Path) -> None:
    """Keeps records from among the files they are made of: some would be inputs of the next run.

    Raises:
      NovaError: the output is the directory of the input, in it, or around it. Only where that is a
        manifest's, the output may be in it.
    """
    if name.startswith(TFDS):
        return
    given, out = Path(name.removeprefix(CODEWITHGPU)).resolve(), out.resolve()
    folder = given if os.path.isdir(given) else given.parent
    if out == folder or out in folder.parents or given in out.parents:
        raise NovaError(
            f"--out={out} and the files of --input={name} overlap; choose another --out"
        )


def open_input(name: str, config: PrepareConfig) -> tuple[list[Item], list[Skip], Read]:
    """The rows of an input, what cannot be one, and what makes clips of them."""
    if name.startswith(CODEWITHGPU):
        items, read = open_codewithgpu(Path(name.removeprefix(CODEWITHGPU)))
        return items, [], read
    if name.startswith(TFDS):
        items, read = open_tfds(name.removeprefix(TFDS), config.tfds)
        return items, [], read
    items, skips = read_manifest(Path(name))
    return items, skips, read_clips


if __name__ == "__main__":
    cli.run(main)
