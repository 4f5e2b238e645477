"""Recipes, which --config names: found, read, and asked which keys they have.

    digits_t2v            comes with the package
    digits_t2v:demo       a variant of it: what follows the colon, `get_config` takes
    configs/mine.py       any file whose get_config() returns a ConfigDict

An installed package has its recipes in its own folder, a clone has them beside the package.
"""

from __future__ import annotations

import difflib
import os
import re
import runpy
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nova_jax.errors import NovaError

_PACKAGE = Path(__file__).parent


def names() -> dict[str, Path]:
    """The recipes that come with the package: their files by name."""
    folders = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def find(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: path of a file, or the name of a recipe that comes with the package.

    Raises:
        NovaError: there is no such recipe; it says which there are.
    """
    if os.path.isfile(name):  # which takes a name that is too long
        return Path(name)
    known = names()
    if (stem := name.removesuffix(".py")) in known:
        return known[stem]
    close = difflib.get_close_matches(Path(stem).name, known, n=1)
    hint = f"did you mean {close[0]}? There are" if close else "give a file, or one of"
    raise NovaError(f"there is no recipe {name!r}; {hint} {', '.join(known)}")


def read(recipe: str) -> ConfigDict:
    """What a recipe's `get_config` returns.

    Args:
        recipe: see `find`; a variant may follow, after a colon.

    Raises:
        NovaError: there is no such recipe or variant, or an error in the file, with its line.
    """
    name, colon, variant = recipe.partition(":")
    path = find(name)
    try:
        config = runpy.run_path(str(path))["get_config"](*([variant] if colon else []))
    except Exception as error:  # whatever can happen in a file of Python
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        reason = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
        place = f"{path}, line {line}" if line else path
        remedy = "; its first lines say which variants it has" if colon else ""
        raise NovaError(f"recipe {recipe} cannot be read ({place}: {reason}){remedy}") from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise NovaError(f"recipe {recipe}: get_config() returns a {kind}; return a ConfigDict")
    return config


def check_keys(config: ConfigDict, arguments: Iterable[str]) -> None:
    """Looks for the keys that a command line changes.

    Args:
        config: what a recipe says.
        arguments: those that start with ``--config.`` are looked at.

    Raises:
        NovaError: the recipe has no such key; it says which there are.
    """
    for argument in arguments:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            _check_key(config, re.split(r"[.\[]", match[1].replace("]", "")), argument)


def _check_key(config: ConfigDict, keys: Iterable[str], argument: str) -> None:
    place, section = "config", config
    for key in keys:
        if isinstance(section, tuple | list):
            section = {str(i): value for i, value in enumerate(section)}
        if not isinstance(section, ConfigDict | dict):
            raise NovaError(f"{argument}: no such key; {place} is a value without keys")
        if key not in section:
            close = difflib.get_close_matches(key, section, n=1)
            hint = f"did you mean {place}.{close[0]}?" if close else _listed(place, section)
            raise NovaError(f"{argument}: no such key; {hint}")
        unset = isinstance(section, ConfigDict) and section.get_type(key) is type(None)
        place, section = f"{place}.{key}", section[key]
    if unset:
        raise NovaError(f"{argument}: the recipe has None there; change the file instead")


def _listed(place: str, section: Mapping[str, Any]) -> str:
    return f"{place} has {', '.join(section)}" if section else f"{place} is empty"
