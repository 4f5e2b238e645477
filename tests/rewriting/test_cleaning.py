"""What is a prompt in an answer, and what was written around it."""

import pytest

from nova_jax.rewriting.cleaning import clean

SCENE = "A red seven, bright and bold, glides to the left: slowly."


@pytest.mark.parametrize(
    "answer",
    [
        SCENE,
        f"  {SCENE}\n",
        f'"{SCENE}"',
        f"“{SCENE}”",
        f'Sure! Here is the rewritten prompt:\n\n"{SCENE}"',
        f"Certainly, here's a more detailed version of it: {SCENE}",
        f"Of course.\n{SCENE}",
        f"**Rewritten prompt:** {SCENE}",
        f"Detailed Video Caption: {SCENE}",
        f"1. {SCENE}",
        f"- {SCENE}",
        f"```text\n{SCENE}\n```",
        SCENE.replace("bright", "**bright**").replace("bold", "*bold*"),
        SCENE.replace(", glides", ",\nglides"),
        SCENE.replace(", glides", ",\n\n glides"),
        f"{SCENE}\n\nNote: I kept the digit and its color.",
        f"{SCENE}\n\nThis description keeps the digit.\n\n(Note: and its color.)",
        f"<think>\nThe user wants a seven.\n</think>\n\n{SCENE}",
    ],
)
def test_only_the_prompt_is_left(answer):
    assert clean(answer) == SCENE


@pytest.mark.parametrize(
    "prompt",
    [
        'A sign that reads "open" stands beside one that reads "closed"',
        '"Open" and "closed" are painted on two doors',
        "Certainly the largest of 3 dogs",
        "A clock shows 10:30. 2 birds sit on it; snake_case is written on a wall",
        "A dog's tail: 2 * 3 stripes",
    ],
)
def test_what_looks_a_little_like_it_stays(prompt):
    assert clean(prompt) == prompt


@pytest.mark.parametrize(
    "answer", ["", " \n", "<think>and so on", '""', "Sure! Here is the prompt:"]
)
def test_nothing_is_left_of_an_empty_answer(answer):
    assert clean(answer) == ""
