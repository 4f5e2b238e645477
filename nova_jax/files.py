"""Files that are there whole or not at all, and whether they are what was written; JSON."""

from __future__ import annotations

import json
import math
import os
import pathlib
import zlib
from typing import Any, TypeVar, cast

from etils import epath

from nova_jax.errors import NovaError

AnyPath = TypeVar("AnyPath", pathlib.Path, epath.Path)


def write_whole(path: AnyPath, text: str) -> None:
    """Writes a text file, replacing an earlier one; whoever reads it meanwhile finds one of both.

    The file beside it, ``NAME.PID.partial``, is what a process that is killed may leave.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def crc32(path: pathlib.Path | epath.Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := cast(bytes, file.read(1 << 20)):
            crc = zlib.crc32(chunk, crc)
    return crc


def read_json(path: pathlib.Path | epath.Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON object, all of whose numbers are finite.

    Args:
        path: the file.
        remedy: what to do about a damaged one.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        NovaError: it cannot be read, or is no such object.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise NovaError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(values, dict):
        raise NovaError(f"{path} is not a JSON object; {remedy}")
    return values


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not finite")
    return number
