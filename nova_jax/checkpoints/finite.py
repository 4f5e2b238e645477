"""Numbers that are not finite: found where the arrays lie, in one pass over all, and named.

What holds one is neither saved nor loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nova_jax.errors import NovaError

#: Arrays that a message names.
_NAMED = 3


def not_finite(tree: Any) -> dict[str, str]:
    """Names the arrays of a pytree that are not finite.

    The arrays may lie on the devices of several processes, which then call this together.

    Returns:
        By dotted path, how many of an array's numbers: "3 of 9 float32"; the same in every process.
    """
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="."): array
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(array.dtype, jnp.inexact)
    }
    if all(map(_in_memory, arrays.values())):
        # A program of all these sums takes longer to trace than NumPy to count.
        counts = [np.count_nonzero(~np.isfinite(array)) for array in arrays.values()]
    else:
        counts = jax.device_get(_counts(list(arrays.values())))
    return {
        name: f"{count} of {array.size} {array.dtype}"
        for count, (name, array) in zip(counts, arrays.items(), strict=True)
        if count
    }


def check_finite(tree: Any, place: object, remedy: str) -> None:
    """Raises a `NovaError` where an array of a pytree is not finite; see `refuse`."""
    refuse(not_finite(tree), place, remedy)


def refuse(found: Mapping[str, str], place: object, remedy: str) -> None:
    """Raises a `NovaError` if `not_finite` found something, naming where, what, and the remedy."""
    if found:
        raise NovaError(f"{place}: {in_words(found)}; {remedy}")


def in_words(found: Mapping[str, str]) -> str:
    """The first of the arrays that `not_finite` found, and how many there are."""
    named = ", ".join(f"{name} ({count})" for name, count in list(found.items())[:_NAMED])
    more = f" and {len(found) - _NAMED} more arrays" if len(found) > _NAMED else ""
    return f"not finite are numbers of {named}{more}"


def _in_memory(array: Any) -> bool:
    """Whether NumPy can look at an array where it lies."""
    return isinstance(array, np.ndarray) or (
        array.is_fully_addressable and all(one.platform == "cpu" for one in array.devices())
    )


@jax.jit
def _counts(arrays: Sequence[jax.Array]) -> jax.Array:
    """How many numbers of each array are not finite."""
    counts = [jnp.sum(~jnp.isfinite(array), dtype=jnp.uint32) for array in arrays]
    return jnp.stack(counts) if counts else jnp.zeros(0, jnp.uint32)
