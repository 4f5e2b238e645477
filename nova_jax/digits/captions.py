"""Captions of moving digits: every attribute a clip has, and the many ways to say it.

A caption is picked by a *number*: each choice (word, phrase, sentence pattern) takes one digit of
it in mixed radix, so a caption costs no random generator and is the same everywhere.

Every wording names exactly one digit, one color and one path; no word stands for two of them.
"""

from collections.abc import Sequence

from nova_jax.errors import NovaError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

#: Color name -> RGB at full brightness (0..255), bright and far apart in hue.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (255, 36, 36),
    "orange": (255, 140, 0),
    "yellow": (255, 240, 40),
    "green": (40, 225, 60),
    "cyan": (40, 225, 240),
    "blue": (64, 96, 255),
    "magenta": (240, 60, 230),
    "white": (255, 255, 255),
}

#: Path name -> direction (right, down) of its first half, each -1, 0 or 1.
PATHS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up_left": (-1, -1),
    "up_right": (1, -1),
    "down_left": (-1, 1),
    "down_right": (1, 1),
    "bounce_left": (-1, 0),
    "bounce_right": (1, 0),
    "bounce_up": (0, -1),
    "bounce_down": (0, 1),
}

SPEEDS = ("slow", "fast")

COLOR_WORDS = {
    "red": ("red", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "lemon"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue", "cobalt"),
    "magenta": ("magenta", "pink"),
    "white": ("white", "ivory"),
}

_STRAIGHT = {
    "left": ("left", "to the left", "leftward"),
    "right": ("right", "to the right", "rightward"),
    "up": ("up", "upward", "to the top"),
    "down": ("down", "downward", "to the bottom"),
}
PATH_PHRASES = (
    _STRAIGHT
    | {
        f"{vertical}_{side}": (
            f"diagonally {vertical} {side}",
            f"{vertical} and to the {side}",
            f"to the {corner} {side} corner",
        )
        for vertical, corner in (("up", "upper"), ("down", "lower"))
        for side in ("left", "right")
    }
    | {
        f"bounce_{name}": tuple(
            f"{phrase} and {end}"
            for phrase in phrases[:2]
            for end in ("bounces", "bounces back", "then comes back")
        )
        for name, phrases in _STRAIGHT.items()
    }
)
SHORT_PATHS = (
    {name: (name,) for name in _STRAIGHT}
    | {f"{v}_{side}": (f"{v} {side}",) for v in ("up", "down") for side in ("left", "right")}
    | {f"bounce_{name}": (f"{name} and back", f"{name}, bounces") for name in _STRAIGHT}
)
SPEED_WORDS = {
    "slow": ("slowly", "gently", "at low speed"),
    "fast": ("quickly", "fast", "at high speed"),
}
VERBS = {
    "slow": ("moves", "goes", "glides", "drifts"),
    "fast": ("moves", "goes", "glides", "races"),
}

# {a} carries its article ("a red", "an orange"); {digit} is a word or a numeral.
_LONG = (
    "{a} {digit} {verb} {speed} {path}",
    "{a} {digit} {verb} {path}, {speed}",
    "{a} number {digit} {verb} {speed} {path}",
    "the digit {digit} in {color} {verb} {path}, {speed}",
    "the digit {digit} in {color} {verb} {speed} {path}",
    "the number {digit}, {color}, {verb} {speed} {path}",
    "{speed}, {a} {digit} {verb} {path}",
    "a handwritten {digit} in {color} {verb} {speed} {path}",
)
_SHORT = (
    "{color} {digit}, {path}",
    "{color} {digit}, {speed}, {path}",
    "{digit} in {color}, {path}",
    "{digit} in {color}, {speed}, {path}",
)
_LONG_STILL = (
    "{a} {digit}",
    "{a} number {digit}",
    "the digit {digit} in {color}",
    "the number {digit}, {color}",
    "a picture of {a} {digit}",
    "a handwritten {digit} in {color}",
)
_SHORT_STILL = ("{color} {digit}", "{digit} in {color}")

#: No caption has more words than this (tested): a text length that never cuts one.
MAX_WORDS = 16


def numbered_caption(
    digit: int, color: str, path: str | None, speed: str | None, number: int, *, short: bool = False
) -> str:
    """Returns the wording that `number` picks for a clip, or for a picture.

    Args:
      digit: 0..9.
      color: a key of `COLORS`.
      path: a key of `PATHS`; None for a picture, whose caption says nothing of motion.
      speed: one of `SPEEDS`; needed with a path, ignored without.
      number: any non-negative integer; uniform numbers below 2**62 give every wording its share.
      short: the short form ("blue 3, up and back"), which may leave the speed out.
    """

    def pick(options: Sequence[str]) -> str:
        nonlocal number
        number, choice = divmod(number, len(options))
        return options[choice]

    color_word = pick(COLOR_WORDS[color])
    words = {
        "color": color_word,
        "a": with_article(color_word),
        "digit": pick((DIGITS[digit], str(digit))),
    }
    if path is None:
        return pick(_SHORT_STILL if short else _LONG_STILL).format(**words)
    assert speed is not None
    if short:
        words |= {"speed": speed, "path": pick(SHORT_PATHS[path])}
        return pick(_SHORT).format(**words)
    words |= {
        "verb": pick(VERBS[speed]),
        "speed": pick(SPEED_WORDS[speed]),
        "path": pick(PATH_PHRASES[path]),
    }
    return pick(_LONG).format(**words)


def prompt(digit: int, color: str, path: str | None = None, speed: str = "slow") -> str:
    """The plainest wording, one per combination: "a red seven moves slowly to the left".

    With no path, a picture's: "a red seven". Evaluation asks with these; training sees them too.

    Raises:
      NovaError: an unknown digit, color, path or speed.
    """
    known = (
        ("digit", digit, range(10)),
        ("color", color, COLORS),
        ("path", path, (*PATHS, None)),
        ("speed", speed, SPEEDS),
    )
    for name, value, values in known:
        if value not in values:
            choices = ", ".join(str(choice) for choice in values if choice is not None)
            raise NovaError(f"unknown {name} {value!r}; choose one of {choices}")
    subject = f"{with_article(color)} {DIGITS[digit]}"
    if path is None:
        return subject
    return f"{subject} moves {SPEED_WORDS[speed][0]} {PATH_PHRASES[path][1]}"


def with_article(word: str) -> str:
    """A word of `COLOR_WORDS` after "a" or "an"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def vocabulary() -> tuple[str, ...]:
    """Every word a caption can hold, lower case, sorted, punctuation left out."""
    texts = [*DIGITS, *(str(digit) for digit in range(10)), *SPEEDS, "a", "an"]
    for table in (COLOR_WORDS, PATH_PHRASES, SHORT_PATHS, SPEED_WORDS, VERBS):
        texts += [phrase for phrases in table.values() for phrase in phrases]
    fields = dict.fromkeys(("a", "color", "digit", "verb", "speed", "path"), "")
    for pattern in (*_LONG, *_SHORT, *_LONG_STILL, *_SHORT_STILL):
        texts.append(pattern.format(**fields))
    return tuple(sorted(set(" ".join(texts).replace(",", " ").split())))
