"""How activations are spread over devices, without the models knowing of any.

Models name the logical axes of what flows between their blocks. Where a layout is in use, such as
`nova_jax.distributed.mesh.MeshLayout`, names are looked up there; elsewhere nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import jax

#: Logical names of an array's dimensions; None: never split.
AxisNames = tuple[str | None, ...]


class Layout(Protocol):
    """Where arrays lie, by the names of their axes."""

    def ways(self, name: str) -> int: ...  # noqa: D102
    def constrain(self, x: jax.Array, names: AxisNames) -> jax.Array: ...  # noqa: D102
    def split(  # noqa: D102
        self, function: Callable[..., jax.Array], names: Sequence[AxisNames], like: int
    ) -> Callable[..., jax.Array]: ...


_current: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def use(layout: Layout) -> Iterator[None]:
    """Traces models for this layout."""
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)


def in_use() -> bool:
    """Whether arrays are spread over devices by a layout."""
    return _current.get() is not None


def ways(name: str) -> int:
    """Among how many devices a logical axis is split."""
    layout = _current.get()
    return 1 if layout is None else layout.ways(name)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """The same array, spread as the names of its axes say; None: not split."""
    layout = _current.get()
    return x if layout is None else layout.constrain(x, names)


def split(
    function: Callable[..., jax.Array], names: Sequence[AxisNames], like: int = 0
) -> Callable[..., jax.Array]:
    """A function of arrays that each device computes for its own part of them.

    Args:
        function: of whole arrays, or of any equal parts of the named axes.
        names: axes of each argument.
        like: the argument whose layout the result has.
    """
    layout = _current.get()
    return function if layout is None else layout.split(function, names, like)
