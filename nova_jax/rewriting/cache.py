"""Answers of language models on disk, in one file that several processes may write at once."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from nova_jax.files import output_folder


class Cache:
    """Entries by key in a file of JSON lines.

    A line is appended in one piece and under a lock, after what others have appended was read: the
    first entry of a key is everybody's. A line that a process left unfinished is passed over.

    Args:
        path: the file, made when it is needed.

    Raises:
        NovaError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        output_folder(path.parent)
        self.path, self._entries, self._read = path, dict[str, Mapping[str, Any]](), 0

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The entry of a key, if there is one."""
        if key not in self._entries and self.path.exists():
            with open(self.path, "rb") as file:
                self._catch_up(file)
        return self._entries.get(key)

    def add(self, key: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keeps the entry of a key; gives that which another process has kept first, if one has."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b", buffering=0) as file:
            with suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            torn = self._catch_up(file)
            if key not in self._entries:
                line = json.dumps({"key": key, **entry}, ensure_ascii=False) + "\n"
                file.write(b"\n" * torn + line.encode())
        return self._entries.setdefault(key, entry)

    def _catch_up(self, file: IO[bytes]) -> bool:
        """Reads the lines that came since the last time; says whether an unfinished one follows."""
        if os.fstat(file.fileno()).st_size < self._read:
            self._read = 0  # another file has taken its place
        file.seek(self._read)
        *lines, rest = file.read().split(b"\n")
        self._read += sum(len(line) + 1 for line in lines)
        for line in lines:
            with suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                self._entries.setdefault(entry.pop("key"), entry)
        return bool(rest)
