"""Questions are balanced and reproducible; intervals and counts are checked against known ones."""

import pytest

from nova_jax.digits.clips import combinations
from nova_jax.digits.judges import Verdict
from nova_jax.digits.scores import (
    Question,
    Score,
    format_frames,
    format_table,
    make_questions,
    tally,
    tally_frames,
    without_motion,
)


def test_questions_are_half_seen_half_unseen_and_reproducible():
    questions = make_questions(200, seed=3)
    assert questions == make_questions(200, seed=3)
    assert questions != make_questions(200, seed=4)
    unseen = set(combinations("unseen"))
    groups = {True: [], False: []}
    for question in questions:
        groups[(question.digit, question.color, question.path) in unseen].append(question.group)
    assert groups == {True: ["unseen"] * 100, False: ["seen"] * 100}


def test_questions_cover_everything_and_vary_their_wording():
    questions = make_questions(200, seed=0)
    assert len({question.prompt for question in questions}) > 190
    unseen = [q for q in questions if q.group == "unseen"]
    assert {(q.digit, q.color, q.path) for q in unseen} == set(combinations("unseen"))
    assert sum(question.speed is None for question in questions) == 50


def test_an_image_model_is_not_asked_for_motion():
    assert not any(q.path.startswith("bounce") for q in make_questions(40, seed=0, walls=True))
    for question in make_questions(40, seed=0, moving=False):
        assert question.path is None and question.speed is None
        assert not {"left", "right", "slowly", "quickly"} & set(question.prompt.split())


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # From the tables of Newcombe (1998), Statistics in Medicine 17: 857-872, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(right, total, low, high):
    assert Score(right, total).interval == pytest.approx((low, high), abs=5e-5)


QUESTIONS = [
    Question("a", 1, "red", "left", "slow", "seen"),
    Question("b", 2, "blue", "up", None, "unseen"),
]
VERDICTS = [
    Verdict(1, "red", "right", "slow", digits=(1, 1, 7), colors=("red", "red", "red")),
    Verdict(2, "cyan", "up", "fast", digits=(2, 2, 2), colors=("blue", None, "cyan")),
]
ANSWERS = list(zip(QUESTIONS, VERDICTS, strict=True))


def test_tally_counts_by_group_and_only_what_was_asked():
    table = tally(ANSWERS)
    assert table["seen"] == {
        "digit in every frame": Score(0, 1),
        "color in every frame": Score(1, 1),
        "digit on average": Score(1, 1),
        "color on average": Score(1, 1),
        "path": Score(0, 1),
        "speed": Score(1, 1),
    }
    assert table["unseen"] == {
        "digit in every frame": Score(1, 1),
        "color in every frame": Score(0, 1),
        "digit on average": Score(1, 1),
        "color on average": Score(0, 1),
        "path": Score(1, 1),
    }
    assert table["all"]["color on average"] == Score(1, 2) and table["all"]["speed"] == Score(1, 1)
    header, *rows = format_table(table).splitlines()
    assert header.split() == ["seen", "unseen", "all"]
    assert [row[:20].strip() for row in rows] == list(table["seen"])
    assert rows[0].split()[4:6] == ["0.0", "[0.0,"] and " 50.0 " in rows[0]


def test_motion_that_was_not_asked_for_is_not_judged():
    answers = list(zip(without_motion(QUESTIONS), VERDICTS, strict=True))
    assert not {"path", "speed"} & tally(answers)["all"].keys()


def test_frames_are_counted_one_by_one():
    table = tally_frames(ANSWERS)
    assert table["all"]["digit"] == [Score(2, 2), Score(2, 2), Score(1, 2)]
    assert table["all"]["color"] == [Score(2, 2), Score(1, 2), Score(1, 2)]
    assert table["unseen"]["color"] == [Score(1, 1), Score(0, 1), Score(0, 1)]
    header, digit = format_frames({"digit": table["all"]["digit"]}).splitlines()
    assert header.split() == ["frame", "1", "2", "3"]
    assert digit.split() == ["digit", "100.0", "100.0", "50.0"]


def test_long_clips_have_evenly_spaced_columns():
    """Numbers stand under their frames, also in the row of shorter clips."""
    rows = {"long": [Score(n, 34) for n in range(1, 35)], "short": [Score(1, 2)] * 4}
    header, long, short = format_frames(rows).splitlines()
    shown = [int(number) for number in header.split()[1:]]
    assert shown == list(range(1, 35, 3))
    assert [float(rate) for rate in long.split()[1:]] == pytest.approx(
        [100 * number / 34 for number in shown], abs=0.05
    )
    assert short.split() == ["short", "50.0", "50.0"]
