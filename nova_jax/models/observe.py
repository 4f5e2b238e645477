"""Looking into a model while it is traced: what named places of its forward pass give.

Models call `observe` at such places. Nothing happens there, and the compiled program is the same,
unless what is traced is wrapped by `observed`, which returns what was seen next to the result.

What is seen leaves a traced function only as an output of it. What scan, checkpoint or grad trace
by itself is therefore wrapped too, and `hand_on` names outside what came out. That much any way
of recording needs: `nnx.sow` would moreover write into modules, which hold parameters and nothing
else, and effects such as checkify's checks cannot pass through shard_map.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TypeVar

import jax

Result = TypeVar("Result")
# In the order of the forward pass, which this pytree keeps where a dict's are sorted.
Places = OrderedDict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class _Observer:
    look: Callable[[jax.Array], jax.Array]
    places: Places


_current: ContextVar[_Observer | None] = ContextVar("observer", default=None)


def observe(name: str, x: jax.Array) -> None:
    """Names a place, and what it gives, to whoever observes; nothing at all if nobody does."""
    if (observer := _current.get()) is not None:
        observer.places[name] = observer.look(x)


def observed(
    function: Callable[..., Result], look: Callable[[jax.Array], jax.Array] | None = None
) -> Callable[..., tuple[Result, Places]]:
    """A function that also returns what places in it gave.

    What is compiled inside `function`, by a `jax.jit` of its own, is not seen.

    Args:
        function: what to observe.
        look: what to keep of a value. By default what an observer around it keeps; if there is
            none, nothing is observed and there are no places.
    """

    def call(*arguments: object) -> tuple[Result, Places]:
        outer = _current.get()
        keep = look if look is not None or outer is None else outer.look
        if keep is None:
            return function(*arguments), Places()
        observer = _Observer(keep, Places())
        token = _current.set(observer)
        try:
            return function(*arguments), observer.places
        finally:
            _current.reset(token)

    return call


def hand_on(places: Mapping[str, jax.Array], iterations: int | None = None) -> None:
    """Gives what was observed inside a transformation to the observer around it.

    Args:
        places: what `observed` returned inside.
        iterations: of a scan, whose values are stacked; `name` is then ``name.0``, ``name.1``, ...
    """
    if (observer := _current.get()) is None:
        return
    if iterations is None:
        observer.places.update(places)
    for i in range(iterations or 0):
        observer.places.update({f"{name}.{i}": stack[i] for name, stack in places.items()})
