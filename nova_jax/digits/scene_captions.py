"""Captions of scenes: what stands in a picture, and the ways to say it.

As in `nova_jax.digits.captions`, a wording is picked by a *number*, each choice taking one digit of
it in mixed radix. A caption says what its task is about and no more: which digits there are, how
many, in what color, or where.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from nova_jax.digits.captions import COLOR_WORDS, COLORS, DIGITS, with_article

T = TypeVar("T")

#: GenEval's six tasks (arXiv 2310.11513, section 3.1), in its order.
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
#: What is trained as well, and not asked: where things are that their colors tell apart. A color is
#: a larger part of a picture than a shape, so that relations are learned from it sooner.
TRAINING_TASKS = (*TASKS, "color_position")
#: Relation -> direction (right, down) from the second thing to the first.
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
COUNTS = {2: "two", 3: "three", 4: "four"}
PLURALS = tuple(f"{name}es" if name == "six" else f"{name}s" for name in DIGITS)

_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_FRAMES = ("{}", "a picture of {}", "{}, handwritten")
#: Of a single digit: the frames, with its name or its numeral.
_WORDINGS = 2 * len(_FRAMES)

#: No caption has more words than this (tested): a text length that never cuts one.
MAX_WORDS = 16


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a picture shows, and which of it its caption tells.

    Attributes:
        task: one of `TRAINING_TASKS`.
        digits: 0..9, one for each thing.
        colors: of each, keys of `nova_jax.digits.captions.COLORS`. Told where
            `colors_told`.
        relation: one of `RELATIONS`, of the first thing to the second, in "position" and
            "color_position".
    """

    task: str
    digits: tuple[int, ...]
    colors: tuple[str, ...]
    relation: str | None = None

    @property
    def colors_told(self) -> bool:
        """Whether the caption says the colors."""
        return self.task in ("colors", "color_attr", "color_position")


def caption(scene: Scene, number: int) -> str:
    """The wording that `number` picks for a scene.

    Args:
        scene: what is shown.
        number: any non-negative integer; uniform numbers below 2**62 give every wording its share.
    """

    def pick(options: Sequence[T]) -> T:
        nonlocal number
        number, choice = divmod(number, len(options))
        return options[choice]

    frame, numeral = pick(_FRAMES), bool(pick((0, 1)))
    names = [str(digit) if numeral else DIGITS[digit] for digit in scene.digits]
    if scene.task == "counting":
        many = f"{names[0]}s" if numeral else PLURALS[scene.digits[0]]
        return frame.format(f"{COUNTS[len(names)]} {many}")
    articles = ["an" if digit == 8 else "a" for digit in scene.digits]
    things = [f"{article} {name}" for article, name in zip(articles, names, strict=True)]
    if scene.colors_told:
        words = [pick(COLOR_WORDS[color]) for color in scene.colors]
        if pick((0, 1)):
            things = [f"{thing} in {word}" for thing, word in zip(things, words, strict=True)]
        else:
            things = [
                f"{with_article(word)} {name}" for word, name in zip(words, names, strict=True)
            ]
    between = "and" if scene.relation is None else pick(_RELATION_WORDS[scene.relation])
    return frame.format(f" {between} ".join(things))


def is_seen(scene: Scene, number: int) -> bool:
    """Whether training shows what the wording that `number` picks says of a scene.

    Kept back, so that every digit, color, count and wording, and most pairs of them, is seen still:

        digit and color    8 of 80: one digit for each color
        two digits         5 of 45: those whose sum is 3 or 13, each digit in one pair
        count and digit    6 of 30
        wording and digit  10 of 60 of a single digit, which has nothing else to keep back
    """
    first, count = scene.digits[0], len(scene.digits)
    if scene.task == "counting":
        return (first + 3 * count) % 5 != 0
    if scene.task == "single_object":
        return number % _WORDINGS != first % _WORDINGS
    return (count == 1 or sum(scene.digits) not in (3, 13)) and (
        not scene.colors_told or has_seen_colors(scene)
    )


def has_seen_colors(scene: Scene) -> bool:
    """Whether all digits have colors that training shows them in, told or not."""
    return all(
        (digit + 3 * list(COLORS).index(color)) % 10
        for digit, color in zip(scene.digits, scene.colors, strict=True)
    )
