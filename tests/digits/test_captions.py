"""Captions say what the clip shows, in words that cannot be taken for anything else."""

import itertools

import numpy as np
import pytest

from nova_jax.digits import captions
from nova_jax.digits.captions import (
    COLORS,
    DIGITS,
    MAX_WORDS,
    PATHS,
    SPEEDS,
    numbered_caption,
    prompt,
)
from nova_jax.errors import NovaError
from nova_jax.text.hashed_words import words


def only(found):
    (one,) = set(found)
    return one


def caption(*clip, rng, short):
    return numbered_caption(*clip, int(rng.integers(2**62)), short=short)


def understand(text):
    """Reads a caption as a person would, word by word, from a dictionary of its own."""
    said = words(text)
    digit = only(
        DIGITS.index(w) if w in DIGITS else int(w) for w in said if w in DIGITS or w.isdigit()
    )
    meaning = {
        "red": "red", "scarlet": "red", "orange": "orange", "tangerine": "orange",
        "yellow": "yellow", "lemon": "yellow", "green": "green", "emerald": "green",
        "cyan": "cyan", "turquoise": "cyan", "blue": "blue", "cobalt": "blue",
        "magenta": "magenta", "pink": "magenta", "white": "white", "ivory": "white",
    }  # fmt: skip
    color = only(meaning[w] for w in said if w in meaning)
    ways = {
        "left": "left", "leftward": "left", "right": "right", "rightward": "right",
        "up": "up", "upward": "up", "upper": "up", "top": "up",
        "down": "down", "downward": "down", "lower": "down", "bottom": "down",
    }  # fmt: skip
    directions = {ways[w] for w in said if w in ways}
    path = "_".join(sorted(directions, key=["up", "down", "left", "right"].index)) or None
    if {"bounces", "back"} & set(said):
        path = f"bounce_{path}"
    pace = {"slow": "slow", "slowly": "slow", "gently": "slow", "low": "slow",
            "fast": "fast", "quickly": "fast", "high": "fast"}  # fmt: skip
    speeds = {pace[w] for w in said if w in pace}
    return digit, color, path, only(speeds) if speeds else None


def wordings(number):
    rng = np.random.default_rng(number)
    for digit, color, path, speed in itertools.product(range(10), COLORS, PATHS, SPEEDS):
        for short in (False, True):
            yield (
                (digit, color, path, speed),
                short,
                caption(digit, color, path, speed, rng=rng, short=short),
            )


@pytest.mark.parametrize("number", range(3))
def test_every_caption_names_digit_color_path_and_speed(number):
    for (digit, color, path, speed), short, text in wordings(number):
        expected = (digit, color, path, speed)
        understood = understand(text)
        if short and understood[3] is None:  # short forms may leave the speed out
            expected = (digit, color, path, None)
        assert understood == expected, text


def test_pictures_have_captions_without_motion():
    rng = np.random.default_rng(0)
    for digit, color, short in itertools.product(range(10), COLORS, (False, True)):
        text = caption(digit, color, None, None, rng=rng, short=short)
        assert understand(text) == (digit, color, None, None), text


def test_wording_varies_and_fits():
    texts = [text for _, _, text in wordings(0)]
    assert len(set(texts)) > 0.9 * len(texts)
    assert max(len(words(text)) for text in texts) <= MAX_WORDS
    assert not any("{" in text or "  " in text or " ," in text for text in texts)


def test_articles_fit_the_word_after_them():
    for _, _, text in wordings(1):
        for article, word in itertools.pairwise(text.split()):
            if article in ("a", "an") and word in sum(captions.COLOR_WORDS.values(), ()):
                assert (article == "an") == (word[0] in "aeiou"), text


def test_the_vocabulary_is_complete():
    used = {word for number in range(2) for _, _, text in wordings(number) for word in words(text)}
    assert used <= set(captions.vocabulary())
    assert {"picture", "scarlet", "corner", "7"} <= set(captions.vocabulary())


def test_prompts_are_plain_and_distinct():
    assert prompt(7, "red", "left", "slow") == "a red seven moves slowly to the left"
    assert prompt(8, "orange") == "an orange eight"
    everything = list(itertools.product(range(10), COLORS, PATHS, SPEEDS))
    assert len({prompt(*choice) for choice in everything}) == len(everything)
    assert all(understand(prompt(*choice)) == choice for choice in everything)


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ((10, "red"), "10"),
        ((1, "mauve"), "mauve"),
        ((1, "red", "in"), "in"),
        ((1, "red", "up", "x"), "x"),
    ],
)
def test_unknown_attributes_are_named(attributes, named):
    with pytest.raises(NovaError, match=f"'?{named}'?; choose"):
        prompt(*attributes)
