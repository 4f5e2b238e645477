"""Turns videos, pictures and captions into training data.

    python -m nova_jax.prepare --input=DIR_OR_MANIFEST --checkpoint=RELEASED_DIR --out=DIR
    python -m nova_jax.prepare --inspect=DIR

The same command goes on with a run that was stopped. Several processes share the work with
``--shard=i/n``, or by themselves where a launcher says how many they are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import flags, logging
from ml_collections import config_flags

from nova_jax import cli
from nova_jax.checkpoints.diffusers import load_autoencoder, load_text_encoder, resolve
from nova_jax.data.clips import read_clips
from nova_jax.data.imports import CODEWITHGPU, TFDS, Read, open_codewithgpu, open_tfds
from nova_jax.data.inspection import write_page
from nova_jax.data.manifest import Item, Skip, read_manifest
from nova_jax.data.preparation import REPORT, Encoders, PrepareConfig, Report, prepare
from nova_jax.data.records import probe_codec, read_metadata, same_probe
from nova_jax.distributed.multihost import stop_requests
from nova_jax.errors import NovaError
from nova_jax.training.config import from_dict

INPUT = flags.DEFINE_string(
    "input",
    None,
    "Directory of videos and pictures with .txt captions; .jsonl, .csv or .parquet; "
    "codewithgpu:DIR; tfds://NAME.",
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Released model whose autoencoder and text encoder are used."
)
OUT = flags.DEFINE_string("out", None, "Where the records go; a stopped run goes on there.")
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, such as configs/prepare_t2v.py; --config.key=value changes it."
)
RAW = flags.DEFINE_bool("raw", False, "Keep pixels and captions; needs no --checkpoint.")
SHARD = flags.DEFINE_string("shard", None, "i/n: do every n-th row, from i; 0/1 does all.")
INSPECT = flags.DEFINE_string("inspect", None, "Finished directory to write a page about.")
STRICT = flags.DEFINE_bool("strict", False, "Stop at the first input that cannot be used.")

# What launchers call a process's number, and how many there are.
_LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    ("RANK", "WORLD_SIZE"),
)
_SHOWN = 5  # skipped inputs that are printed; the report has all


def main() -> None:
    """Runs the command."""
    if INSPECT.value:
        inspect(Path(INSPECT.value), CHECKPOINT.value)
        return
    for flag in (INPUT, OUT):
        if not flag.value:
            raise NovaError(f"--{flag.name} is missing; see --help")
    if not (CHECKPOINT.value or RAW.value):
        raise NovaError("--checkpoint is missing; give a released model, or --raw to keep pixels")
    values = {} if CONFIG.value is None else CONFIG.value.to_dict()
    config = from_dict(PrepareConfig, values, "config")
    shard = parse_shard(SHARD.value) if SHARD.value else shard_of_launcher(os.environ)
    logging.set_verbosity(logging.ERROR)
    items, skips, read = open_input(INPUT.value, config)
    encoders = None if RAW.value else load_encoders(CHECKPOINT.value, config)
    with stop_requests() as stopping:
        report = prepare(
            items,
            skips,
            Path(OUT.value),
            config,
            encoders,
            read=read,
            shard=shard,
            strict=STRICT.value,
            stopping=stopping,
        )
    print_report(report, Path(OUT.value))
    if not report.left and not (report.metadata and report.metadata.shards):
        raise NovaError(f"nothing could be used; {Path(OUT.value) / REPORT} lists the reasons")


def inspect(directory: Path, checkpoint: str | None) -> None:
    """Writes the page about a finished directory, with clips if the autoencoder is at hand."""
    encoding = read_metadata(directory).encoding
    codec = None
    if encoding is not None:
        try:
            codec = load_autoencoder(resolve(checkpoint or encoding.source) / "vae")
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


def load_encoders(source: str, config: PrepareConfig) -> Encoders:
    """The frozen parts of a released model."""
    directory = resolve(source)
    dtype: Any = jnp.dtype(config.dtype)
    encoders = Encoders(
        load_autoencoder(directory / "vae", dtype=dtype),
        load_text_encoder(directory, dtype=dtype),
        source=source,
        text_length=config.text_length,
    )
    for size in config.clips.sizes:
        for frames in config.clips.frames:
            encoders.latent(frames, size)
    return encoders


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        NovaError: it is none.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise NovaError(f"--shard={text} is not i/n with i from 0 to n - 1")
    return int(index), int(count)


def shard_of_launcher(environment: Any) -> tuple[int, int]:
    """This process's number and how many there are, as far as a launcher says; (0, 1) without."""
    for index, count in _LAUNCHERS:
        if index in environment and count in environment:
            return parse_shard(f"{environment[index]}/{environment[count]}")
    return 0, 1


def print_report(report: Report, out: Path) -> None:
    """Says what was done, what was skipped, and which side waited."""
    rate = report.clips / report.seconds if report.seconds else 0.0
    print(
        f"{report.rows} files gave {report.clips} clips in {report.seconds:.1f} s, "
        f"{rate:.2f} clips/s"
    )
    if report.clips:
        print(
            f"Waited {report.waited_for_clips:.1f} s for decoding and "
            f"{report.waited_for_encoders:.1f} s for the encoders; the limit: {report.bottleneck}"
        )
    if report.skipped:
        print(f"Skipped {len(report.skipped)}:")
        for where, why in report.skipped[:_SHOWN]:
            print(f"  {where}: {why}")
        if len(report.skipped) > _SHOWN:
            print(f"  … all in {out / REPORT} at the end")
    if report.left:
        print(f"{report.left} files are left; the same command goes on from here.")
    elif report.metadata and report.metadata.shards:
        counts = {bucket.name: 0 for bucket in report.metadata.buckets}
        for shard in report.metadata.shards:
            counts[report.metadata.buckets[shard.bucket].name] += shard.records
        print(f"{out} is complete:")
        print(*(f"  {name:16} {count}" for name, count in counts.items()), sep="\n")


if __name__ == "__main__":
    cli.run(main)
