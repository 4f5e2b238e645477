"""Traced programs, kept on disk for the next process.

JAX's persistent cache spares a process what the compiler does. It finds a compiled program by what
tracing and lowering make of it, and these, which are Python, are most of what a small model then
waits for. Here the result of both is kept too, as `jax.export` writes it, under a name made of all
that they depend on: the package's source, versions, JAX's settings, what is static in the program,
shapes and types of its arguments. Compiling it is left to JAX and its cache.

Commands switch it on (`keep`). It is for programs of one CPU device: nothing there asks at tracing
what is faster, as the kernels of `nova_jax.kernels.diffusion_sampler` do elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import sys
from collections.abc import Callable, Hashable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax import export

import nova_jax
from nova_jax.files import write_whole
from nova_jax.kernels.device import target

_folder: Path | None = None


def keep(folder: Path | None) -> None:
    """Has `run` keep programs in this directory from now on; None for no longer."""
    global _folder
    _folder = folder


def run(
    program: Callable[..., Any],
    graph: Hashable,
    options: Mapping[str, Hashable],
    arguments: tuple[Any, ...],
    like: Any,
) -> Any:
    """`program(graph, *arguments, **options)`, of a trace that is kept where that is possible.

    Args:
        program: a jitted function.
        graph, options: its static arguments, which their `repr` tells from others, but for
            addresses in it.
        arguments: its arrays, in pytrees.
        like: a pytree of what it returns, with arrays that lie as these will.
    """
    leaves, tree = jax.tree.flatten(arguments)
    if not (_folder and _on_one_cpu(leaves)):
        return program(graph, *arguments, **options)
    kinds = tuple(map(_kind, leaves))
    results, made = jax.tree.flatten(like)
    static = (program, graph, tuple(options.items()), tree)
    call = _program(_folder, *static, kinds, tuple(result.sharding for result in results))
    return jax.tree.unflatten(made, call(*leaves))


def _on_one_cpu(leaves: list[Any]) -> bool:
    return (
        target.value is None
        and jax.default_backend() == "cpu"
        and all(isinstance(leaf, jax.Array) and len(leaf.devices()) == 1 for leaf in leaves)
    )


def _kind(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    weak = jax.typeof(leaf).weak_type
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding, weak_type=weak)


@functools.lru_cache
def _program(
    folder: Path,
    program: Callable[..., Any],
    graph: Hashable,
    options: tuple[tuple[str, Hashable], ...],
    tree: Any,
    kinds: tuple[jax.ShapeDtypeStruct, ...],
    shardings: tuple[jax.sharding.Sharding, ...],
) -> Callable[..., Any]:
    """The function of the arguments' leaves, to those of what it returns."""
    parts = (program.__qualname__, graph, options, tree, kinds, sorted(jax.config.values.items()))
    described = re.sub("0x[0-9a-f]+", "", "\n".join(map(repr, parts)))  # addresses of functions
    file = folder / hashlib.sha256((_code() + described).encode()).hexdigest()
    if (exported := _read(file)) is None:

        def flat(*leaves: Any) -> Any:
            return jax.tree.leaves(
                program(graph, *jax.tree.unflatten(tree, leaves), **dict(options))
            )

        exported = export.export(jax.jit(flat))(*kinds)
        content = exported.serialize()
        with contextlib.suppress(OSError):  # then the next process traces, too
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, hashlib.sha256(content).digest() + content)
    return jax.jit(exported.call, out_shardings=list(shardings))


def _read(file: Path) -> export.Exported | None:
    """A program that is kept; None if it is not, or is damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    checksum, content = content[:32], content[32:]
    return (
        export.deserialize(bytearray(content))
        if hashlib.sha256(content).digest() == checksum
        else None
    )


@functools.cache
def _code() -> str:
    """What tells the code that is traced from other versions of it."""
    own = hashlib.sha256()
    for file in sorted(Path(nova_jax.__file__).parent.rglob("*.py")):
        own.update(file.read_bytes())
    others = (f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "numpy", "einops"))
    return "\n".join([own.hexdigest(), sys.version, *others])
