"""The one reader of recipes and saved configs: plain values to frozen dataclasses, and back."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

from nova_jax.errors import NovaError

T = TypeVar("T")


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
        raise NovaError(f"{key or 'the whole'} is {values!r}; it must hold values by name")
    if isinstance(kind, Mapping):
        name, kinds = values.get("type"), kind
        if not isinstance(name, str) or name not in kinds:
            choices = " or ".join(map(repr, kinds))
            raise NovaError(f"{_join(key, 'type')} is {name!r}; it must be {choices}")
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
    hints = typing.get_type_hints(kind)
    # As the fields are declared: recipes compute some values from those that come first.
    given = {name: values[name] for name in fields if name in values}
    return kind(**{name: _convert(hints[name], v, _join(key, name)) for name, v in given.items()})


def check_types(config: Any) -> None:
    """Raises a `NovaError` where a field, given without `from_dict`, is not of its type."""
    for name, kind in typing.get_type_hints(type(config)).items():
        _convert(kind, getattr(config, name), name)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else str(name)


def _convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as the annotated type `kind`; an int may stand for a float, a list for a tuple."""
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _convert_to_one(arguments, value, key)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_dict(cast(type, kind), value, key)
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
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {name: _convert(arguments[1], v, _join(key, name)) for name, v in value.items()}
    raise NovaError(f"{key} is {value!r}; it must be {_described(kind)}")


def _convert_to_one(kinds: tuple[Any, ...], value: Any, key: str) -> Any:
    """`value` as one of several types; dataclasses are told apart by `type`, or it is the first."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) > 1 and all(map(dataclasses.is_dataclass, kinds)):
        if not isinstance(value, Mapping):
            return _convert(kinds[0], value, key)
        named = {kind.__dataclass_fields__["type"].default: kind for kind in kinds}
        return from_dict(named, {"type": next(iter(named))} | dict(value), key)
    for kind in kinds:
        try:
            return _convert(kind, value, key)
        except NovaError:
            if len(kinds) == 1:
                raise
    raise NovaError(f"{key} is {value!r}; it must be {' or '.join(map(_described, kinds))}")


def _described(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    name = kind.__name__ if typing.get_origin(kind) is None else str(kind)
    return name.replace("typing.", "")


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
