"""Questions to a model (prompts with known answers) and the statistics of its answers."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nova_jax.digits.captions import SPEEDS, numbered_caption
from nova_jax.digits.clips import combinations
from nova_jax.digits.judges import TRAITS, Verdict

GROUPS = ("seen", "unseen", "all")
#: What is counted of an answer, in the order of the table: a name, and the trait it is about. The
#: first says most: a clip's whole looks right while frames of it are wrong.
MEASURES = {
    "digit in every frame": "digit",
    "color in every frame": "color",
    "digit on average": "digit",
    "color on average": "color",
    "path": "path",
    "speed": "speed",
}
#: Most columns of the table by frame.
COLUMNS = 12


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt and what its video must show; None for what the prompt does not ask."""

    prompt: str
    digit: int
    color: str
    path: str | None
    speed: str | None
    group: str  # "seen" or "unseen" in training, as a combination of digit, color and path; "real"


@dataclasses.dataclass(frozen=True)
class Score:
    """How many of `total` answers were right."""

    right: int
    total: int

    @property
    def rate(self) -> float:
        """Share of right answers, 0..1."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the rate by Wilson's score method (Wilson 1927)."""
        if not self.total:
            return math.nan, math.nan
        z, n, p = 1.959964, self.total, self.rate
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        margin = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, center - margin), min(1.0, center + margin)


def make_questions(
    number: int, *, seed: int, moving: bool = True, walls: bool = False
) -> list[Question]:
    """Makes prompts in varied wording, alternately of seen and unseen combinations.

    Each group goes through its combinations in random order and starts anew when all were asked.
    Every fourth prompt has the short form, which need not mention speed and is not judged on it.
    The same seed gives the same questions. An image model is not asked for motion (`moving`),
    and between `walls` no path is called a bounce.
    """
    rng = np.random.default_rng(seed)
    questions = []
    known = {group: combinations(group, walls=walls) for group in ("seen", "unseen")}
    order = {group: rng.permutation(len(triples)) for group, triples in known.items()}
    for index in range(number):
        group = ("seen", "unseen")[index % 2]
        digit, color, path = known[group][order[group][index // 2 % len(order[group])]]
        speed, short = SPEEDS[rng.integers(len(SPEEDS))], index // 2 % 4 == 3
        wording = int(rng.integers(2**62))
        asked = path if moving else None
        prompt = numbered_caption(digit, color, asked, speed, wording, short=short)
        told = speed if moving and not short else None
        questions.append(Question(prompt, digit, color, asked, told, group))
    return questions


def real_questions(clips: dict[str, Any]) -> list[Question]:
    """Real clips, as `DigitsSource.batch` returns them, as questions that they answer right."""
    columns = [clips[name] for name in ("caption", *TRAITS)]
    groups = ["real"] * len(columns[0])
    return [Question(*row) for row in zip(*columns, groups, strict=True)]


def without_motion(questions: Sequence[Question]) -> list[Question]:
    """The same prompts, to be judged neither on path nor on speed."""
    return [dataclasses.replace(question, path=None, speed=None) for question in questions]


def right_frames(question: Question, verdict: Verdict, trait: str) -> list[bool]:
    """In which frames the judges saw the "digit" or the "color" that the prompt asked for."""
    return [seen == getattr(question, trait) for seen in getattr(verdict, f"{trait}s")]


def is_right(question: Question, verdict: Verdict, measure: str) -> bool:
    """Whether the judges saw what the prompt asked of one of `MEASURES`."""
    trait = MEASURES[measure]
    if measure.endswith("every frame"):
        return all(right_frames(question, verdict, trait))
    return getattr(question, trait) == getattr(verdict, trait)


Answers = Sequence[tuple[Question, Verdict]]


def _by_group(answers: Answers, count: Callable[[Answers], Any]) -> dict[str, Any]:
    """What `count` makes of each group of answers that there is: "seen", "unseen", "all"."""
    chosen = {group: [a for a in answers if group in ("all", a[0].group)] for group in GROUPS}
    return {group: count(some) for group, some in chosen.items() if some}


def tally(answers: Answers) -> dict[str, dict[str, Score]]:
    """Counts right answers by group ("seen", "unseen", "all") and measure that was asked for."""

    def count(some: Answers) -> dict[str, Score]:
        judged = {
            measure: [is_right(*answer, measure) for answer in some if asks(answer[0], trait)]
            for measure, trait in MEASURES.items()
        }
        return {name: Score(sum(right), len(right)) for name, right in judged.items() if right}

    return _by_group(answers, count)


def tally_frames(answers: Answers) -> dict[str, dict[str, list[Score]]]:
    """Counts right answers by group, trait ("digit", "color") and frame; clips of one length."""

    def count(some: Answers) -> dict[str, list[Score]]:
        right = {trait: [right_frames(*a, trait) for a in some] for trait in ("digit", "color")}
        return {
            trait: [Score(sum(frame), len(frame)) for frame in zip(*clips, strict=True)]
            for trait, clips in right.items()
        }

    return _by_group(answers, count)


def asks(question: Question, trait: str) -> bool:
    """Whether a prompt says what the video must show of a trait."""
    return getattr(question, trait) is not None


def format_table(table: dict[str, dict[str, Score]]) -> str:
    """The tally as text: percent right, its 95 % interval, and how many were judged."""
    lines = [f"{'':20}" + "".join(f"{group:>26}" for group in table)]
    for measure in table["all"]:
        cells = []
        for scores in table.values():
            score = scores.get(measure, Score(0, 0))
            low, high = score.interval
            interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
            cells.append(f"{100 * score.rate:7.1f} {interval:>13} /{score.total:<4}")
        lines.append(f"{measure:20}" + "".join(cells))
    return "\n".join(lines)


def format_frames(rows: dict[str, list[Score]]) -> str:
    """Percent right by frame as text, one row a name; of long clips evenly spaced frames."""
    length = max(map(len, rows.values()))
    shown = np.unique(np.linspace(1, length, min(length, COLUMNS)).round().astype(int))
    lines = [f"{'frame':20}" + "".join(f"{number:7}" for number in shown)]
    for name, scores in rows.items():
        cells = [f"{100 * scores[n - 1].rate:7.1f}" for n in shown if n <= len(scores)]
        lines.append(f"{name:20}" + "".join(cells))
    return "\n".join(lines)
