"""How much memory there is, how much arrays take, and the line that refuses what does not fit."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nova_jax.errors import NovaError

# Where Linux says how much a container may use: control groups, version 2 and 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Part(NamedTuple):
    """A part of the memory that something needs.

    Attributes:
        name: what it is for.
        bytes: how much.
        lower: options that make it smaller; some part of what is asked for has one.
    """

    name: str
    bytes: float
    lower: Sequence[str]


def host_memory() -> int:
    """Bytes of this machine's memory, or what the container may use of it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file; "max"
            found.append(int(Path(file).read_text()))
    return min(found)


def device_memory(device: jax.Device) -> int:
    """Bytes that programs may use of a device; a CPU has the machine's."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or host_memory()


def device_bytes(tree: Any) -> int:
    """Bytes of arrays on one device; abstract ones have shardings, the host's count as whole."""
    return sum(
        math.prod(
            leaf.shape if isinstance(leaf, np.ndarray) else leaf.sharding.shard_shape(leaf.shape)
        )
        * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def check_fits(
    what: str, parts: Sequence[Part], available: float, place: str, remark: str = ""
) -> None:
    """Raises if all parts together take more than is available.

    Args:
        what: needs them.
        parts: of what it needs.
        available: bytes.
        place: what has as much.
        remark: what else helps.

    Raises:
        NovaError: with both numbers, and what makes the largest part smaller.
    """
    needed = sum(part.bytes for part in parts)
    largest = max((part for part in parts if part.lower), key=lambda part: part.bytes)
    if needed > available:
        raise NovaError(
            f"{what} takes about {size_text(needed)} of memory, {size_text(largest.bytes)} of that "
            f"for {largest.name}; {place} has {size_text(available)}; lower "
            f"{' or '.join(largest.lower)}{f', or {remark}' if remark else ''}"
        )


def size_text(size: float) -> str:
    """Bytes, in GB or what fits them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size / 1e3:.1f} kB"
