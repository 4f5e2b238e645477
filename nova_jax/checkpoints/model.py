"""Parameters in the project's own format, read; and finished models, written.

A model directory is what a finished run leaves and what ships in the package:

    config.json        what the model is: transformer, noise schedule, codec, text encoder, ...;
                       `dtypes` are those of the release, of all tensors or by released name;
                       `frames` and `fps` are of generation, where the model and its data say
                       others; `training` is the rest of the run's config, where that is known
    params/            its variables, a flat {dotted path: array} in Orbax's format
    checksums.json     size and CRC-32 of every file under params/
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils.epath import Path
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding, SingleDeviceSharding

from nova_jax.checkpoints.adapters import apply_adapters
from nova_jax.checkpoints.finite import check_finite
from nova_jax.checkpoints.integrity import (
    CHECKSUMS,
    CONFIG,
    FORMAT,
    PARAMS,
    absolute,
    damage,
    verify_checksums,
    write_checksums,
    write_config,
    writing,
)
from nova_jax.distributed import multihost
from nova_jax.distributed.mesh import MeshLayout, parameter_shardings, replicated
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova

# What config.json says of a model.
MODEL_KEYS = (
    "model",
    "schedule",
    "codec",
    "text_encoder",
    "sampling",
    "motion_flow",
    "dataset",
    "dtypes",
    "frames",
    "fps",
    "training",
)


def save_model(
    directory: str | os.PathLike[str],
    *,
    variables: Mapping[str, jax.Array],
    config: Mapping[str, Any],
    step: int,
    dtype: jax.typing.DTypeLike | None = jnp.float32,
) -> None:
    """Writes a model directory, replacing an earlier one of this format.

    Args:
        directory: where to.
        variables: every variable of the model by dotted path.
        config: plain values under `MODEL_KEYS`; other keys are left out.
        step: training steps behind the model.
        dtype: stored type; a half type halves the files. None keeps the types there are.

    Raises:
        NovaError: if something else is at `directory`, the disk is full, or a variable is not
            finite in the type that it is stored in; an earlier model stays then.
    """
    directory = absolute(directory)
    params = directory / PARAMS
    stored = {name: value.astype(dtype or value.dtype) for name, value in variables.items()}
    check_finite(
        stored, f"{directory} was not written", "use an earlier checkpoint, or a wider dtype"
    )
    described = FORMAT | {"step": step} | {key: config[key] for key in MODEL_KEYS if key in config}

    def prepare() -> None:
        there = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
        # A process that was killed while it saved leaves these, or some of them.
        ours = (PARAMS, CONFIG, CHECKSUMS)
        if PARAMS not in there and not all(name.startswith(ours) for name in there):
            raise NovaError(f"{directory} exists and is no model directory; choose another place")
        with writing(directory, stored):
            directory.mkdir(parents=True, exist_ok=True)
            for name in there:
                if name.startswith(PARAMS):
                    (directory / name).rmtree()

    def finish() -> None:
        with writing(directory):
            write_checksums(directory)
            write_config(directory, described)

    multihost.on_first(prepare)
    with writing(directory), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(params, stored)
    multihost.on_first(finish)


def load_parameters(
    config: NovaConfig,
    source: Path,
    tree: str,
    *,
    frozen: str | None = None,
    adapters: float | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    mesh: MeshLayout | None = None,
) -> Nova:
    """Loads a transformer from saved trees of variables.

    Args:
        config: what it is.
        source: directory of the trees, with their checksums.
        tree: the one with its variables, or with adapters to them.
        frozen: the one with variables that were not trained; None if there is none.
        adapters: what the products of adapters are multiplied with; None if there are none.
        dtype: type of the computation.
        param_dtype: type that parameters are kept in.
        mesh: devices that parameters are put on, as `nova_jax.distributed.mesh` says; by default
            all on the first.

    Raises:
        NovaError: files are damaged, hold another model, or numbers that are not finite in
            `param_dtype`.
    """
    verify_checksums(source)
    abstract = nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0), dtype=dtype))
    shardings = {} if mesh is None else parameter_shardings(abstract, mesh)
    # Adapters, which the model knows nothing of, have a copy on every device.
    default = SingleDeviceSharding(jax.devices()[0]) if mesh is None else replicated(mesh)
    variables = {} if frozen is None else _restore(source / frozen, shardings, default)
    trained = _restore(source / tree, shardings, default)
    remedy = "restore it from a copy, or use an earlier one"
    if adapters is None:
        variables |= trained
    else:
        check_finite(trained, f"checkpoint {source}", remedy)
        variables = apply_adapters(variables, trained, adapters)

    graphdef, state = nnx.split(abstract)
    expected = flatten_dict(nnx.to_pure_dict(state), sep=".")
    for name in sorted(expected.keys() | variables.keys()):
        given = variables[name].shape if name in variables else "missing"
        wanted = expected[name].shape if name in expected else "nothing"
        if given != wanted:
            raise NovaError(
                f"checkpoint {source} does not fit its config.json: {name} is {given}, the model "
                f"has {wanted}; restore both from one copy"
            )
    values = {name: jnp.asarray(value, param_dtype) for name, value in variables.items()}
    check_finite(values, f"checkpoint {source}", remedy)
    return nnx.merge(graphdef, unflatten_dict(values, sep="."))


def _restore(
    directory: Path, shardings: Mapping[str, Sharding], default: Sharding
) -> dict[str, jax.Array]:
    """Arrays by dotted path as they were saved, each where that says."""
    with damage(directory), ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(directory).item_metadata.tree

        def abstract(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
            sharding = shardings.get(".".join(entry.key for entry in path), default)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        restored = checkpointer.restore(directory, jax.tree.map_with_path(abstract, saved))
    return flatten_dict(restored, sep=".")
