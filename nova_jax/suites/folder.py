"""The folder of a run: what it is of, what is there and whole, and files that appear whole.

    OUT/run.json         what was asked for, see `Folder.begin`
    OUT/prompts.jsonl    a line an item: its prompt, what the model is told, files and their seeds
    OUT/speed-i-of-n.json    how fast shard i of n was drawn
    OUT/lock-i-of-n      who draws shard i of n now
    OUT/...              the suite's files, and none beside them: some scorers take every file

A file gets its name when it is whole, in one step. What a killed process leaves behind lies in
``OUT/.unfinished-i-of-n``, and the next one at that shard clears it away.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from nova_jax import files, media
from nova_jax.config import shown
from nova_jax.distributed.lock import claim_share
from nova_jax.errors import NovaError
from nova_jax.suites.interface import Item, Target, sample_seed

RUN, PROMPTS, SPEED = "run.json", "prompts.jsonl", "speed-{}-of-{}.json"
#: What of `run.json` says where things came from; that may be elsewhere.
_ORIGIN = ("checkpoint", "preset")


class Folder:
    """A folder, held by this process for one shard of its work; see `claim`.

    Args:
        path: the folder.
        shard: (i, n), the share of this process.
    """

    def __init__(self, path: Path, shard: tuple[int, int]) -> None:
        self.path, self.shard = path, shard
        self._unfinished = path / ".unfinished-{}-of-{}".format(*shard)

    @classmethod
    @contextmanager
    def claim(cls, path: Path, shard: tuple[int, int]) -> Iterator[Folder]:
        """Keeps other processes from a share of the work in a folder, which is made if missing.

        Raises:
            NovaError: another process is at some of it; nothing is changed then.
        """
        with claim_share(path, shard):
            folder = cls(path, shard)
            shutil.rmtree(folder._unfinished, ignore_errors=True)
            try:
                yield folder
            finally:
                shutil.rmtree(folder._unfinished, ignore_errors=True)

    def compare(self, record: Mapping[str, Any]) -> None:
        """Compares what is asked for with what the folder is of, as far as either says.

        Raises:
            NovaError: naming what differs.
        """
        if (there := read_run(self.path)) is None:
            return
        there, asked = _flat(there), _flat(record)
        different = [key for key in asked if key in there and there[key] != asked[key]]
        if set(different) - set(_ORIGIN):
            told = (f"{key} {there[key]}, not {asked[key]}" for key in different)
            raise NovaError(f"{self.path} has results of {'; '.join(told)}; choose another --out")

    def begin(self, record: Mapping[str, Any], targets: Iterable[Target]) -> None:
        """Writes down what the folder is of, or finds that it is of just that.

        Args:
            record: plain values by name; those of the model and the options decide what is drawn.
            targets: the files of the run.

        Raises:
            NovaError: it is of something else, or has such files and says nothing of them.
        """
        if not (self.path / RUN).exists():
            if found := next((t.path for t in targets if (self.path / t.path).exists()), None):
                raise NovaError(
                    f"{self.path} has {found} and no {RUN}, so nobody knows what drew it; choose "
                    "another --out"
                )
            self._publish(RUN, json.dumps(record, indent=1).encode())
        self.compare(record)

    def told(
        self, items: Sequence[Item], seed: int, reads: Callable[[Sequence[str]], Sequence[str]]
    ) -> Mapping[str, str]:
        """What the model is told for each prompt: the prompt, or what it was rewritten to.

        Prompts are rewritten once; whoever comes later, to the same shard or another one, reads
        what the first has written.

        Args:
            items: of the run.
            seed: of the run.
            reads: gives what the model reads for each of several prompts.

        Raises:
            NovaError: the file that the first has written is damaged.
        """
        file = self.path / PROMPTS
        if not file.exists():
            prompts = [item.prompt for item in items]
            lines = map(_line, items, reads(prompts), [seed] * len(items))
            self._publish(PROMPTS, "".join(lines).encode())
        try:
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            told = {row["prompt"]: row["rewritten"] or row["prompt"] for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise NovaError(f"{file} is damaged ({error!r}); choose another --out") from error
        if left := next((item.prompt for item in items if item.prompt not in told), None):
            raise NovaError(f"{file} lacks the prompt {shown(left)}; choose another --out")
        return told

    def missing(self, targets: Sequence[Target]) -> list[Target]:
        """Those that are not there, or not whole."""
        return missing(self.path, targets)

    def write(self, path: str, content: bytes) -> None:
        """Writes a file, in place of one that is not whole."""
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._hidden(content) as hidden:
            hidden.replace(file)

    def _publish(self, name: str, content: bytes) -> None:
        """Writes a file that the first of several processes writes."""
        with self._hidden(content) as hidden:
            try:
                files.publish(hidden, self.path / name)
            except FileExistsError:
                pass

    @contextmanager
    def _hidden(self, content: bytes) -> Iterator[Path]:
        """The content in a file that has no name of its own yet, on disk to the last byte."""
        self._unfinished.mkdir(parents=True, exist_ok=True)
        with files.unfinished(self._unfinished / "file") as hidden:
            with open(hidden, "xb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())  # some file systems say only now that they are full
            yield hidden


def missing(folder: Path, targets: Sequence[Target]) -> list[Target]:
    """Those of the files that are not there, or not whole."""
    with ThreadPoolExecutor() as threads:
        whole = threads.map(lambda target: media.is_whole(folder / target.path), targets)
        return [target for target, there in zip(targets, whole, strict=True) if not there]


def read_run(folder: Path) -> dict[str, Any] | None:
    """What a folder says it is of; None where it says nothing.

    Raises:
        NovaError: what it says is damaged.
    """
    try:
        return files.read_json(folder / RUN, "choose another --out")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _line(item: Item, text: str, seed: int) -> str:
    drawn = [
        {"file": target.path, "seeds": [sample_seed(item.prompt, s, seed) for s in target.samples]}
        for target in item.targets
    ]
    rewritten = None if text == item.prompt else text
    row = {"prompt": item.prompt, "rewritten": rewritten, "files": drawn}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON has it, every value by itself."""
    return flatten_dict(json.loads(json.dumps(record)), sep=".")
