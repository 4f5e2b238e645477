"""The file of a session: the arrays of `nova_jax.session.Session` by path, and what they are of.

An .npz that NumPy reads: "about" is JSON, every other entry an array.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nova_jax.errors import NovaError
from nova_jax.files import publish, unfinished
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Conditions
from nova_jax.sampling.denoise import KeyedNoise
from nova_jax.sampling.state import VideoState

#: Of saved sessions; raised when what an older version reads would mean something else.
SCHEMA = 1
# What reading a file that is none of a session, or is damaged, may end in.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
# Values of a parameter that a model is told apart by.
_PRINTED = 1024


def fingerprint(model: nnx.Module, config: Mapping[str, Any]) -> str:
    """A name of a model that tells it from others: of its sizes and of some of each parameter."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        some = variable.get_value().ravel()[:_PRINTED]
        digest.update(f"{path}{some.dtype}".encode() + np.asarray(some).tobytes())
    return digest.hexdigest()[:32]


def write(path: Path, about: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Writes pytrees of arrays by name, and JSON: the whole file or none."""
    arrays = {
        f"{name}{jax.tree_util.keystr(path)}": _plain(leaf)
        for name, part in parts.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(part)
    }
    arrays["about"] = np.array(json.dumps({"schema": SCHEMA, **about}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as temporary:
        with open(temporary, "wb") as opened:
            np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
        publish(temporary, path)


def _plain(leaf: jax.Array) -> np.ndarray:
    """An array as NumPy has it; of keys their numbers."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def array_of(fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """The one array that stands for itself."""
    return fields[""]


def conditions_of(fields: Mapping[str, np.ndarray]) -> Conditions:
    """Conditions out of their arrays by path."""
    arrays = {name[1:]: jnp.asarray(value) for name, value in fields.items()}
    return Conditions(**arrays)


def state_of(config: NovaConfig, fields: Mapping[str, np.ndarray]) -> VideoState:
    """A state out of its arrays by path.

    Raises:
        KeyError, ValueError: they are not all there, or are of another shape.
    """
    batch = len(fields[".frame"])
    seen = fields[".seen"]
    if seen.ndim != 5 or seen.shape[2:] != (*config.latent_size, config.latent_channels):
        raise ValueError(f"frames of shape {list(seen.shape)}")
    if fields[".order"].shape != (batch, config.num_tokens):
        raise ValueError(f"orders of shape {list(fields['.order'].shape)}")

    def nested(name: str) -> Conditions:
        start = f".{name}"
        return conditions_of({k[len(start) :]: v for k, v in fields.items() if k.startswith(start)})

    keys = jax.random.wrap_key_data(jnp.asarray(fields[".keys"]))
    noise = jax.random.wrap_key_data(jnp.asarray(fields[".noise.keys"]))
    return VideoState(
        conditions=nested("conditions"),
        negative=nested("negative"),
        keys=keys,
        order=jnp.asarray(fields[".order"]),
        noise=KeyedNoise(noise, config.num_tokens, config.token_dim),
        seen=jnp.asarray(seen),
        frame=jnp.asarray(fields[".frame"]),
        drawn=jnp.asarray(fields[".drawn"]),
    )


def read(file: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a saved session says of itself, and its arrays.

    Raises:
        NovaError: it is none, is damaged, or is of another format.
    """
    try:
        with open(file, "rb") as raw, np.load(raw, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
        about = json.loads(str(arrays.pop("about")))
        schema = about["schema"]
    except _UNREADABLE as error:
        raise NovaError(
            f"{file} is no saved session, or is damaged ({error}); give what Session.save wrote"
        ) from error
    if schema != SCHEMA:
        raise NovaError(
            f"{file} is a session of format {schema}, this version reads {SCHEMA}; go on with the "
            "version that saved it"
        )
    return about, arrays
