"""Shape annotations are checked at every call of a function of `nova_jax` that is imported later.

jaxtyping's own import hook wraps functions without shapes too, which slows down those that run on
the host thousands of times, and it compiles again every library that a wrapped module imports.
"""

import ast
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import jax
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.vale import Is
from jaxtyping import AbstractArray, jaxtyped

# Thousands of small arrays are judged one by one: checks would take longer than the judges.
UNCHECKED = ("nova_jax.digits.judges",)

# What stands for arrays in dataclasses that say where arrays go.
_INSTEAD = jax.ShapeDtypeStruct | jax.sharding.Sharding
_CONFIG = BeartypeConf(is_pep484_tower=True)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with checks if any of its annotations has a shape."""
    shapes = _with_shapes(function.__annotations__, function.__globals__)
    return jaxtyped(function, typechecker=_check) if shapes else function


def _check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of types without shapes mypy knows more, and protocols are no classes at run time."""
    hints = _with_shapes(function.__annotations__, {})
    function.__annotations__ = {name: _deep(hint) for name, hint in hints.items()}
    return beartype(function, conf=_CONFIG)


def _with_shapes(hints: Mapping[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, hint in hints.items():
        try:
            found[name] = eval(hint, names) if isinstance(hint, str) else hint
        except NameError:  # a class further down, which is no array
            pass
    return {name: hint for name, hint in found.items() if _has_shape(hint)}


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type):
        return issubclass(hint, AbstractArray) or bool(_fields(hint))
    return any(map(_has_shape, get_args(hint)))


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    """Those fields that have shapes, of a dataclass of the package."""
    if not (dataclasses.is_dataclass(kind) and kind.__module__.startswith("nova_jax.")):
        return {}
    hints = {field.name: field.type for field in dataclasses.fields(kind)}
    hints = _with_shapes(hints, vars(sys.modules[kind.__module__]))
    return {name: _deep(hint) for name, hint in hints.items()}


def _deep(hint: Any) -> Any:
    """The hint with what its dataclasses say of their fields, where a function takes or gives one.

    Not where one is made: trees put all kinds of things into them on their way.
    """
    if isinstance(hint, type) and _fields(hint):
        return Annotated[hint, Is[_fits]]
    if get_origin(hint) in (tuple, Union, UnionType):
        kind = tuple if get_origin(hint) is tuple else Union
        return kind[tuple(map(_deep, get_args(hint)))]
    return hint


def _fits(value: Any) -> bool:
    with jaxtyped("context"):
        return all(
            is_bearable(getattr(value, name), hint | _INSTEAD, conf=_CONFIG)
            for name, hint in _fields(type(value)).items()
        )


class Loader(SourceFileLoader, ast.NodeTransformer):
    """Decorates every function of a module."""

    def get_code(self, fullname: str) -> CodeType:
        tree = self.visit(ast.parse(self.get_data(self.path), self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        decorator = ast.parse(f"__import__({__name__!r}).checked", mode="eval").body
        node.decorator_list.append(decorator)
        return node


class _Finder(PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith("nova_jax.") or fullname in UNCHECKED:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(fullname, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder)
