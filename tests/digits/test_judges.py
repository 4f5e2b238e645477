"""The judges against real clips whose truth is known, and against clips that are not right."""

import numpy as np
import pytest

from nova_jax.digits import judges
from nova_jax.digits.captions import COLORS, PATHS
from nova_jax.digits.clips import DigitsConfig, DigitsSource
from nova_jax.digits.judges import TRAITS, Judges, Verdict


@pytest.fixture(scope="module")
def judge() -> Judges:
    return Judges(DigitsConfig())


@pytest.fixture(scope="module")
def held_out() -> dict:
    config = DigitsConfig(split="held_out", combinations="all", num_clips=300, seed=7)
    return DigitsSource(config).batch(np.arange(300))


def agreement(verdicts, truth) -> dict[str, float]:
    """Share of verdicts that agree with clips as `DigitsSource.batch` returns them, by trait."""
    return {
        trait: np.mean([getattr(seen, trait) for seen in verdicts] == np.array(truth[trait]))
        for trait in TRAITS
    }


def test_judges_are_right_on_held_out_handwriting(judge):
    assert judge.accuracy_on_raw_digits() >= 0.97
    clips = judge.real_clips(500)
    verdicts = [judge(clip) for clip in clips["frames"]]
    accuracy = agreement(verdicts, clips)
    assert accuracy["digit"] >= 0.97
    assert accuracy["color"] >= 0.995
    assert accuracy["path"] >= 0.995
    assert accuracy["speed"] >= 0.98
    digits = np.array([seen.digits for seen in verdicts]).T == clips["digit"]
    colors = np.array([seen.colors for seen in verdicts]).T == np.array(clips["color"])
    assert digits.shape == (4, 500) and digits.mean(1).min() >= 0.97
    assert digits.all(0).mean() >= 0.96
    assert colors.all(0).mean() >= 0.995


def test_a_frame_is_judged_by_itself(judge, held_out):
    """Two digits in one clip: the whole has one name, the frames have both, the dark one none."""
    first, other = held_out["digit"].index(1), held_out["digit"].index(8)
    clips = held_out["frames"]
    verdict = judge(np.concatenate([clips[first][:3], clips[other][:2], 0 * clips[first][:1]]))
    assert verdict.digits == (1, 1, 1, 8, 8, None)
    colors = [held_out["color"][first]] * 3 + [held_out["color"][other]] * 2
    assert verdict.colors == (*colors, None)


def test_path_and_speed_are_those_of_the_first_frames(judge, held_out):
    """A clip that goes back after its end has the path it had; a shorter one has none yet."""
    columns = (held_out[name][:50] for name in ("frames", "path", "speed"))
    for clip, path, speed in zip(*columns, strict=True):
        longer, shorter = judge(np.concatenate([clip, clip[::-1]])), judge(clip[:3])
        assert (longer.path, longer.speed) == (path, speed)
        assert (shorter.path, shorter.speed) == (None, None)


def test_judges_bear_the_noise_and_blur_of_a_generated_clip(judge, held_out):
    rng = np.random.default_rng(0)
    clips = held_out["frames"].astype(float)
    soft = 0.6 * clips + 0.2 * np.roll(clips, 1, axis=2) + 0.2 * np.roll(clips, 1, axis=3)
    noisy = np.clip(soft + rng.normal(0, 12, clips.shape), 0, 255).astype(np.uint8)
    accuracy = agreement([judge(clip) for clip in noisy], held_out)
    assert accuracy["digit"] >= 0.9
    assert min(accuracy["color"], accuracy["path"], accuracy["speed"]) >= 0.97


@pytest.mark.parametrize("walls", [False, True])
def test_judges_work_at_another_size_and_length(walls):
    config = DigitsConfig(size=(40, 48), frames=9, digit_size=20, walls=walls)
    judge = Judges(config)
    assert judge.motion_frames == (3 if walls else 9)
    clips = judge.real_clips(200)
    accuracy = agreement([judge(clip) for clip in clips["frames"]], clips)
    assert accuracy["digit"] >= 0.95
    assert min(accuracy["color"], accuracy["path"], accuracy["speed"]) >= 0.98


def test_a_reversed_clip_has_the_opposite_path(held_out):
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for clip, path in zip(held_out["frames"], held_out["path"], strict=True):
        if not path.startswith("bounce"):
            expected = "_".join(opposite[word] for word in path.split("_"))
            assert judges.measure_motion(clip[::-1])[0] == expected


def test_a_shuffled_digit_is_not_read_as_itself(judge, held_out):
    """The classifier looks at shape, not at what color or motion give away."""
    permutation = np.random.default_rng(0).permutation(24 * 24)
    clips = held_out["frames"]
    shuffled = clips.reshape(*clips.shape[:2], -1, 3)[:, :, permutation].reshape(clips.shape)
    assert agreement([judge(clip) for clip in shuffled], held_out)["digit"] < 0.3


def test_every_pure_color_is_named():
    for name, rgb in COLORS.items():
        clip = np.zeros((2, 24, 24, 3), np.uint8)
        clip[:, 8:16, 10:14] = np.array(rgb) // 2
        assert judges.measure_color(clip) == name


@pytest.mark.parametrize("path", PATHS)
def test_a_moving_square_follows_its_path(path):
    """The renderer is not needed to name a path: four frames drawn by hand."""
    down, right = PATHS[path][::-1]
    steps = [0, 2, 4, 2] if path.startswith("bounce") else [0, 2, 4, 6]
    clip = np.zeros((4, 24, 24, 3), np.uint8)
    for frame, step in zip(clip, steps, strict=True):
        y, x = 10 + down * step, 10 + right * step
        frame[y : y + 4, x : x + 4] = 200
    found, travel, explained = judges.measure_motion(clip)
    assert found == path
    diagonal = np.hypot(down, right)
    assert travel == pytest.approx(6 * diagonal, rel=0.05)
    assert explained > 0.98


@pytest.mark.parametrize("path", [path for path in PATHS if "bounce" not in path])
def test_a_square_between_walls_has_the_path_that_it_starts_out_along(path):
    way = np.array(PATHS[path][::-1])
    clip = np.zeros((6, 24, 24, 3), np.uint8)
    for frame, step in zip(clip, [0, 2, 4, 2, 0, -2], strict=True):
        y, x = 10 + step * way
        frame[y : y + 4, x : x + 4] = 200
    found, speed = judges.measure_heading(clip)
    assert found == path
    assert speed == pytest.approx(2 * np.linalg.norm(way), rel=0.05)
    assert judges.measure_heading(clip[:1].repeat(6, 0)) == (None, 0.0)
    assert judges.measure_heading(0 * clip) == (None, 0.0)


def test_darkness_and_stillness_are_nothing(judge):
    nothing = (None,) * 6
    dark = np.zeros((6, 24, 24, 3), np.uint8)
    assert judge(dark) == Verdict(None, None, None, None, nothing, nothing)
    still = np.zeros((6, 24, 24, 3), np.uint8)
    still[:, 8:16, 10:14] = (255, 36, 36)
    verdict = judge(still)
    assert (verdict.color, verdict.path, verdict.speed) == ("red", None, None)
    vanishing = still.copy()
    vanishing[3:] = 0
    assert judge(vanishing).path is None
