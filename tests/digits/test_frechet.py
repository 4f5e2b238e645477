"""The Fréchet distance against its closed form."""

import numpy as np
import pytest

from nova_jax.digits.clips import DigitsConfig
from nova_jax.digits.frechet import frechet_distance
from nova_jax.digits.judges import Judges
from nova_jax.digits.scene_judges import SceneJudges
from nova_jax.digits.scenes import ScenesConfig, ScenesSource


def test_normal_distributions_are_as_far_apart_as_they_should():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(200_000, 2)), rng.normal(size=(200_000, 2))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    # Of diagonal covariances: |μ|² + Σ (σ₁ − σ₂)².
    moved = two * [2.0, 0.5] + [3.0, 4.0]
    assert frechet_distance(one, moved) == pytest.approx(25 + 1 + 0.25, rel=0.01)
    # Turning both changes nothing.
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert frechet_distance(one @ turn, moved @ turn) == pytest.approx(
        frechet_distance(one, moved), rel=1e-6
    )


def test_blurred_digits_are_further_from_real_ones_than_other_real_ones_are():
    judges = Judges(DigitsConfig())
    clips = judges.real_clips(300)["frames"]
    real, other = (
        np.concatenate([judges.features(c) for c in some]) for some in (clips[:150], clips[150:])
    )
    blurred = (
        clips[150:].astype(float) + np.roll(clips[150:], 2, 3) + np.roll(clips[150:], 2, 2)
    ) / 3
    blurred = np.concatenate([judges.features(clip.astype(np.uint8)) for clip in blurred])
    assert frechet_distance(real, blurred) > 2 * frechet_distance(real, other)

    scenes = SceneJudges(ScenesConfig())
    pictures = ScenesSource(ScenesConfig(split="held_out")).batch(np.arange(6))
    for picture, scene in zip(pictures["frames"][:, 0], pictures["scene"], strict=True):
        assert scenes.features(picture).shape == (len(scene.digits), 10)
    assert scenes.features(np.zeros((48, 48, 3), np.uint8)).shape == (0, 10)
