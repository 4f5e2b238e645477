"""DPG-Bench (Hu et al. 2024, arXiv:2403.05135): long prompts, asked about in a tree of questions.

Read in TencentQQGYLab/ELLA at 3c228f1: dpg_bench/prompts, dpg_bench/compute_dpg_bench.py,
dpg_bench/dist_eval.sh.

    OUT/images/ID.png      four samples, two by two; ID.txt is the prompt's file

Two things of the scorer count in every published number, and here too. It passes over the first row
of dpg_bench.csv, so that partiprompts97 lacks its first question (issue 61 of the repository).
Where others depend on that, the prompt fails and is left out: tables are of 1,064 prompts. And
processes that work together give their categories in an order of their own, so the printed
categories of several processes are mixed up; with the repository at hand they are computed anew
from the answers.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from nova_jax.errors import NovaError
from nova_jax.suites import prompt_files
from nova_jax.suites.interface import Item, Medium, Prompts, Scores, Target
from nova_jax.suites.prompt_files import PromptFile

SAMPLES, LEFT_OUT = 4, "partiprompts97"
PROMPTS = PromptFile(
    path="dpg_bench/prompts/*.txt",
    count=1065,
    sha256="317085a5cddf9620595bb38cba7b9fa25ecfb081846bc91b840c98366d46f56e",
)
QUESTIONS = "dpg_bench/dpg_bench.csv"
CATEGORIES = ("global", "entity", "attribute", "relation", "other")
RESULTS = re.compile(r"dpg.*_results\.txt")


class Question(NamedTuple):
    """A question about a picture.

    Attributes:
        text: in words.
        parents: numbers of the questions that must be answered with yes for it to count.
        category: one of `CATEGORIES`, "-" and a finer one.
    """

    text: str
    parents: tuple[int, ...]
    category: str


class DPG:
    """See `nova_jax.suites.interface.Suite`."""

    name = "dpg"
    title = "DPG-Bench"
    source = "github.com/TencentQQGYLab/ELLA at 3c228f1"
    medium: Medium = "picture"
    size: tuple[int, int] | None = None
    parts: tuple[str, ...] = ("all",)

    def prompts(self, folder: Path | None, parts: Sequence[str], *, verify: bool) -> Prompts:
        """One grid of four for each file."""
        texts, sha256 = prompt_files.read(folder, PROMPTS, _parse, self.source, verify=verify)
        items = [
            Item(prompt, (Target(f"images/{name}.png", tuple(range(SAMPLES))),))
            for name, prompt in texts
        ]
        return Prompts(items, tuple(parts), sha256, verify)

    def scoring(self, out: Path, prompts: Prompts, size: tuple[int, int]) -> str:
        """The command of the repository; its resolution is the side of one tile."""
        shape = "" if size[0] == size[1] else " (the scorer wants squares, these are none)"
        return (
            f"in a clone of {self.source}, with requirements-for-dpg_bench.txt{shape}:\n"
            f"  bash dpg_bench/dist_eval.sh {out}/images {size[0]}\n"
            f"  python -m nova_jax.evaluate --report={out} --prompts=THE_CLONE"
        )

    def results(self, folder: Path) -> list[Path]:
        """The scorer writes among the pictures."""
        return [file for file in sorted(folder.rglob("*_results.txt")) if self.reads(file)]

    def reads(self, file: Path) -> bool:
        """Files that the scorer named, but not its answers beside them."""
        return RESULTS.fullmatch(file.name) is not None

    def scores(self, files: Sequence[Path], prompts: Path | None) -> Scores:
        """The mean over prompts, times 100, and categories where they are to be had."""
        if len(files) > 1:
            raise NovaError(f"{files[0]} and {files[1]} are both of DPG-Bench; give one of them")
        (file,) = files
        lines = file.read_text(encoding="utf-8").splitlines()
        grids = _read_grids(file, lines)
        notes = []
        if len(grids) < PROMPTS.count - (LEFT_OUT not in grids):
            return Scores({}, [f"DPG-Bench: {len(grids)} of {PROMPTS.count} prompts"])
        if LEFT_OUT not in grids:
            notes.append(f"DPG-Bench: of 1,064 prompts, without {LEFT_OUT}, where it fails")
        values = {"overall": 100 * mean(grids.values())}
        answers = file.with_name(file.name.replace(".txt", "_detail.txt"))
        table = prompts and prompts / QUESTIONS
        if table and table.is_file() and answers.is_file():
            questions = read_questions(table)
            overall, categories = tree(questions, read_answers(answers, questions))
            if abs(overall - values["overall"] / 100) > 1e-6:
                raise NovaError(
                    f"{answers} gives {100 * overall:.4f} and {file} {values['overall']:.4f}; they "
                    "are of different runs, so score again"
                )
            values |= {name: 100 * value for name, value in categories.items()}
        else:
            values |= _read_categories(lines)
            notes.append(
                "DPG-Bench: categories as the scorer printed them, right of one process only; "
                "--prompts=CLONE computes them"
            )
        return Scores({f"dpg.{name}": value for name, value in values.items()}, (), notes)


def tree(
    questions: Mapping[str, Mapping[int, Question]],
    answers: Mapping[str, Sequence[Mapping[int, bool]]],
) -> tuple[float, dict[str, float]]:
    """The score out of answers: a yes counts only below a yes.

    A picture's score is the share of its questions that count, a prompt's the mean over its
    pictures. Categories are of the answers themselves, of each prompt's last picture, as the scorer
    has them.

    Args:
        questions: by prompt and number, in the order of the file.
        answers: by prompt, for each picture whether a question was answered with yes.

    Returns:
        The mean over prompts and the means by category, 0 to 1.
    """
    of_prompts, by_category = [], defaultdict[str, list[bool]](list)
    for item, pictures in answers.items():
        of_pictures = []
        for yes in pictures:
            counts = dict(yes)
            for number, question in questions[item].items():
                # A parent that does not count itself is a no to its children, if it comes first.
                if not all(counts[parent] for parent in question.parents):
                    counts[number] = False
            of_pictures.append(mean(counts.values()))
        of_prompts.append(mean(of_pictures))
        for number, question in questions[item].items():
            by_category[question.category.partition("-")[0].strip()].append(pictures[-1][number])
    return mean(of_prompts), {name: mean(yes) for name, yes in by_category.items()}


def read_questions(table: Path) -> dict[str, dict[int, Question]]:
    """The questions as the scorer reads them; a prompt whose questions lack a parent is left out.

    Raises:
        NovaError: it is no such table.
    """
    questions: dict[str, dict[int, Question]] = defaultdict(dict)
    try:
        with open(table, encoding="utf-8", newline="") as file:
            for index, row in enumerate(csv.DictReader(file)):
                parents = tuple(int(number) for number in row["dependency"].split(","))
                category = row["tuple"].partition("(")[0].strip()
                if index:  # the scorer passes over the first
                    questions[row["item_id"]][int(row["proposition_id"])] = Question(
                        row["question_natural_language"],
                        tuple(number for number in parents if number),
                        category,
                    )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NovaError(f"{table} is no table of questions ({error!r}); fetch it again") from error
    return {
        item: asked
        for item, asked in questions.items()
        if all(parent in asked for question in asked.values() for parent in question.parents)
    }


def read_answers(
    file: Path, questions: Mapping[str, Mapping[int, Question]]
) -> dict[str, list[dict[int, bool]]]:
    """What the scorer was answered, by prompt, picture and question.

    Raises:
        NovaError: an answer is missing or to another question.
    """
    found: dict[str, dict[str, dict[str, bool]]] = defaultdict(lambda: defaultdict(dict))
    for line in file.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(.*), \((\d+, \d+, \d+, \d+)\), (.*), ([^,]*)", line)
        if match is None:
            raise NovaError(f"{file} holds no answers of DPG-Bench ({line[:60]!r}); score again")
        item = Path(match[1]).name.partition(".")[0]
        found[item][match[2]][match[3]] = match[4] == "yes"
    answers: dict[str, list[dict[int, bool]]] = {}
    for item, tiles in found.items():
        if item not in questions:
            continue
        asked = questions[item]
        for tile in tiles.values():
            if left := [q.text for q in asked.values() if q.text not in tile]:
                raise NovaError(f"{file} has no answer of {item} to {left[0]!r}; score again")
        answers[item] = [
            {number: tile[question.text] for number, question in asked.items()}
            for tile in tiles.values()
        ]
    return answers


def _parse(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Prompts by what their files are called."""
    for name, text in texts.items():
        if not text.strip():
            raise ValueError(f"{name} is empty")
    return [(name.partition(".")[0], text.strip()) for name, text in texts.items()]


def _read_grids(file: Path, lines: Sequence[str]) -> dict[str, float]:
    """The mean score of each grid: "PATH, score, score, score, score, mean" before the summary."""
    grids: dict[str, float] = {}
    for line in lines:
        if line.startswith("Model: "):
            return grids
        path, *scores = line.rsplit(", ", SAMPLES + 1)
        try:
            *of_samples, average = map(float, scores)
            if len(of_samples) != SAMPLES or abs(mean(of_samples) - average) > 1e-6:
                raise ValueError(f"not {SAMPLES} scores and their mean")
        except ValueError as error:
            raise NovaError(
                f"{file} is no result of DPG-Bench with PIC_NUM={SAMPLES}: {line[:80]!r} ({error})"
            ) from error
        item = Path(path).name.partition(".")[0]
        if item in grids:
            raise NovaError(f"{file} has {item} twice; it is of two runs, so score again")
        grids[item] = average
    raise NovaError(f"{file} has no summary at its end; the scorer was stopped, so score again")


def _read_categories(lines: Sequence[str]) -> dict[str, float]:
    """The summary's "L1 category scores"."""
    pairs = (re.fullmatch(r"\t(\w+): ([\d.]+)", line) for line in lines)
    return {p[1].lower(): float(p[2]) for p in pairs if p and p[1].lower() in CATEGORIES}
