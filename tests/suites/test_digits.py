"""The suite of digits: its own prompts, judged at once, on real pictures in place of a model's."""

import contextlib
import json

import numpy as np
import pytest

from nova_jax import media
from nova_jax.digits import scene_judges
from nova_jax.digits.scene_scores import make_scene_questions
from nova_jax.digits.scenes import ScenesConfig, ScenesSource
from nova_jax.errors import NovaError
from nova_jax.suites import digits, report
from nova_jax.suites.digits import Digits
from nova_jax.suites.registry import SUITES

FEW = 20


def test_items_are_the_questions_with_four_pictures_each():
    suite = Digits()
    prompts = suite.prompts(None, suite.parts, verify=True)
    questions = make_scene_questions(100, seed=0)
    assert [item.prompt for item in prompts.items] == [q.prompt for q in questions]
    # There are 60 captions of a single digit, 36 of counts that were kept back, 100 of the others.
    assert len(prompts.items) == 60 + 86 + 4 * 100
    paths = [target.path for item in prompts.items for target in item.targets]
    assert len(set(paths)) == 4 * 546 and paths[5] == "images/00001/samples/00001.png"
    ((path, content),) = prompts.items[-1].metadata.items()
    said = json.loads(content)
    assert path == "images/00545/metadata.jsonl"
    assert (said["task"], said["group"]) == ("color_attr", "unseen")
    few = suite.prompts(None, ("colors",), verify=True)
    assert len(few.items) == 100 and all(item in prompts.items for item in few.items)
    with pytest.raises(NovaError, match="has its own prompts; leave --prompts away"):
        suite.prompts(digits.Path("clone"), suite.parts, verify=True)


@contextlib.contextmanager
def fewer():
    """A fifth of the questions of each task, and fewer real pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "QUESTIONS", FEW)
        patch.setattr(digits, "REAL", 300)
        patch.setattr(scene_judges, "TRAINING_SCENES", 6_000)
        digits._questions.cache_clear()
        yield
    digits._questions.cache_clear()


@pytest.fixture
def few():
    with fewer():
        yield


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A folder of pictures that are right, but for one task where all are black."""
    with fewer():
        return draw_and_judge(tmp_path_factory.mktemp("judged"))


def draw_and_judge(out):
    suite = Digits()
    prompts = suite.prompts(None, suite.parts, verify=True)
    source = ScenesSource(ScenesConfig(split="held_out"))
    rng = np.random.default_rng(0)
    for question, item in zip(make_scene_questions(FEW, seed=0), prompts.items, strict=True):
        picture = source._paint(rng, question.scene)
        if question.scene.task == "position":
            picture = 0 * picture
        for target in item.targets:
            file = out / target.path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(media.encode_png(picture))
    said = suite.scoring(out, prompts, (48, 48))
    assert f"--report={out}" in said
    return out


def test_its_scores_are_what_the_judges_say(few, judged):
    found = report.read([str(judged)], SUITES, None)
    ((scores,),) = (suites.values() for suites in found.scores.values())
    assert not scores.missing
    for task in ("single_object", "two_object", "counting", "colors", "color_attr"):
        assert scores.values[f"digits.{task}"] > 0.93
    assert scores.values["digits.position"] == 0
    tasks = [scores.values[f"digits.{task}"] for task in Digits.parts]
    assert scores.values["digits.overall"] == pytest.approx(np.mean(tasks))
    assert 0.75 < scores.values["digits.unseen"] < 0.84
    assert "judges on real pictures: single_object 100.0 %" in " ".join(scores.notes)
    assert "Digits: GenEval's tasks" in found.text()


def test_a_part_of_it_has_no_total(few, judged, tmp_path):
    lines = json.loads((judged / digits.RESULTS).read_text())
    some = [line for line in lines if line["task"] != "counting"]
    (tmp_path / digits.RESULTS).write_text(json.dumps(some))
    scores = Digits().scores([tmp_path / digits.RESULTS], None)
    assert "digits.overall" not in scores.values
    assert scores.missing == ["digits counting: 0 of 80 pictures"]
    assert scores.values["digits.position"] == 0


@pytest.mark.parametrize("content", ["[{}]", "no JSON", '[{"task": "colors", "group": "all"}]'])
def test_results_that_are_none_are_refused(content, tmp_path):
    (tmp_path / digits.RESULTS).write_text(content)
    with pytest.raises(NovaError, match="is no result of the suite digits"):
        Digits().scores([tmp_path / digits.RESULTS], None)


def test_judges_look_at_what_was_written(judged):
    """Pictures are saved as they were drawn: the judges find the same things in the files."""
    line = json.loads((judged / digits.RESULTS).read_text())[0]
    assert line["filename"] == "images/00000/samples/00000.png" and len(line["found"]) == 1
    with fewer():
        picture = media.read_image(judged / line["filename"])
        (thing,) = scene_judges.SceneJudges(ScenesConfig())(picture)
    assert line["found"] == [[thing.color, thing.digit, *thing.middle]]
