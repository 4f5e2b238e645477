"""Generation as files that run without this package, on CPU, CUDA and TPU.

    NAME.zip
        about.json       what the programs take and give, how prompts get in, frames, rate, options
        text             tokens of prompts to text features; not of class-conditional models
        generate         text features or labels, and seeds, to the frames of videos
        tokenizer.json   where tokens are a tokenizer's
    NAME.safetensors     the weights of both, by name

A program is what `jax.export` writes: one for all platforms, with weights as arguments. The script
that runs it is in docs/export.md.

Letters: B videos, L text rows, d text width, F pixel frames, H×W pixels.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax import export as jax_export

import nova_jax
from nova_jax.autoencoders.pixels import to_uint8
from nova_jax.checkpoints.finite import check_finite
from nova_jax.config import Count, convert, shown
from nova_jax.distributed.machines import MACHINES
from nova_jax.distributed.memory import Part, check_fits
from nova_jax.errors import NovaError
from nova_jax.files import new_output, publish, unfinished
from nova_jax.kernels.device import ANY, target
from nova_jax.models.nova import Conditions
from nova_jax.pipeline import NovaPipeline
from nova_jax.sampling.keys import sample_key, seed_key
from nova_jax.sampling.memory import generation_bytes
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.video import generate_in_one
from nova_jax.text.interface import TextEncoder

PLATFORMS = ("cpu", "cuda", "tpu")
#: Of about.json, raised when a script for an older one would not do.
VERSION = 1

Weights = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of weights and named inputs; it is called as `function(modules, **inputs)`."""

    function: Callable[..., jax.Array]
    modules: Mapping[str, nnx.Module]  # by the start of the names of their weights
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)  # where not zero


def export(
    pipeline: NovaPipeline,
    file: str | os.PathLike[str],
    *,
    batch_size: int = 1,
    num_frames: int | None = None,
    max_latent_length: int | None = None,
    motion_flow: float | None = None,
    sampling: SamplingConfig | None = None,
    **options: Any,
) -> tuple[Path, Path]:
    """Writes generation by a pipeline; see the top of the file.

    Args:
        pipeline: what to export.
        file: ends in ``.zip``; the weights are beside it.
        batch_size: B.
        num_frames, max_latent_length: length of the videos, see `NovaPipeline.stream`.
        motion_flow: what the program's input of this name is unless told otherwise.
        sampling, **options: how samples are drawn, see `NovaPipeline.sampling_with`; fixed in the
            program.

    Returns:
        The two files.

    Raises:
        NovaError: a file exists already, an option does not fit the model, no device has the
            memory that the program takes, or weights are not finite.
    """
    files = destination(file)
    batch_size = convert(Count, batch_size, "batch_size")
    frames = pipeline.latent_frames(max_latent_length, num_frames)
    sampling = pipeline.sampling_with(sampling, **options)
    if sampling.sampler == "pallas":
        raise NovaError(
            'sampler "pallas" is for the machine it runs on, an export is for all; leave it away'
        )
    _check_memory(pipeline, batch_size, frames, sampling)
    flow = pipeline.motion_score(motion_flow)
    programs = {"generate": _generation(pipeline, batch_size, frames, flow, sampling)}
    tokens: dict[str, Any] | None = None
    contents: dict[str, bytes | str] = {}
    if (encoder := pipeline.text_encoder) is not None:
        programs["text"] = _text(encoder, batch_size, pipeline.config.text_length or 0)
        given = encoder.tokens
        tokens = {"kind": given.kind}
        if given.tokenizer is not None:
            tokens["file"], contents["tokenizer.json"] = "tokenizer.json", given.tokenizer
    about: dict[str, Any] = {
        "format": "nova_jax generation",
        "version": VERSION,
        "made_by": {"nova_jax": nova_jax.__version__, "jax": jax.__version__},
        "platforms": PLATFORMS,
        "fps": pipeline.fps,
        "latent_frames": frames,
        "sampling": dataclasses.asdict(sampling),
        "tokens": tokens,
        "programs": {},
    }
    modules = {part: m for program in programs.values() for part, m in program.modules.items()}
    check_finite(
        {part: nnx.to_pure_dict(nnx.state(module)) for part, module in modules.items()},
        f"{files[0]} was not written",
        "restore the model from a copy",
    )
    weights: Weights = {}
    for name, program in programs.items():
        exported, used = _export(program)
        contents[name] = bytes(exported.serialize())
        weights |= used
        about["programs"][name] = {
            "inputs": {
                key: _described(value) | {"default": program.defaults.get(key, 0)}
                for key, value in program.inputs.items()
            },
            "output": _described(exported.out_avals[0]),
            "weights": list(used),
        }
    contents["about.json"] = json.dumps(about, indent=1)
    write(files, contents, weights)
    return files


def destination(file: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The files of an export.

    Raises:
        NovaError: it is no name for one, a file exists, or the place cannot be written to.
    """
    if not isinstance(file, str | os.PathLike):
        raise NovaError(f"file is {shown(file)}; it must be a path")
    path = Path(file)
    if path.suffix != ".zip":
        raise NovaError(f"{path} would be a zip archive; name it {path.name}.zip")
    return new_output(path), new_output(path.with_suffix(".safetensors"))


def write(files: tuple[Path, Path], contents: Mapping[str, bytes | str], weights: Weights) -> None:
    """Writes the archive's contents and the weights: both files, or none."""
    file, beside = files
    file.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(file) as archive, unfinished(beside) as arrays:
        with zipfile.ZipFile(archive, "x", zipfile.ZIP_DEFLATED) as opened:
            for name, content in contents.items():
                opened.writestr(name, content)
        tensors = {name: np.asarray(value) for name, value in weights.items()}
        safetensors.numpy.save_file(tensors, arrays)
        arrays.chmod(archive.stat().st_mode)  # safetensors keeps it to its owner
        publish(arrays, beside)
        publish(archive, file)


def _check_memory(
    pipeline: NovaPipeline, batch: int, frames: int, sampling: SamplingConfig
) -> None:
    """Raises if drawing the videos takes more memory than any device has that is known."""
    drawing = generation_bytes(
        pipeline.config,
        pipeline.schedule,
        sampling,
        samples=batch,
        frames=frames,
        itemsize=jnp.dtype(pipeline.model.dtype).itemsize,
        parameters=0,
    )
    lower = ["batch_size", "max_latent_length (num_frames)"]
    largest = max(
        (machine for machine in MACHINES.values() if machine.memory < math.inf),
        key=lambda machine: machine.memory,
    )
    check_fits("this export", [Part("the videos", drawing, lower)], largest.memory, largest.name)


def _generation(
    pipeline: NovaPipeline, batch: int, frames: int, flow: float, sampling: SamplingConfig
) -> Program:
    """Conditions and seeds to frames."""
    config, codec, schedule = pipeline.config, pipeline.codec, pipeline.schedule
    modules: dict[str, nnx.Module] = {"transformer": pipeline.model}
    modules |= {} if codec.network is None else {"vae": codec.network}

    def function(
        modules: Mapping[str, Any],
        *,
        seed: jax.Array,
        label: jax.Array | None = None,
        text: jax.Array | None = None,
        text_length: jax.Array | None = None,
        negative_text: jax.Array | None = None,
        negative_length: jax.Array | None = None,
        motion_flow: jax.Array | None = None,
    ) -> jax.Array:
        fps = None if motion_flow is None else jnp.full_like(motion_flow, pipeline.fps)
        conditions = Conditions(text, text_length, motion_flow, fps, label)
        negative = None
        if negative_text is not None:
            negative = Conditions(negative_text, negative_length, motion_flow, fps)
        # A sample's number among those of its prompt is 0.
        keys = jax.vmap(lambda seed: sample_key(seed_key(seed), 0))(seed)
        latents = generate_in_one(
            modules["transformer"],
            schedule,
            conditions,
            frames=frames,
            config=sampling,
            keys=keys,
            negative=negative,
        )
        decoder = codec.with_network(modules.get("vae"))
        return jnp.asarray(to_uint8(decoder.decode(latents)))

    inputs = {"seed": jax.ShapeDtypeStruct((batch,), jnp.uint32)}
    count = jax.ShapeDtypeStruct((batch,), jnp.int32)
    if pipeline.text_encoder is None:
        inputs["label"] = count
    else:
        shape = (batch, config.text_length or 0, pipeline.text_encoder.dim)
        rows = jax.ShapeDtypeStruct(shape, jnp.float32)
        inputs |= {"text": rows, "text_length": count}
        if sampling.guidance.passes > 1:
            inputs |= {"negative_text": rows, "negative_length": count}
    if config.is_video:
        inputs["motion_flow"] = jax.ShapeDtypeStruct((batch,), jnp.float32)
    return Program(function, modules, inputs, {"motion_flow": flow})


def _text(encoder: TextEncoder, batch: int, length: int) -> Program:
    """Tokens to features."""
    modules = {} if encoder.network is None else {"text_encoder": encoder.network}

    def function(modules: Mapping[str, Any], *, tokens: jax.Array) -> jax.Array:
        return encoder.features(modules.get("text_encoder"), tokens)

    one = encoder.tokens
    tokens = jax.ShapeDtypeStruct((batch, length, *one.shape), jnp.dtype(one.dtype))
    return Program(function, modules, {"tokens": tokens})


def _export(program: Program) -> tuple[jax_export.Exported, Weights]:
    """The program for all platforms, and the weights that it uses."""
    split = {part: nnx.split(module) for part, module in program.modules.items()}
    variables = {
        ".".join([part, *map(str, path)]): (part, path, variable)
        for part, (_, state) in split.items()
        for path, variable in nnx.to_flat_state(state)
    }

    def function(weights: Weights, **inputs: jax.Array) -> jax.Array:
        states: dict[str, list[Any]] = {part: [] for part in split}
        for name, (part, path, variable) in variables.items():
            value = weights.get(name, variable.get_value())
            states[part].append((path, variable.replace(value)))
        modules = {
            part: nnx.merge(graph, nnx.from_flat_state(states[part]))
            for part, (graph, _) in split.items()
        }
        return program.function(modules, **inputs)

    def exported(weights: Weights) -> jax_export.Exported:
        return jax_export.export(jax.jit(function), platforms=PLATFORMS)(weights, **program.inputs)

    weights = {name: variables[name][2].get_value() for name in sorted(variables)}
    with target(ANY):
        # What a program takes it must be given, so that it is asked first what it uses.
        kept = set(exported(weights).module_kept_var_idx)
        used = {name: value for i, (name, value) in enumerate(weights.items()) if i in kept}
        return exported(used), used


def _described(value: Any) -> dict[str, Any]:
    return {"dtype": str(value.dtype), "shape": list(value.shape)}
