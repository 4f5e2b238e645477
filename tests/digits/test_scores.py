"""Questions are balanced and reproducible; intervals and counts are checked against known ones."""

import pytest

from nova_jax.digits.clips import combinations
from nova_jax.digits.judges import Verdict
from nova_jax.digits.scores import Question, Score, format_table, make_questions, tally


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


def test_tally_counts_by_group_and_only_what_was_asked():
    questions = [
        Question("a", 1, "red", "left", "slow", "seen"),
        Question("b", 2, "blue", "up", None, "unseen"),
    ]
    verdicts = [Verdict(1, "red", "right", "slow"), Verdict(2, "cyan", "up", "fast")]
    table = tally(questions, verdicts)
    assert table["seen"] == {
        "digit": Score(1, 1),
        "color": Score(1, 1),
        "path": Score(0, 1),
        "speed": Score(1, 1),
    }
    assert table["unseen"] == {"digit": Score(1, 1), "color": Score(0, 1), "path": Score(1, 1)}
    assert table["all"]["color"] == Score(1, 2) and table["all"]["speed"] == Score(1, 1)
    header, seen, unseen, both = format_table(table).splitlines()
    assert header.split() == ["digit", "color", "path", "speed"]
    assert both.startswith("all") and " 50.0 " in both
