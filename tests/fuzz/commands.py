"""Random command lines, drawn from the flags that a command turns out to have.

Any flag is given values by its type; `GOOD` says what makes sense for those that name things, and
`USUAL` what keeps a command small. So that something deep is reached, a line is good but for one or
two flags at most, and one in four is good throughout.
"""

from __future__ import annotations

import json
import random
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import av
import jax
import numpy as np
from absl import flags
from fuzz.values import OBSTACLES, REAL, TESTS, TEXT, WHOLE, make_obstacles, overwritten
from ml_collections import ConfigDict
from PIL import Image, ImageSequence
from safetensors import safe_open

import nova_jax
from nova_jax import cli

RECIPES = TESTS.parent / "configs"
PACKAGE = Path(nova_jax.__file__).parent

#: Stands for the directory of what commands read.
INPUTS = "{inputs}/"


def _read(*names: str) -> tuple[str, ...]:
    return tuple(f"{INPUTS}{name}" for name in names)


MODELS = _read("shipped", "model", "run", "lora_run", "classes", "pipeline_t2v", "pipeline_t2i")
#: By flag.
GOOD: Mapping[str, tuple[str, ...]] = {
    "checkpoint": MODELS,
    "config": (f"{RECIPES}/digits_t2v.py", f"{RECIPES}/digits_t2v.py:demo"),
    "coordinator": ("localhost:1",),
    "dtype": ("float32", "bfloat16"),
    "export": ("out/a.zip", "b.zip"),
    "frames": ("1", "2", "3", "4", "5"),
    "generate": ("1", "2"),
    "image": _read("small.png", "gray.png", "alpha.png"),
    "input": _read("pictures", "rows.jsonl"),
    "inspect": _read("latents", "raw"),
    "json": ("table.json",),
    "max_latent_length": ("1", "2", "3"),
    "mask": _read("small.png", "gray.png"),
    "mesh": ("data:1", "data:2,fsdp:2", "fsdp:1"),
    "motion_flow": ("0", "1.5", "5"),
    "num_prompts": ("2", "3"),
    "out": ("out", "deep/er/out"),
    "outpaint": ("0,8,0,8", "1,0,0,0"),
    "parts": (*_read("pipeline_t2v"), "colors", "all", "color,scene"),
    "prompt": ("a red seven moves up", "3", "𝕏🎬", "x" * 300),
    "prompt_file": _read("prompts.txt"),
    "prompt_schedule": ("0:a red seven", "0:3;1:5"),
    "prompts": _read("clones"),
    "report": _read("clones", "rows.jsonl"),
    "save_session": ("out/cut.npz", "cut.npz"),
    "shard": ("0/1", "0/2"),
    "size": ("12x12", "24x24", "24x48", "32x32"),
    "step": ("latest", "best", "4"),
    "topology": ("cpu:1", "cpu:1", "cpu:4", "h100:8"),
    "upscale": ("1", "48"),
    "video": _read("pictures"),
    "workdir": ("work",),
    "IN": MODELS,
    "OUT": ("out",),
    "DIR": _read("vae_kl", "phi"),
}
#: The digits recipe, as small as it can be.
SMALL_RUN = {
    "config.steps": "2",
    "config.stop_at": "2",
    "config.model.temporal_encoder": "vit_d1w32",
    "config.model.spatial_decoder": "vit_d2w32",
    "config.model.diffusion_head": "mlp_d1w32",
    "config.data.batch_size": "2",
    "config.data.image_batch_size": "2",
    "config.data.picture_batches_first": "0",
    "config.data.video_fraction": "1.0",
    "config.validation.batches": "1",
    "config.dataset.num_clips": "64",
    "config.sampling.num_inference_steps": "2",
    "config.sampling.num_diffusion_steps": "2",
    "config.samples.prompts": "()",
    "config.dataset.frames": "2",
    "config.model.frames": "2",
    "config.logging.every": "1",
    "config.optimizer.warmup_steps": "1",
    "config.unroll": "1",
}
_RECIPE = {"config": GOOD["config"][0]} | SMALL_RUN
_FEW_STEPS = {"num_inference_steps": "2", "num_diffusion_steps": "2"}
USUAL: Mapping[str, Mapping[str, str | None]] = {
    "nova_jax.train": _RECIPE | {"workdir": "work"},
    "nova_jax.demo": _RECIPE,
    "nova_jax.plan": _RECIPE | {"topology": "cpu:1", "mesh": "data:1", "tries": "1"},
    "nova_jax.generate": _FEW_STEPS | {"checkpoint": None, "prompt": None},
    "nova_jax.evaluate": {
        "num_prompts": "2",
        "checkpoint": MODELS[0],
        "config": GOOD["config"][0],
        "config.sampling.num_inference_steps": "2",
        "config.sampling.num_diffusion_steps": "2",
    },
    "nova_jax.prepare": {
        "config": f"{RECIPES}/prepare_t2v.py",
        "config.clips.sizes": "((32, 48),)",
        "config.clips.frames": "(1,)",
        "input": None,
        "out": "out",
        "raw": "true",
    },
}


@cache
def commands() -> tuple[str, ...]:
    """What `python -m` can run: all that ends in ``cli.run(main)``."""
    found = (path for path in sorted(PACKAGE.rglob("*.py")) if "\n    cli.run(" in path.read_text())
    names = (".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in found)
    return tuple(name.removesuffix(".__main__") for name in names)


def run(seed: int, inputs: Path, log: Path) -> int:
    """Runs the command of a seed as ``python -m`` does, and looks at what it has written.

    The line is drawn when the command asks for it to be parsed: its flags are there then.
    """
    rng = random.Random(seed)
    command = commands()[seed % len(commands())]
    jax.config.update("jax_disable_most_optimizations", True)
    parse = cli.run

    def draw_and_parse(main: Any, *, arguments: str | None = None, **options: Any) -> None:
        by_module = flags.FLAGS.flags_by_module_dict().items()
        ours = [own for module, own in by_module if module.startswith((sys.argv[0], "nova_jax"))]
        line = draw(rng, command, {flag.name: flag for own in ours for flag in own}, arguments)
        line = [word.replace(INPUTS, f"{inputs}/") for word in line]
        shown = shlex.join(line).encode(errors="surrogateescape")
        (log / "case").write_bytes(b"python -m " + command.encode() + b" " + shown)
        sys.argv = [sys.argv[0], *line]
        parse(main, arguments=arguments, **options)

    cli.run = draw_and_parse
    here = make_obstacles(Path.cwd())
    try:
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        found = [] if end.code else faults(command, here, log)
        (log / "faults").write_text("\n".join([*overwritten(here), *found]))
        return end.code if isinstance(end.code, int) else 1
    return 0


def draw(
    rng: random.Random,
    command: str,
    own: Mapping[str, flags.Flag],
    arguments: str | None,
) -> list[str]:
    """A command line; `INPUTS` stands for where what it reads is."""
    keys: dict[str, Any] = {}
    given = dict(USUAL.get(command, {}))
    if recipe := given.get("config"):
        keys = dict(_leaves(runpy.run_path(recipe)["get_config"](), "config"))
    names = [*own, *keys] if rng.random() < 0.7 or not keys else [*keys]
    for name in rng.sample(names, rng.choice((0, 0, 1, 2, 3))):
        if name in own:
            given[name] = None
    line = {name: _good(rng, name, own.get(name)) if v is None else v for name, v in given.items()}
    words = (arguments or "").removesuffix(" ...").split()
    positional = [_good(rng, word, None) for word in words]
    for name in rng.sample(names, rng.choice((0, 1, 1, 2))):
        line[name] = _odd(rng, name, own.get(name), keys.get(name))
    if positional and rng.random() < 0.3:
        positional[rng.randrange(len(positional))] = rng.choice(TEXT)
    if positional and rng.random() < 0.1:
        positional = positional[1:] if rng.random() < 0.5 else [*positional, rng.choice(TEXT)]
    if "config.steps" in line:  # one of the two must end it
        line["config.steps" if rng.random() < 0.5 else "config.stop_at"] = "2"

    # A section comes before its keys.
    words = [f"--{name}={line[name]}" for name in sorted(line, key=lambda n: n.count("."))]
    return [*words, *positional]


def _leaves(config: ConfigDict, name: str) -> Iterator[tuple[str, Any]]:
    """Every key of a recipe, by its dotted name; sections too."""
    for key, value in config.items():
        yield f"{name}.{key}", value
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{name}.{key}")


def _good(rng: random.Random, name: str, flag: flags.Flag | None) -> str:
    if name in GOOD:
        return rng.choice(GOOD[name])
    if choices := _choices(flag):
        return rng.choice(choices)
    kind = _kind(flag)
    return rng.choice({int: ("1", "2", "3"), float: ("1", "1.5", "3")}.get(kind, TEXT))


def _odd(rng: random.Random, name: str, flag: flags.Flag | None, value: Any) -> str:
    """A value for a flag, or for a key of a recipe that holds `value`."""
    kind = _kind(flag) if value is None else type(value)
    if rng.random() < 0.85 and kind in (int, float):
        near = _bounds(flag) if value is None else [value, 2 * value]
        near = [str(number + step) for number in near for step in (-1, 0, 1)]
        return rng.choice([*near, *(WHOLE if kind is int else REAL)])
    if rng.random() < 0.8 and (choices := _choices(flag)):
        return rng.choice(choices)
    if rng.random() < 0.8 and kind is tuple:
        odd = [rng.choice([*WHOLE, *REAL, "'x'", "None"]) for _ in range(rng.randrange(4))]
        return f"({', '.join(odd)},)" if odd else "()"
    return rng.choice(TEXT)


def _help(flag: flags.Flag | None) -> str:
    """What --help says of a flag's values."""
    return "" if flag is None else flag.parser.syntactic_help or flag.flag_type()


def _kind(flag: flags.Flag | None) -> type:
    words = {"int": int, "integer": int, "float": float, "number": float}
    found = (words[word] for word in re.findall(r"\w+", _help(flag)) if word in words)
    return next(found, str)


def _bounds(flag: flags.Flag | None) -> list[float]:
    return [float(n) if "." in n else int(n) for n in re.findall(r"-?\d[\d.]*", _help(flag))]


def _choices(flag: flags.Flag | None) -> list[str]:
    if flag is not None and flag.boolean:
        return ["true", "false"]
    parser = None if flag is None else flag.parser
    return list(getattr(parser, "enum_values", re.findall(r"'(\w+)'", _help(flag))))


def faults(command: str, place: Path, log: Path) -> Iterator[str]:
    """What is wrong with what a command has written: nothing, not finite, or all the same."""
    sys.stdout.flush()
    files = [path for path in place.rglob("*") if path.is_file() and path.name not in OBSTACLES]
    printed = (log / "stdout").read_text(errors="replace")
    if not files and command not in ("nova_jax.plan", "nova_jax.parity", "nova_jax.prepare"):
        yield "no file was written"
    if not printed:
        yield "nothing was printed"
    judged = command != "nova_jax.parity"  # which shows limits without bounds
    if judged and re.search(r"(?<![\w.])[-+]?(nan|inf)(?![\w.])", printed):
        yield f"numbers that are not finite: {printed.strip()[:200]!r}"
    for path in files:
        match path.suffix:
            case ".json":
                _parse(path.read_text(), bad := [])
                yield from (f"{path.name} has {name}" for name in bad)
            case ".jsonl":
                for number, text in enumerate(path.read_text().splitlines()):
                    _parse(text, bad := [])
                    yield from (f"{path.name}, line {number + 1} has {name}" for name in bad)
            case ".png" | ".gif" | ".mp4":
                pixels = _pixels(path)
                if pixels.min() == pixels.max():
                    yield f"{path.name} is of one color"
            case ".safetensors":
                with safe_open(path, "np") as tensors:
                    for name in tensors.keys():
                        if not np.isfinite(tensors.get_tensor(name).astype(np.float32)).all():
                            yield f"{path.name} has {name}, which is not finite"


def _pixels(path: Path) -> np.ndarray:
    """All frames of a picture or video."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as video:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    with Image.open(path) as picture:
        frames = ImageSequence.all_frames(picture)
        return np.stack([np.asarray(frame.convert("RGB")) for frame in frames])


def _parse(text: str, bad: list[str]) -> None:
    json.loads(text, parse_constant=bad.append)
