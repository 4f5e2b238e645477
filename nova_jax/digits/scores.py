"""Questions to a model (prompts with known answers) and the statistics of its answers."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from nova_jax.digits.captions import SPEEDS, numbered_caption
from nova_jax.digits.clips import combinations
from nova_jax.digits.judges import TRAITS, Verdict

GROUPS = ("seen", "unseen", "all")


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt and what its video must show; None for what the prompt does not ask."""

    prompt: str
    digit: int
    color: str
    path: str | None
    speed: str | None
    group: str  # "seen" or "unseen" in training, as a combination of digit, color and path


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


def make_questions(number: int, *, seed: int, moving: bool = True) -> list[Question]:
    """Makes prompts in varied wording, alternately of seen and unseen combinations.

    Each group goes through its combinations in random order and starts anew when all were asked.
    Every fourth prompt has the short form, which need not mention speed and is not judged on it.
    The same seed gives the same questions. An image model is not asked for motion (`moving`).
    """
    rng = np.random.default_rng(seed)
    questions = []
    known = {group: combinations(group) for group in ("seen", "unseen")}
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


def is_right(question: Question, verdict: Verdict, trait: str) -> bool:
    """Whether the judges saw what the prompt asked of one trait."""
    return getattr(question, trait) == getattr(verdict, trait)


def tally(
    questions: Sequence[Question], verdicts: Iterable[Verdict]
) -> dict[str, dict[str, Score]]:
    """Counts right answers by group ("seen", "unseen", "all") and trait asked for."""
    answers = list(zip(questions, verdicts, strict=True))
    table: dict[str, dict[str, Score]] = {}
    for group in GROUPS:
        table[group] = {}
        for trait in TRAITS:
            judged = [
                is_right(question, verdict, trait)
                for question, verdict in answers
                if group in ("all", question.group) and getattr(question, trait) is not None
            ]
            if judged:
                table[group][trait] = Score(sum(judged), len(judged))
    return table


def format_table(table: dict[str, dict[str, Score]]) -> str:
    """The tally as text: percent right, its 95 % interval, and how many were judged."""
    traits = list(table["all"])
    lines = [f"{'':8}" + "".join(f"{trait:>24}" for trait in traits)]
    for group, scores in table.items():
        cells = []
        for trait in traits:
            score = scores.get(trait, Score(0, 0))
            low, high = score.interval
            interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
            cells.append(f"{100 * score.rate:6.1f} {interval:>13} /{score.total:<3}")
        lines.append(f"{group:8}" + "".join(cells))
    return "\n".join(lines)
