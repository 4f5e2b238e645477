"""Files: where they may go, whole or not at all, and whether they are what was written; JSON.

A process that is killed leaves no half file under a name of its own; what it may leave ends in
``.partial``, is looked at by nobody, and can be deleted.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from etils import epath

from nova_jax.errors import NovaError

AnyPath = TypeVar("AnyPath", pathlib.Path, epath.Path)


def output_folder(place: str | os.PathLike[str]) -> pathlib.Path:
    """A local directory, proved to take files: one is written there and nothing is left of it.

    A directory that is missing stays so. All that would be made is made for a moment, in a
    directory with a name that no other process has.

    Raises:
        NovaError: no file can be written there.
    """
    if not os.fspath(place):
        raise NovaError("the name of the place to write to is empty; name a directory")
    if "://" in os.fspath(place):
        raise NovaError(f"{place} is no local directory; write to one, and copy from there")
    folder = pathlib.Path(place)
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".", suffix=".partial") as trial:
            file = pathlib.Path(trial) / folder.relative_to(there) / "file"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"\0")
    except OSError as error:
        reason = f"{there}: {error.strerror}"
        raise NovaError(f"{place} cannot be written to ({reason}); choose another place") from error
    return folder


def cache_folder() -> pathlib.Path:
    """Where the user keeps what can be made again: XDG_CACHE_HOME, or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "nova_jax"


def new_output(place: str | os.PathLike[str]) -> pathlib.Path:
    """The name of a file or directory that can be made there and is not there yet.

    Raises:
        NovaError: something has that name, or nothing can be written beside it.
    """
    path = pathlib.Path(place)
    if os.fspath(place) and os.path.lexists(path):
        raise NovaError(f"{path} exists already; choose another name")
    output_folder(place)  # its own name may be too long
    return path


@contextmanager
def unfinished(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A hidden name beside `path` for what is given its own name once it is whole.

    Whatever has the hidden name at the end, a file or a directory, is removed.
    """
    hidden = path.with_name(f".{uuid.uuid4().hex[:12]}.partial")
    try:
        yield hidden
    finally:
        if hidden.is_dir():
            shutil.rmtree(hidden, ignore_errors=True)
        else:
            hidden.unlink(missing_ok=True)


def publish(hidden: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a file that is whole its name, in one step that only one of several processes takes.

    Where the file system has no hard links, the name is taken first, by an empty file.

    Raises:
        FileExistsError: something has that name; it stays as it is.
    """
    try:
        os.link(hidden, path)
    except FileExistsError:
        raise
    except OSError:
        open(path, "xb").close()
        hidden.replace(path)


def write_whole(path: AnyPath, content: str | bytes) -> None:
    """Writes a file, replacing an earlier one; whoever reads it meanwhile finds one of both.

    The file beside it, ``NAME.PID.partial``, is what a process that is killed may leave.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
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
