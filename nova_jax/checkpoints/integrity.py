"""What every checkpoint of this project has: config.json, checksums, and errors in one line.

Orbax reads some damaged files without complaint, hence the checksums: whatever is not exactly as
it was written is refused before Orbax sees it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from etils.epath import Path

from nova_jax.errors import NovaError
from nova_jax.files import crc32, read_json, write_whole

FORMAT = {"format": "nova_jax", "version": 1}
CONFIG, CHECKSUMS = "config.json", "checksums.json"
PARAMS, CHECKPOINTS = "params", "checkpoints"  # of a model directory, of a work directory


def read_config(directory: str | os.PathLike[str], name: str = CONFIG) -> dict[str, Any]:
    """Reads ``directory/config.json``, or the same by another name.

    Raises:
        NovaError: if it is damaged, or of something else.
    """
    file = Path(directory) / name
    config = read_json(file, "restore it from a copy")
    if config.keys() & {"_class_name", "model_type"}:
        raise NovaError(
            f"{file} is not of nova_jax but of a part of a released model; give the directory that "
            f"{Path(directory).name}/ is in"
        )
    if config.get("format") != FORMAT["format"]:
        raise NovaError(f"{file} is not of nova_jax; give a nova_jax checkpoint, or convert it")
    if config.get("version") != FORMAT["version"]:
        raise NovaError(
            f"{file} has format version {config.get('version')}, this nova_jax reads "
            f"{FORMAT['version']}; install the version that wrote it"
        )
    if type(config.get("step", 0)) is not int:
        raise NovaError(f"{file} is damaged: step is no number; restore it from a copy")
    return config


def write_config(
    directory: str | os.PathLike[str], config: Mapping[str, Any], name: str = CONFIG
) -> None:
    """Writes ``directory/config.json``, or the same by another name, whole or not at all."""
    directory = Path(directory)
    write_whole(directory / name, json.dumps(config, indent=2) + "\n")


def write_checksums(directory: str | os.PathLike[str]) -> None:
    """Records what every file in a subdirectory of `directory` holds.

    Files of `directory` itself may change: config.json by hand, Orbax's own by Orbax.
    """
    directory = Path(directory)
    folders = [path for path in directory.iterdir() if path.is_dir()]
    files = sorted(file for folder in folders for file in _files(folder))
    table = {str(file.relative_to(directory)): _recorded(file) for file in files}
    write_whole(directory / CHECKSUMS, json.dumps(table, indent=1) + "\n")


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def verify_checksums(directory: str | os.PathLike[str]) -> None:
    """Compares the files of a checkpoint with what was written.

    Raises:
        NovaError: naming the first file that is missing, cut short or changed.
    """
    directory = Path(directory)
    remedy = "restore it from a copy"
    listing = directory / CHECKSUMS
    try:
        table = read_json(listing, remedy)
    except (OSError, NovaError) as error:
        raise NovaError(f"checkpoint file {listing} is missing or damaged; {remedy}") from error
    for name, recorded in table.items():
        file = directory / name
        if not file.is_file():
            raise NovaError(f"checkpoint file {file} is missing; {remedy}")
        if _recorded(file) != recorded:
            raise NovaError(f"checkpoint file {file} is damaged or cut short; {remedy}")


def _recorded(file: Path) -> list[int]:
    return [file.stat().length, crc32(file)]


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path that does not depend on the working directory; gs:// and s3:// never do."""
    path = Path(path)
    return path if path.is_absolute() else path.absolute()


@contextmanager
def config_errors(directory: Path, name: str = CONFIG) -> Iterator[None]:
    """Says which file a part of the config that makes no sense is in."""
    try:
        yield
    except NovaError as error:
        raise NovaError(f"{directory / name}: {error}") from error
    except (KeyError, TypeError) as error:
        raise NovaError(f"{directory / name}: {error}; restore it from a copy") from error


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Whatever Orbax cannot read is damage: it has no one exception for it."""
    try:
        yield
    except Exception as error:
        raise NovaError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); restore it from a copy"
        ) from error


@contextmanager
def writing(place: Path, arrays: Any = ()) -> Iterator[None]:
    """Turns a full disk into a user's error, where possible before anything is written.

    Orbax's threads would each find it with a traceback, and TensorStore reports it in many ways.

    Args:
        place: where is written to, itself or below.
        arrays: what is written, as far as it is known.

    Raises:
        NovaError: the disk is full, or `arrays` have no room on it.
    """
    remedy = "free some and run the same command again"
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    if needed and "://" not in str(place):
        there = next(path for path in (place, *place.parents) if path.exists())
        if (free := shutil.disk_usage(there).free) < needed:
            raise NovaError(
                f"{place}: no space left on device for a checkpoint of {needed >> 20} MiB "
                f"({free >> 20} MiB free); {remedy}"
            )
    try:
        yield
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error) and "ENOSPC" not in str(error):
            raise
        raise NovaError(f"{place}: no space left on device; {remedy}") from error
