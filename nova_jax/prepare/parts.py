"""What a preparation has on disk before it is finished: parts, which processes write on their own.

    out/lock-i-of-n           who does shard i of n now
    out/parts/settings.json   what all parts have in common: the config and the encoders
    out/parts/KEY.json        one part: which rows it covers, its files, what was skipped and why
    out/parts/KEY-BUCKET      its files, until all rows are done
    out/parts/numbers.json    which number each of those files gets as a shard

A part is complete once its JSON file is there: a run that is killed loses the part it was at. The
rows that no part covers are what is left to do, so any number of processes, on one machine or on
many, can share the work, and rows can be added later.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nova_jax.config import from_dict
from nova_jax.data.fingerprints import same_probe
from nova_jax.data.records import (
    Bucket,
    Encoding,
    Metadata,
    Shard,
    ShardWriter,
    features,
    shard_name,
    write_json,
    write_metadata,
)
from nova_jax.errors import NovaError
from nova_jax.prepare.clips import ClipConfig
from nova_jax.prepare.manifest import Skip

_PARTS, _SETTINGS, _NUMBERS, REPORT = "parts", "settings.json", "numbers.json", "report.json"


class Parts:
    """The parts of a directory, begun now or gone on with.

    Args:
      out: the directory that is being prepared.
      clips: which clips are taken.
      encoding: how they are encoded; None for pixels.

    Raises:
      NovaError: the directory was begun with other settings or other encoders.
    """

    def __init__(self, out: Path, clips: ClipConfig, encoding: Encoding | None) -> None:
        # Before threads decode: while tensorflow-datasets is imported, no other thread can import
        # a module of its own package (etils.epy.lazy_imports changes `import` for all of them).
        features(encoding)
        self.out, self.encoding, self._directory = out, encoding, out / _PARTS
        self._directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "kind": "raw" if encoding is None else "latents",
            "clips": dataclasses.asdict(clips),
            "encoding": None if encoding is None else dataclasses.asdict(encoding),
        }
        path, settings = self._directory / _SETTINGS, json.loads(json.dumps(settings))
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            write_json(path, settings)
        except ValueError as error:
            raise NovaError(f"{path} is damaged ({error}); choose another --out") from error
        else:
            _check_same(out, settings, there)

    def begin(self, key: str) -> Part:
        """Begins a part; one of that key that was never finished is written anew."""
        return Part(self._directory, key, self.encoding)

    def read(self) -> list[dict[str, Any]]:
        """The complete parts: their "rows" (keys), "files" and "skipped".

        Raises:
          NovaError: the file of one is damaged.
        """
        found = []
        for path in sorted(self._directory.glob("*.json")):
            if path.name not in (_SETTINGS, _NUMBERS):
                try:
                    found.append(json.loads(path.read_text(encoding="utf-8")))
                except ValueError as error:
                    raise NovaError(
                        f"{path} is damaged; delete it to prepare its rows again"
                    ) from error
        return found

    def finish(self, skipped: Sequence[Skip]) -> Metadata:
        """Makes shards of the files of all parts and describes them; a number once given stays.

        Args:
          skipped: inputs that could not be used, for the report.
        """
        with open(self._directory / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several may find at once that nothing is left
            files = [file for part in self.read() for file in part["files"]]
            path = self._directory / _NUMBERS
            numbers = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            for file in files:
                numbers.setdefault(file["file"], len(numbers))
            write_json(path, numbers)
            files.sort(key=lambda file: numbers[file["file"]])
            of_file = [from_dict(Bucket, file["bucket"], "bucket") for file in files]
            buckets = sorted(set(of_file))
            shards = []
            for file, bucket in zip(files, of_file, strict=True):
                name = file["file"]
                shard = file | {"file": shard_name(numbers[name]), "bucket": buckets.index(bucket)}
                shards.append(Shard(**shard))
                if (self._directory / name).exists():
                    (self._directory / name).replace(self.out / shard["file"])
            metadata = Metadata(
                kind="raw" if self.encoding is None else "latents",
                buckets=tuple(buckets),
                shards=tuple(shards),
                encoding=self.encoding,
                skipped=dict(Counter(why.split(":")[0] for _, why in skipped)),
            )
            listed = [{"input": where, "reason": why} for where, why in skipped]
            write_json(self.out / REPORT, {"skipped": listed})
            for path in self._directory.iterdir():  # of parts that were never finished
                if path.suffix != ".json" and path.name != "lock":
                    path.unlink(missing_ok=True)
            if shards:
                write_metadata(self.out, metadata)
            return metadata


class Part:
    """Rows and files that are complete together, once `close` has returned.

    Attributes:
      rows: keys of the rows that it covers.
      skipped: inputs among them that could not be used.
    """

    def __init__(self, directory: Path, key: str, encoding: Encoding | None) -> None:
        self._directory, self._key, self._encoding = directory, key, encoding
        self._writers: dict[Bucket, ShardWriter] = {}
        self.rows: list[str] = []
        self.skipped: list[Skip] = []

    def write(self, bucket: Bucket, record: Mapping[str, Any]) -> None:
        """Adds a record to the file of its bucket."""
        if bucket not in self._writers:
            path = self._directory / f"{self._key}-{bucket.name}"
            self._writers[bucket] = ShardWriter(path, self._encoding)
        self._writers[bucket].write(record)

    def close(self) -> None:
        """Finishes the files, and then says that they are there."""
        files = [
            {"file": writer.path.name, "bucket": dataclasses.asdict(bucket), **writer.close()}
            for bucket, writer in sorted(self._writers.items())
        ]
        part = {"rows": self.rows, "files": files, "skipped": self.skipped}
        write_json(self._directory / f"{self._key}.json", part)


def _check_same(out: Path, settings: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raises a `NovaError` if a directory was begun with other settings than those of this run."""
    if there["kind"] != settings["kind"]:
        raise NovaError(f"{out} holds {there['kind']} records; choose another --out")
    for name, value in settings["clips"].items():
        if (old := there["clips"].get(name)) != value:
            raise NovaError(
                f"{out} was begun with clips.{name} {old}, now it is {value}; choose another --out "
                "or undo the change"
            )
    for name, value in (settings["encoding"] or {}).items():
        old = there["encoding"].get(name)
        if name == "source":  # the same parts may lie elsewhere
            continue
        if not (same_probe(old, value) if isinstance(value, list) else old == value):
            part = "text encoder" if name.startswith("text") else "autoencoder"
            raise NovaError(
                f"{out} was begun with another {part} ({name} differs), that of "
                f"{there['encoding']['source']}; choose another --out or that --checkpoint"
            )
