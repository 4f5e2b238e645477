"""GenEval's six tasks on handwritten digits: a suite that needs no download and judges itself.

Up to a hundred captions of each task (`nova_jax.digits.scene_scores`), half of them of combinations
that training never shows, four pictures of each, in GenEval's layout. The judges are no model
(`nova_jax.digits.scene_judges`), and what they say of real pictures is reported beside.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from nova_jax import media
from nova_jax.digits.scene_captions import TASKS
from nova_jax.digits.scene_judges import SceneJudges, is_right
from nova_jax.digits.scene_scores import GROUPS, SceneQuestion, make_scene_questions
from nova_jax.digits.scenes import ScenesConfig, ScenesSource
from nova_jax.errors import NovaError
from nova_jax.files import write_whole
from nova_jax.suites.interface import Item, Medium, Prompts, Scores, Target

SAMPLES = 4
QUESTIONS = 100  # of each task, or as many as there are
RESULTS = "digits_results.json"
#: Real pictures that the judges are tried on.
REAL = 1_800


class Digits:
    """See `nova_jax.suites.interface.Suite`."""

    name = "digits"
    title = "Digits"
    source = "nova_jax.digits"
    medium: Medium = "picture"
    parts: tuple[str, ...] = TASKS
    size: tuple[int, int] | None = ScenesConfig.size

    def prompts(self, folder: Path | None, parts: Sequence[str], *, verify: bool) -> Prompts:
        """Its own, always the same."""
        if folder is not None:
            raise NovaError("the suite digits has its own prompts; leave --prompts away")
        questions = _questions()
        told = json.dumps([question.prompt for question in questions])
        items = [
            _item(number, question)
            for number, question in enumerate(questions)
            if question.scene.task in parts
        ]
        return Prompts(items, tuple(parts), hashlib.sha256(told.encode()).hexdigest())

    def scoring(self, out: Path, prompts: Prompts, size: tuple[int, int]) -> str:
        """Judges the pictures, and as many real ones; writes what was seen of each."""
        judges = SceneJudges(ScenesConfig())
        lines = _judged(judges, out, prompts) + _judged_real(judges)
        write_whole(out / RESULTS, json.dumps(lines, indent=0))
        return (
            f"the judges have looked at all pictures, see {out / RESULTS}:\n"
            f"  python -m nova_jax.evaluate --report={out}"
        )

    def results(self, folder: Path) -> list[Path]:
        """What `scoring` has written."""
        return sorted(folder.rglob(RESULTS))

    def reads(self, file: Path) -> bool:
        """A file of that name."""
        return file.name == RESULTS

    def scores(self, files: Sequence[Path], prompts: Path | None) -> Scores:
        """Shares of right pictures by task, 0 to 1, their mean, and that of each group."""
        if len(files) > 1:
            raise NovaError(f"{files[0]} and {files[1]} are both of digits; give one of them")
        lines = _read(files[0])
        made = [line for line in lines if line["group"] != "real"]
        whole = Counter(question.scene.task for question in _questions())
        found = Counter(line["task"] for line in made)
        missing = [
            f"digits {task}: {found[task]} of {SAMPLES * count} pictures"
            for task, count in whole.items()
            if found[task] != SAMPLES * count
        ]
        right = {group: _rates(lines, [group]) for group in (*GROUPS, "real")}
        every = _rates(lines, GROUPS)
        values = {f"digits.{task}": rate for task, rate in every.items()}
        if not missing:
            values["digits.overall"] = mean(every.values())
            values |= {f"digits.{group}": mean(right[group].values()) for group in GROUPS}
        notes = [
            f"digits, {kind}: "
            + ", ".join(f"{task} {100 * rate:.1f} %" for task, rate in right[group].items())
            for group, kind in (
                ("seen", "combinations that training shows"),
                ("unseen", "combinations that it never shows"),
                ("real", "the judges on real pictures"),
            )
        ]
        return Scores(values, missing, notes)


@functools.cache
def _questions() -> Sequence[SceneQuestion]:
    """Those of every run."""
    return make_scene_questions(QUESTIONS, seed=0)


def _item(number: int, question: SceneQuestion) -> Item:
    folder = f"images/{number:05}"
    metadata = dataclasses.asdict(question.scene) | {
        "prompt": question.prompt,
        "group": question.group,
    }
    return Item(
        prompt=question.prompt,
        targets=tuple(Target(f"{folder}/samples/{i:05}.png", (i,)) for i in range(SAMPLES)),
        metadata={f"{folder}/metadata.jsonl": f"{json.dumps(metadata)}\n".encode()},
    )


def _judged(judges: SceneJudges, out: Path, prompts: Prompts) -> list[dict[str, Any]]:
    """A line for each picture of a run."""
    questions = {q.prompt: q for q in _questions()}
    return [
        _line(judges, question, media.read_image(out / target.path), target.path)
        for item in prompts.items
        for question in [questions[item.prompt]]
        for target in item.targets
    ]


def _judged_real(judges: SceneJudges) -> list[dict[str, Any]]:
    """A line for each of `REAL` pictures of held-out handwriting."""
    real = ScenesConfig(split="held_out", combinations="all", num_scenes=REAL)
    rows = ScenesSource(real).batch(np.arange(REAL))
    columns = zip(rows["caption"], rows["scene"], rows["frames"][:, 0], strict=True)
    return [
        _line(judges, SceneQuestion(caption, scene, "real"), picture, f"real {number}")
        for number, (caption, scene, picture) in enumerate(columns)
    ]


def _line(
    judges: SceneJudges, question: SceneQuestion, picture: np.ndarray, name: str
) -> dict[str, Any]:
    things = judges(picture)
    return {
        "filename": name,
        "task": question.scene.task,
        "group": question.group,
        "prompt": question.prompt,
        "correct": is_right(question.scene, things),
        "found": [[thing.color, thing.digit, *thing.middle] for thing in things],
    }


def _rates(lines: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> dict[str, float]:
    """Shares of right pictures by task, of those that there are."""
    right = {
        task: [x["correct"] for x in lines if x["task"] == task and x["group"] in groups]
        for task in TASKS
    }
    return {task: mean(answers) for task, answers in right.items() if answers}


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        lines = json.loads(file.read_text(encoding="utf-8"))
        for line in lines:
            if line["task"] not in TASKS or line["group"] not in (*GROUPS, "real"):
                raise ValueError(f"task {line['task']!r} of {line['group']!r}")
            if type(line["correct"]) is not bool:
                raise ValueError(f"correct {line['correct']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise NovaError(
            f"{file} is no result of the suite digits ({error!r}); delete it and draw again"
        ) from error
    return lines
