"""The one reader of recipes and saved configs: plain values to frozen dataclasses, and back."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from nova_jax.errors import NovaError

T = TypeVar("T")


def from_dict(cls: type[T], values: Mapping[str, Any], key: str) -> T:
    """Builds a dataclass from plain values, checking every key and type below it.

    Args:
        cls: a dataclass whose fields are numbers, strings, tuples, mappings or dataclasses.
        values: its fields by name.
        key: how to call the whole in messages, such as "config.optimizer".

    Raises:
        NovaError: naming the key.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(fields)}"
            raise NovaError(f"{key}.{name}: no such key; {hint}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise NovaError(f"{key}.{name} is missing; set it in the config file")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(hints[name], v, f"{key}.{name}") for name, v in values.items()})


def _convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as the annotated type `kind`; an int may stand for a float, a list for a tuple."""
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        return _convert(kinds[0] if len(kinds) == 1 else _by_type(kinds, value, key), value, key)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_dict(typing.cast(type, kind), value, key)
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(value) == len(arguments):
            pairs = enumerate(zip(arguments, value, strict=True))
            return tuple(_convert(kind, v, f"{key}[{i}]") for i, (kind, v) in pairs)
    elif origin is Literal and value in arguments:
        return value
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif kind in (int, str, bool) and type(value) is kind:
        return value
    elif origin in (dict, Mapping.__mro__[0]) and isinstance(value, Mapping):
        return {name: _convert(arguments[1], v, f"{key}.{name}") for name, v in value.items()}
    wanted = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    wanted = " or ".join(map(repr, arguments)) if origin is Literal else wanted
    raise NovaError(f"{key} is {value!r}; it must be {wanted.replace('typing.', '')}")


def _by_type(kinds: Sequence[Any], value: Any, key: str) -> Any:
    """The one of several dataclasses that ``value["type"]`` names, or else the first."""
    names = [kind.__dataclass_fields__["type"].default for kind in kinds]
    name = value.get("type", names[0]) if isinstance(value, Mapping) else names[0]
    if name not in names:
        raise NovaError(f"{key}.type is {name!r}; it must be {' or '.join(map(repr, names))}")
    return kinds[names.index(name)]


def to_plain(value: Any) -> Any:
    """The inverse of `from_dict`: dataclasses as mappings, tuples as lists, ready for JSON."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value
