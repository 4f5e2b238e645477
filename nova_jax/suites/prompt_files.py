"""Prompt files of suites, read from a clone that the user has, of the version that is known here.

Their checksums can be repeated: of one file that of ``sha256sum FILE``, of a folder that of
``sha256sum *.txt | sha256sum`` in it, with LC_ALL=C.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from nova_jax.errors import NovaError


@dataclasses.dataclass(frozen=True)
class PromptFile:
    """A prompt file, or a folder of them, in a suite's repository.

    Attributes:
        path: there; "FOLDER/*.txt" is all of a folder.
        count: prompts in it.
        sha256: checksum, see above.
    """

    path: str
    count: int
    sha256: str


def read(
    folder: Path | None,
    file: PromptFile,
    parse: Callable[[Mapping[str, str]], list],
    source: str,
    *,
    verify: bool,
) -> tuple[list, str]:
    """Reads a prompt file and makes sure that it is the one that is meant.

    Args:
        folder: a clone of the repository, or the folder in it that the file lies in; None if
            there is none.
        file: which.
        parse: makes a list of what the text says, by name of the file; a ValueError, KeyError or
            TypeError means that it is no such file.
        source: repository and commit, for messages.
        verify: refuse other counts and checksums.

    Returns:
        What `parse` makes of it, and its checksum.

    Raises:
        NovaError: it is missing, unreadable, or another one.
    """
    if folder is None:
        raise NovaError(f"--prompts is missing; give a clone of {source}")
    contents = _contents(folder, file, source)
    name = file.path.rpartition("/")[2] if len(contents) == 1 else file.path
    where = folder / name if (folder / name).exists() else folder / file.path
    try:
        texts = {name: data.decode() for name, data in contents.items()}
        items = parse(texts)
    except (ValueError, KeyError, TypeError) as error:
        raise NovaError(
            f"{where} holds no prompts of this suite ({error}); give a clone of {source}"
        ) from error
    found = _checksum(file, contents)
    if verify and (len(items) != file.count or found != file.sha256):
        raise NovaError(
            f"{where} is of another version: {len(items)} prompts with SHA-256 {found}, expected "
            f"{file.count} with {file.sha256}; check out {source}, or draw these with "
            "--other_prompts, which no published number compares with"
        )
    if not items:
        raise NovaError(f"{where} holds no prompt; give a clone of {source}")
    return items, found


def joined(checksums: Mapping[str, str]) -> str:
    """One checksum of several files."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(checksums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _contents(folder: Path, file: PromptFile, source: str) -> dict[str, bytes]:
    """The bytes of the file, or of each file of the folder, by name."""
    place, _, name = file.path.rpartition("/")
    for base in (folder / place, folder):
        try:
            if found := sorted(base.glob(name)):
                return {path.name: path.read_bytes() for path in found}
        except OSError as error:
            raise NovaError(f"{base / name} cannot be read ({error.strerror})") from error
    raise NovaError(f"{folder} has no {file.path}; --prompts is a clone of {source}")


def _checksum(file: PromptFile, contents: Mapping[str, bytes]) -> str:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    return joined(digests) if "*" in file.path else next(iter(digests.values()))
