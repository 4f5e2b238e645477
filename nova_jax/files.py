"""Files that are there whole or not at all, and whether they are what was written."""

from __future__ import annotations

import os
import pathlib
import zlib
from typing import TypeVar, cast

from etils import epath

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
