"""Questions to a model of scenes (captions with known answers), and how many it answers right."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from nova_jax.digits.scene_captions import TASKS, Scene, caption, is_seen
from nova_jax.digits.scenes import draw_scene
from nova_jax.digits.scores import Score

GROUPS = ("seen", "unseen")
#: Draws for each question, after which there are no others.
_TRIES = 100


@dataclasses.dataclass(frozen=True)
class SceneQuestion:
    """A caption, and the scene that its picture must show; colors count where they are told.

    Attributes:
        prompt: the caption.
        scene: what it says.
        group: "seen" or "unseen" in training, as a combination.
    """

    prompt: str
    scene: Scene
    group: str


def make_scene_questions(number: int, *, seed: int) -> list[SceneQuestion]:
    """Makes different captions of each task, half of them of seen and half of unseen combinations.

    Args:
        number: of each task, or as many as there are: of a single digit 50 and 10, of counts 36
            unseen ones.
        seed: the same one gives the same questions.
    """
    rng = np.random.default_rng(seed)
    questions: list[SceneQuestion] = []
    for task, group in itertools.product(TASKS, GROUPS):
        asked: dict[str, SceneQuestion] = {}
        for _ in range(_TRIES * number):
            scene, wording = draw_scene(rng, task), int(rng.integers(2**62))
            if is_seen(scene, wording) == (group == "seen"):
                prompt = caption(scene, wording)
                asked.setdefault(prompt, SceneQuestion(prompt, scene, group))
            if len(asked) == number // 2:
                break
        questions += asked.values()
    return questions


def tally_scenes(
    questions: Sequence[SceneQuestion], right: Sequence[bool]
) -> dict[str, dict[str, Score]]:
    """Counts right answers by group ("seen", "unseen", "all") and task."""

    def count(group: str, task: str) -> Score:
        chosen = [
            answer
            for question, answer in zip(questions, right, strict=True)
            if question.scene.task == task and group in ("all", question.group)
        ]
        return Score(sum(chosen), len(chosen))

    return {group: {task: count(group, task) for task in TASKS} for group in (*GROUPS, "all")}
