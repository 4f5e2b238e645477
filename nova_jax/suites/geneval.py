"""GenEval (Ghosh et al. 2023, arXiv:2310.11513): objects, their number, color and position.

Read in djghosh13/geneval at af4902f: prompts/evaluation_metadata.jsonl, README.md,
evaluation/evaluate_images.py, evaluation/summary_scores.py.

    OUT/images/00000/metadata.jsonl            the line of the prompt file
    OUT/images/00000/samples/00000.png … 00003.png
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from nova_jax.errors import NovaError
from nova_jax.suites import prompt_files
from nova_jax.suites.interface import Item, Medium, Prompts, Scores, Target
from nova_jax.suites.prompt_files import PromptFile

SAMPLES = 4
#: Prompts of each task, in the order of the paper's tables.
TASKS: Mapping[str, int] = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
PROMPTS = PromptFile(
    path="prompts/evaluation_metadata.jsonl",
    count=553,
    sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
)
RESULTS = "results.jsonl"


class GenEval:
    """See `nova_jax.suites.interface.Suite`."""

    name = "geneval"
    title = "GenEval"
    source = "github.com/djghosh13/geneval at af4902f"
    medium: Medium = "picture"
    size: tuple[int, int] | None = None
    parts = tuple(TASKS)

    def prompts(self, folder: Path | None, parts: Sequence[str], *, verify: bool) -> Prompts:
        """Items keep their numbers where only some tasks are drawn."""
        lines, sha256 = prompt_files.read(folder, PROMPTS, _parse, self.source, verify=verify)
        items = [
            _item(number, line, task["prompt"])
            for number, (line, task) in enumerate(lines)
            if task["tag"] in parts
        ]
        return Prompts(items, tuple(parts), sha256, verify)

    def scoring(self, out: Path, prompts: Prompts, size: tuple[int, int]) -> str:
        """The commands of the repository, for an environment of its own with a GPU."""
        return (
            f"in a clone of {self.source}, with its environment:\n"
            f"  python evaluation/evaluate_images.py {out}/images --outfile {out}/{RESULTS} "
            "--model-path DETECTOR\n"
            f"  python -m nova_jax.evaluate --report={out}"
        )

    def results(self, folder: Path) -> list[Path]:
        """Files named as the scorer's README names them."""
        return sorted(folder.rglob(RESULTS))

    def reads(self, file: Path) -> bool:
        """Any .jsonl: no other suite has them."""
        return file.suffix == ".jsonl"

    def scores(self, files: Sequence[Path], prompts: Path | None) -> Scores:
        """Shares of right pictures by task, 0 to 1; "overall" is the mean of the six."""
        if len(files) > 1:
            raise NovaError(f"{files[0]} and {files[1]} are both of GenEval; give one of them")
        pictures = _read(files[0])
        right: dict[str, list[bool]] = defaultdict(list)
        by_prompt: dict[str, list[bool]] = defaultdict(list)
        for picture in pictures:
            right[picture["tag"]].append(picture["correct"])
            by_prompt[picture["prompt"]].append(picture["correct"])
        values, missing = {}, []
        for task, count in TASKS.items():
            if len(right[task]) == count * SAMPLES:
                values[f"geneval.{task}"] = mean(right[task])
            else:
                missing.append(f"GenEval {task}: {len(right[task])} of {count * SAMPLES} pictures")
        if not missing:
            values["geneval.overall"] = overall({task: mean(right[task]) for task in TASKS})
            values["geneval.pictures"] = mean(picture["correct"] for picture in pictures)
            values["geneval.prompts"] = mean(map(any, by_prompt.values()))
        return Scores(values, missing)


def overall(tasks: Mapping[str, float]) -> float:
    """The unweighted mean of the six tasks, whatever their numbers of prompts."""
    return mean(tasks[task] for task in TASKS)


def _parse(texts: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Each line as it stands and what it says."""
    (text,) = texts.values()
    lines = [(line, json.loads(line)) for line in text.splitlines() if line.strip()]
    for _, task in lines:
        if task["tag"] not in TASKS or not isinstance(task["prompt"], str):
            raise ValueError(f"a task {task['tag']!r}")
    return lines


def _item(number: int, line: str, prompt: str) -> Item:
    folder = f"images/{number:05}"
    return Item(
        prompt=prompt,
        targets=tuple(Target(f"{folder}/samples/{i:05}.png", (i,)) for i in range(SAMPLES)),
        metadata={f"{folder}/metadata.jsonl": f"{line}\n".encode()},
    )


def _read(file: Path) -> list[dict[str, Any]]:
    """One dictionary a picture; each picture once."""
    pictures = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            picture = json.loads(line)
            if type(picture["correct"]) is not bool or picture["tag"] not in TASKS:
                raise ValueError(f"correct {picture['correct']!r} of {picture['tag']!r}")
            pictures.append({name: picture[name] for name in _COLUMNS})
        except (ValueError, KeyError, TypeError) as error:
            raise NovaError(
                f"{file}, line {number}, is no result of GenEval's evaluate_images.py ({error!r}); "
                "score again"
            ) from error
    twice = [name for name, n in Counter(p["filename"] for p in pictures).items() if n > 1]
    if twice:
        raise NovaError(f"{file} has {twice[0]} twice; it is of two runs, so score again")
    return pictures


_COLUMNS = ("filename", "tag", "prompt", "correct")
