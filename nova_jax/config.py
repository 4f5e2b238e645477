"""Values that a user gives, as the types say: recipes and saved configs, options, flags.

A type says what it takes besides: ``Annotated[int, Range(1)]`` is a whole number of at least 1, and
every number is finite. `from_dict` makes frozen dataclasses of plain values, `to_plain` goes back.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
import reprlib
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, cast

from nova_jax.errors import NovaError

T = TypeVar("T")

_BOUNDS = {
    "least": ("at least", operator.ge),
    "most": ("at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a value may be, for `typing.Annotated`; what is None bounds nothing.

    Attributes:
        least, most: bounds that belong to it.
        above, below: bounds that do not.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def _bounds(self) -> dict[str, float]:
        return {name: bound for name, bound in vars(self).items() if bound is not None}

    def __contains__(self, value: Any) -> bool:
        return all(_BOUNDS[name][1](value, bound) for name, bound in self._bounds().items())

    def __str__(self) -> str:
        return " and ".join(f"{_BOUNDS[name][0]} {bound}" for name, bound in self._bounds().items())


#: Counts from 1 and from 0, as far as 32 bits hold them.
Count = Annotated[int, Range(1, 2**31 - 1)]
Natural = Annotated[int, Range(0, 2**31 - 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
#: A share or a probability.
Fraction = Annotated[float, Range(0, 1)]
#: JAX makes random keys of 32 bits: a larger seed would be the same as a smaller one.
Seed = Annotated[int, Range(0, 2**32 - 1)]
#: Frames per second: clocks of video files tell milliseconds, and slower is no video.
FrameRate = Annotated[float, Range(0.1, 1000)]
#: Mean optical flow in pixels a frame, of which pictures have no more.
MotionScore = Annotated[float, Range(0, 1000)]


class Checked:
    """A frozen dataclass whose fields are of their types and ranges, however it is made.

    Raises:
        NovaError: naming the field that is not.
    """

    def __post_init__(self) -> None:
        for name, kind in field_types(cast(Any, type(self))).items():
            key = f"{type(self).__name__}.{name}"
            object.__setattr__(self, name, convert(kind, getattr(self, name), key))


@functools.cache
def field_types(kind: Any) -> Mapping[str, Any]:
    """The types of a dataclass's fields, with their ranges."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def from_dict(
    kind: type[T] | Mapping[str, type[T]],
    values: Mapping[str, Any],
    key: str = "",
    *,
    ignore_unknown: bool = False,
) -> T:
    """Builds a dataclass from plain values, checking every key and type below it.

    Args:
        kind: a dataclass whose fields are numbers, strings, tuples, mappings or dataclasses; or
            several, by what ``values["type"]`` calls them.
        values: its fields by name.
        key: how to call the whole in messages, such as "config.optimizer".
        ignore_unknown: read over keys that are no fields, for files that hold more.

    Raises:
        NovaError: naming the key.
    """
    if not isinstance(values, Mapping):
        raise NovaError(f"{key or 'the whole'} is {shown(values)}; it must hold values by name")
    if isinstance(kind, Mapping):
        name, kinds = values.get("type"), kind
        if not isinstance(name, str) or name not in kinds:
            choices = " or ".join(map(repr, kinds))
            raise NovaError(f"{_join(key, 'type')} is {shown(name)}; it must be {choices}")
        kind, values = kinds[name], {k: v for k, v in values.items() if k != "type"}
    fields = {field.name: field for field in dataclasses.fields(cast(Any, kind))}
    if ignore_unknown:
        values = {name: value for name, value in values.items() if name in fields}
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(fields)}"
            raise NovaError(f"{_join(key, name)}: no such key; {hint}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise NovaError(f"{_join(key, name)} is missing; set it in the config file")
    # In the order of the fields: what a recipe computes from others comes after them.
    kinds = field_types(cast(Any, kind))
    hints = ((name, hint) for name, hint in kinds.items() if name in values)
    return kind(**{name: convert(hint, values[name], _join(key, name)) for name, hint in hints})


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else str(name)


def convert(kind: Any, value: Any, key: str) -> Any:
    """A value as a type wants it; NumPy's numbers, ints for floats and lists for tuples will do.

    Args:
        kind: a number, text, tuple, mapping or dataclass, a choice of them, or any of these with a
            `Range`.
        value: what is given.
        key: how to call it in messages.

    Raises:
        NovaError: it is of another type, out of range or not finite.
    """
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        number, limits = convert(arguments[0], value, key), arguments[1]
        if number not in limits:
            raise NovaError(f"{key} is {shown(value)}; it must be {limits}")
        return number
    if origin in (types.UnionType, typing.Union):
        return _convert_to_one(arguments, value, key)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, cast(type, kind)):
            return value
        if isinstance(value, Mapping):
            return from_dict(cast(type, kind), value, key)
    elif origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(value) == len(arguments):
            pairs = enumerate(zip(arguments, value, strict=True))
            return tuple(convert(kind, v, f"{key}[{i}]") for i, (kind, v) in pairs)
    elif origin is Literal and any(type(value) is type(a) and value == a for a in arguments):
        return value
    elif kind is float and isinstance(value, Real) and not isinstance(value, bool):
        return _finite(value, key)
    elif kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    elif kind in (str, bool) and type(value) is kind:
        return value
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {name: convert(arguments[1], v, _join(key, name)) for name, v in value.items()}
    raise NovaError(f"{key} is {shown(value)}; it must be {described(kind)}")


def _finite(value: Real, key: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise NovaError(f"{key} is {shown(value)}; it must be finite")
    return number


def _convert_to_one(kinds: tuple[Any, ...], value: Any, key: str) -> Any:
    """`value` as one of several types; dataclasses are told apart by `type`, or it is the first."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) > 1 and all(map(dataclasses.is_dataclass, kinds)):
        if not isinstance(value, Mapping):
            matching = (kind for kind in kinds if isinstance(value, kind))
            return convert(next(matching, kinds[0]), value, key)
        named = {kind.__dataclass_fields__["type"].default: kind for kind in kinds}
        return from_dict(named, {"type": next(iter(named))} | dict(value), key)
    for kind in kinds:
        try:
            return convert(kind, value, key)
        except NovaError:
            if len(kinds) == 1:
                raise
    raise NovaError(f"{key} is {shown(value)}; it must be {' or '.join(map(described, kinds))}")


def described(kind: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return f"{described(arguments[0])}, {arguments[1]}"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    name = kind.__name__ if origin is None else str(kind)
    return name.replace("typing.", "")


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def shown(value: Any) -> str:
    """A value for a message of one line."""
    return " ".join(_SHORT.repr(value).split())


def to_plain(value: Any) -> Any:
    """The inverse of `from_dict`: dataclasses as mappings, tuples as lists, ready for JSON.

    What is told apart by a `type` that is no field of it has that too.
    """
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        names = ["type", *names] if hasattr(value, "type") and "type" not in names else names
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value
