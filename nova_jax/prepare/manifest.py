"""What to prepare: files and captions, from a manifest or from a directory with captions beside.

A manifest is JSONL, CSV (with a header) or Parquet, one row a file or a part of one:

    path            relative to the manifest, or absolute
    caption         what the clip shows
    short_caption   the same in a few words; optional
    start, end      seconds of a video, to take that part alone; optional
    label           class, an integer, for class-conditional models; optional

In a directory, ``clip.mp4`` has its caption in ``clip.txt``: the first line that is not empty, and
a second one, if any, as the short caption.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nova_jax.errors import NovaError
from nova_jax.media import VIDEOS

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_COLUMNS = ("path", "caption", "short_caption", "start", "end", "label")
_MANIFESTS = (".jsonl", ".csv", ".parquet")

#: A row that cannot be used: where it is, and why.
Skip = tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One row: a picture, a video, or a part of one.

    Attributes:
      path: the file.
      name: its path as the manifest or the directory has it.
      caption, short_caption: "" for none.
      start, end: seconds.
      label: -1 for none.
    """

    path: Path
    name: str
    caption: str
    short_caption: str = ""
    start: float = 0.0
    end: float = math.inf
    label: int = -1

    @property
    def key(self) -> str:
        """The same for the same row in every run, wherever the directory lies."""
        values = dataclasses.asdict(self) | {"path": None}
        return hashlib.blake2b(json.dumps(values).encode(), digest_size=10).hexdigest()

    @property
    def is_picture(self) -> bool:
        """Whether the file is a picture, by its suffix."""
        return self.path.suffix.lower() in PICTURES


def read_manifest(source: Path) -> tuple[list[Item], list[Skip]]:
    """Reads a manifest, or finds the pictures and videos below a directory.

    Rows that cannot be used are left out and listed; whether their files can be decoded shows when
    they are. Order is that of the rows, or of sorted paths; a row that is there twice counts once.

    Raises:
      NovaError: there is no such file, it is of another kind, or it lacks a column.
    """
    if os.path.isdir(source):  # which takes a name that is too long
        rows: Iterator[tuple[str, Mapping[str, Any] | str]] = _walk(source)
        base = source
    elif not os.path.isfile(source):
        raise NovaError(f"{source} does not exist; give a directory or a manifest")
    elif source.suffix.lower() in _MANIFESTS:
        reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[source.suffix.lower()]
        rows, base = reader(source), source.parent
    else:
        raise NovaError(f"{source} is no manifest; its name must end in {', '.join(_MANIFESTS)}")

    items: dict[str, Item] = {}
    skips: list[Skip] = []
    for where, row in rows:
        item = row if isinstance(row, str) else _item(row, base)
        if isinstance(item, str):
            skips.append((where, item))
        elif item.key in items:
            skips.append((where, "the same row is there before"))
        else:
            items[item.key] = item
    return list(items.values()), skips


def _item(row: Mapping[str, Any], base: Path) -> Item | str:
    """A row as an item, or why it is none."""
    values = {name: row[name] for name in _COLUMNS if row.get(name) not in (None, "")}
    name, caption = values.get("path"), values.get("caption", "")
    short = values.get("short_caption", "")
    if not isinstance(name, str):
        return "no path"
    path = base / name
    if path.suffix.lower() not in (*VIDEOS, *PICTURES):
        return f"neither a picture nor a video, by its suffix {path.suffix!r}"
    if not path.is_file():
        return "no such file"
    if not path.stat().st_size:
        return "the file is empty"
    if not (isinstance(caption, str) and isinstance(short, str)):
        return "the caption is no text"
    caption, short = " ".join(caption.split()), " ".join(short.split())
    try:
        label = int(values.get("label", -1))
        start, end = float(values.get("start", 0.0)), float(values.get("end", math.inf))
    except (TypeError, ValueError, OverflowError):
        return "start, end or label is no number"
    if not caption and label < 0:
        return "no caption"
    if not 0 <= start < end:
        return f"start {start:g} and end {end:g} hold nothing"
    return Item(
        path=path,
        name=name,
        caption=caption,
        short_caption=short,
        start=start,
        end=end,
        label=label,
    )


def _walk(directory: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    for path in sorted(directory.rglob("*")):
        if path.suffix.lower() not in (*VIDEOS, *PICTURES):
            continue
        name = path.relative_to(directory).as_posix()
        text = path.with_suffix(".txt")
        try:
            lines = text.read_text(encoding="utf-8-sig").splitlines() if text.is_file() else []
        except UnicodeDecodeError:
            yield name, f"{text.name} is not UTF-8"
            continue
        lines = [line for line in lines if line.strip()] + ["", ""]
        yield name, {"path": name, "caption": lines[0], "short_caption": lines[1]}


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    known: set[str] = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield where, "not UTF-8"
                continue
            except ValueError:
                row = None
            if not isinstance(row, dict):
                yield where, "not a JSON object"
                continue
            known |= row.keys()
            yield row.get("path") or where, row
    if known:
        _check_columns(path, known)


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    # Bytes that are not UTF-8 come through as lone surrogates, for the row alone to be refused.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(path, reader.fieldnames or ())
        try:
            for row in reader:
                where = f"{path.name}:{reader.line_num}"
                text = "".join(value for value in row.values() if isinstance(value, str))
                if any("\udc80" <= letter <= "\udcff" for letter in text):
                    yield where, "not UTF-8"
                else:
                    yield row["path"] or where, row
        except csv.Error as error:
            raise NovaError(f"{path}:{reader.line_num} is not CSV: {error}; mend it") from error


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        _check_columns(path, names)
        columns = [name for name in _COLUMNS if name in names]
        number = 0
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield row["path"] or f"{path.name}, row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise NovaError(f"{path} cannot be read as Parquet ({reason}); write it again") from error


def _check_columns(path: Path, names: Any) -> None:
    for name in ("path", "caption"):
        if name not in names and not (name == "caption" and "label" in names):
            raise NovaError(
                f"{path} has no column {name!r}, only {', '.join(sorted(map(str, names)))}; "
                f"known are {', '.join(_COLUMNS)}"
            )
