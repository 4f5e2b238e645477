"""Random calls of the library: a pipeline is loaded, resized perhaps, and called or exported.

Parameters are those of the signatures, and those of `OPTIONS` where a signature has ``**options``;
any is given values by its annotation and, once in a while, anything at all. Values are Python, so
that a call can be shown as it was made.
"""

from __future__ import annotations

import inspect
import math
import random
import sys
import types
import typing
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fuzz.values import ANYTHING, NUMBERS
from PIL import Image

from nova_jax.errors import NovaError
from nova_jax.export import export
from nova_jax.pipeline import NovaPipeline
from nova_jax.request import Output
from nova_jax.sampling.options import OPTIONS, SamplingConfig

MODELS = ("shipped", "shipped", "shipped", "model", "classes", "pipeline_t2v", "pipeline_t2i")
#: By parameter; what is not here is drawn by its annotation.
GOOD: Mapping[str, tuple[str, ...]] = {
    "prompt": ("'a red seven'", "['a red seven', '']", "('x',)", "np.array(['x'])"),
    "negative_prompt": ("''", "'x'", "['x']"),
    "image": (
        "np.zeros((30, 50, 3), np.uint8) + np.arange(3, dtype=np.uint8)",
        "Image.new('RGB', (24, 24), 'red')",
        "Image.new('RGBA', (9, 7))",
    ),
    "latents": ("np.zeros((1, 1, 24, 24, 3))", "np.ones((1, 2, 24, 24, 3), np.float32)"),
    "prompt_embeds": ("[np.ones((3, 128))]", "np.ones((1, 3, 128))"),
    "negative_prompt_embeds": ("[np.ones((3, 128))]", "[np.zeros((0, 128))]"),
    "seed": ("0", "7", "np.int64(3)", "2**32 - 1", "[5]"),
    "key": ("jax.random.key(3)",),
    "order": ("None",),
    "noise": ("None",),
    "sampler": ("'auto'", "'xla'"),
    "sampling": ("SamplingConfig(2, 2)",),
    "num_frames": ("1", "2", "3", "4", "5"),
    "max_latent_length": ("1", "2", "3"),
    "motion_flow": ("0", "1.5", "5"),
    "height": ("24", "48", "32"),
    "width": ("24", "48", "32"),
    "dtype": ("'float32'", "jnp.bfloat16"),
    "param_dtype": ("'float32'", "jnp.bfloat16"),
    "step": ("'latest'",),
    "mesh": ("None",),
    "devices": ("None", "jax.devices()"),
    "file": ("'a.zip'", "Path('deep/a.zip')"),
}
_PROMPT = "'a red seven'"
_FEW = {"num_inference_steps": "2", "num_diffusion_steps": "2"}
USUAL: Mapping[str, dict[str, str | None]] = {
    "from_pretrained": {},
    "resized": {"height": None, "width": None},
    "__call__": _FEW | {"prompt": _PROMPT, "disable_progress_bar": "True"},
    "export": _FEW | {"file": None},
}
#: What values are written with.
SCOPE = {
    **{kind.__name__: kind for kind in (Decimal, Fraction, Path, SamplingConfig)},
    **{"Image": Image, "jax": jax, "jnp": jnp, "np": np, "nan": math.nan, "inf": math.inf},
}


def run(seed: int, inputs: Path, log: Path) -> int:
    """Makes the call of a seed; 0: done, 2: a `NovaError`, 3: a `TypeError` about its keyword."""
    rng = random.Random(seed)
    jax.config.update("jax_disable_most_optimizations", True)
    calls = ["__call__"] if rng.random() < 0.85 else ["export"]
    calls = ["from_pretrained", *(["resized"] if rng.random() < 0.2 else []), *calls]
    odd = rng.choice(calls[:-1]) if rng.random() < 0.2 else calls[-1]
    shown, model, result = "pipeline = NovaPipeline", rng.choice(MODELS), None
    pipeline: Any = None
    for call in calls:
        function = export if call == "export" else getattr(NovaPipeline, call)
        given = draw(rng, call, function, hostile=call == odd)
        if call == "from_pretrained":
            given.setdefault("source", f"inputs / {model!r}")
        if model == "classes" and given.get("prompt") == _PROMPT:
            given["prompt"] = "3"
        unknown = call == "__call__" and rng.random() < 0.03
        if unknown:
            given["guidance"] = "1"
        words = ", ".join(f"{name}={value}" for name, value in given.items())
        dot = "" if call == "__call__" else f".{call}"
        shown += f"{dot}({words})"
        (log / "case").write_text(shown.replace("inputs / '", f"'{inputs}/"), errors="replace")
        shown += "\npipeline"
        arguments = {name: eval(value, SCOPE | {"inputs": inputs}) for name, value in given.items()}
        try:
            if call == "from_pretrained":
                pipeline = NovaPipeline.from_pretrained(**arguments)
            elif call == "export":
                result = export(pipeline, **arguments)
            else:
                result = function(pipeline, **arguments)
                pipeline = result if call == "resized" else pipeline
        except NovaError as error:
            return _refused(str(error))
        except TypeError as error:
            if unknown and "guidance" in str(error):
                return _refused(str(error))
            raise
        if unknown:
            (log / "faults").write_text("an unknown keyword was taken")
    if isinstance(result, Output):
        (log / "faults").write_text("\n".join(faults(result)))
    print(type(result).__name__)
    return 0


def draw(
    rng: random.Random, name: str, function: Callable[..., Any], *, hostile: bool
) -> dict[str, str]:
    """Arguments as Python, by name."""
    parameters = inspect.signature(function).parameters
    hints = {k: v for k, v in typing.get_type_hints(function).items() if k in parameters}
    if "options" in hints:
        hints |= {k: option.kind for k, option in OPTIONS.items() if k not in hints}
        del hints["options"]
    hints.pop("pipeline", None)
    given = {k: _good(rng, k, hints[k]) if v is None else v for k, v in USUAL[name].items()}
    for key in rng.sample([*hints], min(len(hints), rng.choice((0, 1, 2)))):
        given[key] = _good(rng, key, hints[key])
    if "prompt_embeds" in given:
        given["prompt"] = "None"
    if hostile and rng.random() < 0.65:
        for key in rng.sample([*hints], rng.choice((1, 1, 2))):
            number = {int, float} & {*_kinds(hints[key])} and rng.random() < 0.6
            given[key] = rng.choice(NUMBERS if number else ANYTHING)
    if given.get("source") and not hostile:
        del given["source"]
    return given


def _good(rng: random.Random, name: str, hint: Any) -> str:
    if name in GOOD:
        return rng.choice(GOOD[name])
    for kind in _kinds(hint):
        if typing.get_origin(kind) is typing.Literal:
            return repr(rng.choice(typing.get_args(kind)))
        if kind in (int, float, bool):
            return rng.choice({int: ("1", "2"), float: ("0.5", "1", "3.0"), bool: ("True",)}[kind])
    return rng.choice(ANYTHING)


def _kinds(hint: Any) -> list[Any]:
    """The types that a parameter may be of."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _kinds(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return [kind for argument in arguments for kind in _kinds(argument)]
    return [hint]


def _refused(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def faults(output: Output) -> list[str]:
    """What is wrong with what was made."""
    found = []
    for name, values in (("latents", output.latents), ("frames", output.frames)):
        values = np.asarray(values)
        if not values.size or not np.isfinite(values).all():
            found.append(f"{name} are not finite")
        elif values.min() == values.max():
            found.append(f"{name} are all {values.flat[0]}")
    return found
