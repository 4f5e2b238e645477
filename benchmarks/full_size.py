"""Writes a released model at its full size with random weights; converts, loads and runs it.

    python benchmarks/full_size.py --model=osp480 --directory=DIR [--stages=write,prepare]

The weights are random; names, shapes, types and files are those of the release, Phi-2 and the
autoencoder included. Every stage runs in a process of its own, which tells its time and its peak
memory. DIR takes 6.6 GB in float16, conversion as much as its transformer again.
"""

import concurrent.futures
import json
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from releases import PHI_2, RELEASES, configs

from nova_jax import media
from nova_jax.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from nova_jax.checkpoints import diffusers, rules
from nova_jax.checkpoints.conversion import released_to_native
from nova_jax.checkpoints.tensors import write_safetensors
from nova_jax.config import from_dict
from nova_jax.models import Conditions, Nova
from nova_jax.pipeline import NovaPipeline
from nova_jax.prepare.clips import ClipConfig
from nova_jax.prepare.encoders import load_encoders
from nova_jax.prepare.manifest import read_manifest
from nova_jax.prepare.preparation import PrepareConfig
from nova_jax.prepare.preparation import prepare as prepare_files
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.video import generate
from nova_jax.text.phi import Phi, PhiConfig

# A small model in the released layout, for its tokenizer and the files that say what is where.
SMALL = Path(__file__).parent.parent / "tests" / "golden" / "pipeline_t2v"

MODEL = flags.DEFINE_enum("model", "osp480", list(RELEASES), "Which.")
DIRECTORY = flags.DEFINE_string("directory", None, "Where to write it.", required=True)
STAGES = flags.DEFINE_list("stages", ["write", "convert", "load", "ar_step"], "Also: prepare.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16", "float16"], "To load in.")


def write(name: str, directory: Path) -> str:
    """Writes the model in float16; says how many numbers it has."""
    shutil.copytree(
        SMALL, directory, ignore=shutil.ignore_patterns("*.safetensors", "case.json", "*.md")
    )
    parts = configs(name)
    for part, config in parts.items():
        (directory / part / "config.json").write_text(json.dumps(config, indent=2))
    size = diffusers.config_from_released(parts["transformer"])
    network = from_dict(AutoencoderKLConfig, parts["vae"], ignore_unknown=True)
    models: dict[str, Callable[[], nnx.Module]] = {
        "transformer": lambda: Nova(size, rngs=nnx.Rngs(0)),
        "vae": lambda: AutoencoderKL(network, dtype="float32", rngs=nnx.Rngs(0)),
        "text_encoder": lambda: Phi(from_dict(PhiConfig, PHI_2), dtype="float32", rngs=nnx.Rngs(0)),
    }
    counts = []
    for part, make in models.items():
        state = nnx.to_flat_state(nnx.state(nnx.eval_shape(make)))
        variables = {path: variable.get_value() for path, variable in state}
        table = {
            "transformer": lambda v: rules.transformer_table(size, v),
            "vae": rules.autoencoder_table,
            "text_encoder": lambda v: rules.phi_table(PHI_2["num_hidden_layers"]),
        }[part](variables)
        stem = "model" if part == "text_encoder" else diffusers.WEIGHTS
        write_safetensors(directory / part, stem, random_tensors(table, variables))
        counts.append(f"{part} {sum(v.size for v in variables.values()):,}")
    return ", ".join(counts)


def random_tensors(table: list[rules.Entry], variables: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Weights of deviation 0.02, norms about 1."""
    generator = np.random.default_rng(0)
    for entry in table:
        shape = variables[entry.path].shape[0 if entry.block is None else 1 :]
        values = 0.02 * generator.standard_normal(shape, np.float32)
        values += entry.path[-1] == "scale"
        yield entry.released, entry.to_released(values).astype(np.float16)


def convert(directory: Path, out: Path) -> None:
    """Released to native."""
    released_to_native(str(directory), out)


def load(directory: Path, dtype: str) -> None:
    """Loads the whole pipeline."""
    NovaPipeline.from_pretrained(directory, dtype=dtype)


def ar_step(directory: Path) -> None:
    """One AR step of one diffusion step, all tokens of a frame, no guidance, float32; compiles."""
    model, schedule = diffusers.load_transformer(directory)
    config = model.config
    motion = {"flow": jnp.array([5.0]), "fps": jnp.array([12.0])} if config.is_video else {}
    text = jnp.zeros((1, config.text_length, config.text_dim))
    conditions = Conditions(text=text, text_length=jnp.array([8]), **motion)
    sampling = SamplingConfig(1, 1, GuidanceConfig(scale=1.0))
    keys = jax.random.split(jax.random.key(0), 1)
    latents = generate(model, schedule, conditions, frames=1, config=sampling, keys=keys)
    assert np.isfinite(np.asarray(latents)).all()


def prepare(directory: Path, name: str, dtype: str) -> str:
    """Prepares one clip of 33 frames, of a video model, and four pictures, for training on them."""
    size = RELEASES[name][1]
    rows = np.linspace(0, 6 * np.pi, 4 * size[0] // 3)[:, None, None]
    columns = np.linspace(0, 8 * np.pi, 4 * size[1] // 3)[:, None]
    made = []
    for frames, count in ((33, 1), (1, 4)) if RELEASES[name][2] > 1 else ((1, 4),):
        source = directory / f"{frames}_frames"
        source.mkdir(exist_ok=True)
        for number in range(count):
            times = np.arange(2 * frames - 1)[:, None, None, None] / 10 + number
            waves = np.sin(rows + times) * np.sin(columns + np.arange(3) - times)
            clip = (127.5 + 127.5 * waves).astype(np.uint8)
            media.save_clip(source / f"clip{number}", clip, 24)
            (source / f"clip{number}.txt").write_text(f"Wave number {number} runs to the right.")
        config = PrepareConfig(
            clips=ClipConfig(sizes=(size,), frames=(frames,)),
            batch_size=1,
            dtype="bfloat16" if dtype == "bfloat16" else "float32",
        )
        encoders = load_encoders(str(directory), text_length=config.text_length, dtype=config.dtype)
        items, skips = read_manifest(source)
        out = directory / f"{frames}_frames_prepared"
        report = prepare_files(items, skips, out, config, encoders)
        assert report.clips == count, report.skipped
        made.append(
            f"{count} of {frames} frames in {report.seconds:.1f} s, of which "
            f"{report.waited_for_clips:.1f} s waiting for decoding"
        )
    return "; ".join(made)


def measured(stage: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float, float]:
    """What a stage returns, its seconds, and GiB of memory before it and at the most."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    before, began = peak(), time.perf_counter()
    result = stage(*arguments)
    return result, time.perf_counter() - began, before, peak()


def main(_: list[str]) -> None:
    """Runs the stages."""
    directory, dtype = Path(DIRECTORY.value), DTYPE.value
    native = directory.with_name(directory.name + "-native")
    stages: dict[Callable[..., Any], tuple[Any, ...]] = {
        write: (MODEL.value, directory),
        convert: (directory, native),
        load: (directory, dtype),
        ar_step: (directory,),
        prepare: (directory, MODEL.value, dtype),
    }
    for stage, arguments in stages.items():
        if stage.__name__ not in STAGES.value:
            continue
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as process:
            result, seconds, before, peak = process.submit(measured, stage, *arguments).result()
        memory = f"{before:.2f} GiB before, {peak:.2f} GiB at the most"
        print(f"{stage.__name__:8} {seconds:6.1f} s, {memory}  {result or ''}", flush=True)


if __name__ == "__main__":
    app.run(main)
