"""Rendered digits: from the index alone, inside the frame, moving as they claim."""

import dataclasses
import itertools

import numpy as np
import pytest

from nova_jax.data.motion import motion_score
from nova_jax.digits.captions import COLORS, PATHS
from nova_jax.digits.clips import (
    DigitsConfig,
    DigitsSource,
    combinations,
    glyphs,
    progress,
)
from nova_jax.errors import NovaError


@pytest.fixture(scope="module")
def source():
    return DigitsSource(DigitsConfig(num_clips=300))


@pytest.fixture(scope="module")
def clips(source):
    return source.batch(range(len(source)))


def centers(frames):
    """Center of brightness (right, down) of each frame: [B, F, 2]."""
    mass = frames.max(-1).astype(float)
    down = (mass.sum(3) * np.arange(mass.shape[2])).sum(2) / mass.sum((2, 3))
    right = (mass.sum(2) * np.arange(mass.shape[3])).sum(2) / mass.sum((2, 3))
    return np.stack([right, down], -1)


def test_a_clip_depends_on_seed_and_index_only(source):
    alone = source[17]
    among = source.batch([250, 17, 3])
    fewer = DigitsSource(DigitsConfig(num_clips=20)).batch([17])
    for other, row in ((among, 1), (fewer, 0)):
        np.testing.assert_array_equal(alone["frames"], other["frames"][row])
        assert alone["caption"] == other["caption"][row]
        assert alone["flow"] == other["flow"][row]
    reseeded = DigitsSource(DigitsConfig(num_clips=20, seed=1))[17]
    assert (reseeded["frames"] != alone["frames"]).any()


def test_handwriting_is_split_about_80_20_within_each_digit():
    (train, train_labels), (held_out, held_out_labels) = glyphs("train"), glyphs("held_out")
    assert len(train) + len(held_out) == 1797
    assert train.shape[1:] == held_out.shape[1:] == (8, 8)
    shares = np.bincount(held_out_labels) / (
        np.bincount(train_labels) + np.bincount(held_out_labels)
    )
    assert (np.abs(shares - 0.2) < 0.01).all()
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in held_out)


def test_unseen_combinations_leave_every_pair_seen():
    unseen, seen = set(combinations("unseen")), set(combinations("seen"))
    assert len(unseen) == 96 and len(seen) == 864 and not unseen & seen
    assert unseen | seen == set(itertools.product(range(10), COLORS, PATHS))
    for one, two, count in ((0, 1, 80), (0, 2, 120), (1, 2, 96)):
        assert len({(triple[one], triple[two]) for triple in seen}) == count


def test_sources_keep_to_their_combinations():
    def shown(**settings):
        clips = DigitsSource(DigitsConfig(num_clips=1500, frames=1, **settings)).batch(range(1500))
        return set(zip(clips["digit"], clips["color"], clips["path"], strict=True))

    unseen = set(combinations("unseen"))
    assert not shown() & unseen
    assert shown(split="held_out", combinations="unseen") == unseen
    assert shown(split="held_out", combinations="all") & unseen


@pytest.mark.parametrize("frames", [1, 2, 6, 33])
@pytest.mark.parametrize(("place_jitter", "middle"), [(0.5, 1 / 3), (1.0, 0.0), (1.0, 0.5)])
def test_digits_stay_inside_the_frame(frames, place_jitter, middle):
    config = DigitsConfig(num_clips=200, frames=frames, place_jitter=place_jitter, middle=middle)
    frames_shown = DigitsSource(config).batch(range(200))["frames"]
    assert frames_shown.shape == (200, frames, 24, 24, 3) and frames_shown.dtype == np.uint8
    # Nothing cut off: a clip keeps its light, and the border stays all but black.
    light = frames_shown.max(-1).sum((2, 3)).astype(float)
    assert (light.max(1) - light.min(1) <= 0.03 * light.mean(1)).all()
    border = np.ones((24, 24), bool)
    border[1:-1, 1:-1] = False
    assert frames_shown[:, :, border].max() < 128


def test_motion_follows_the_path(clips):
    place = centers(clips["frames"])
    for path, track in zip(clips["path"], place, strict=True):
        direction = np.array(PATHS[path])
        before, after = track[2] - track[0], track[3] - track[2]
        assert (np.sign(np.round(before / 0.8)) == direction).all(), path
        turned = -1 if path.startswith("bounce") else 1
        assert (np.sign(np.round(after / 0.8)) == turned * direction).all(), path


@pytest.mark.parametrize("place_jitter", [0.0, 0.5, 1.0])
def test_between_walls_digits_bounce_and_keep_their_speed(place_jitter):
    config = DigitsConfig(
        walls=True, size=(32, 40), frames=40, num_clips=100, size_jitter=0, digit_size=14,
        place_jitter=place_jitter,
    )  # fmt: skip
    clips = DigitsSource(config).batch(range(100))
    assert not any(path.startswith("bounce") for path in clips["path"])
    place = centers(clips["frames"])
    away = np.abs(place[:, 0] - [19.5, 15.5]).max()
    assert 5 * place_jitter < away < 2 + 12 * place_jitter
    moved = np.diff(place, axis=1)
    for path, speed, way in zip(clips["path"], clips["speed"], moved, strict=True):
        direction = np.array(PATHS[path])
        # Free at first, then there and back along the same line.
        assert (np.sign(np.round(way[:2].mean(0) / 0.4)) == direction).all(), path
        turned = np.sign(np.round(way / 0.4)) == -direction
        assert (turned | (direction == 0)).any(0).all(), path
        stride = {"slow": 0.08, "fast": 0.16}[speed] * 16.25
        free = np.abs(way[:2]).max(0)[direction != 0] * np.sqrt(np.abs(direction).sum())
        np.testing.assert_allclose(free, stride, rtol=0.15)
    light = clips["frames"].max(-1).sum((2, 3)).astype(float)
    assert (light.max(1) - light.min(1) <= 0.04 * light.mean(1)).all()  # nothing is cut off


def test_a_longer_clip_between_walls_begins_like_a_shorter_one():
    config = DigitsConfig(walls=True, num_clips=5)
    longer = dataclasses.replace(config, frames=9)
    short, long = (DigitsSource(some).batch(range(5)) for some in (config, longer))
    np.testing.assert_array_equal(long["frames"][:, :4], short["frames"])
    assert long["caption"] == short["caption"]
    pictures = DigitsSource(config).images().batch(range(5))
    np.testing.assert_array_equal(pictures["frames"], short["frames"][:, :1])


def test_between_walls_no_combination_is_a_bounce():
    seen, unseen = (combinations(which, walls=True) for which in ("seen", "unseen"))
    assert (len(seen), len(unseen)) == (576, 64)
    assert set(unseen) < set(combinations("unseen")) and set(seen) < set(combinations("seen"))


def test_only_the_caption_announces_a_turn():
    """Up to the turn, clips of a bounce and of the straight path are alike."""
    for path in PATHS:
        if path.startswith("bounce"):
            straight = progress(path.removeprefix("bounce_"), 7)
            np.testing.assert_allclose(progress(path, 7)[:5], straight[:5])
            assert (np.diff(progress(path, 7)) < 0).tolist() == [False] * 4 + [True] * 2


def test_colors_are_true(clips):
    for color, frames in zip(clips["color"], clips["frames"], strict=True):
        light = frames.reshape(-1, 3).sum(0).astype(float)
        angles = {
            name: light @ np.array(rgb) / np.linalg.norm(light) / np.linalg.norm(rgb)
            for name, rgb in COLORS.items()
        }
        assert max(angles, key=angles.get) == color


def test_flow_is_measured_and_tells_fast_from_slow(clips):
    fast = np.array(clips["speed"]) == "fast"
    slow_flow, fast_flow = clips["flow"][~fast], clips["flow"][fast]
    assert np.percentile(fast_flow, 10) > np.percentile(slow_flow, 90)  # thick digits move more
    moved = np.linalg.norm(np.diff(centers(clips["frames"]), axis=1), axis=-1).mean(1)
    # Pixels per frame, about: over steps of up to three pixels optical flow is an estimate.
    assert np.corrcoef(clips["flow"], moved)[0, 1] > 0.98
    assert np.abs(clips["flow"] / moved - 1).max() < 0.3


def test_flow_belongs_to_the_clip_alone(clips):
    frames = clips["frames"][:4]
    scores = motion_score(frames)
    np.testing.assert_array_equal(motion_score(frames[2:3]), scores[2:3])
    still = frames[:, :1].repeat(6, 1)
    assert (motion_score(still) < 0.1).all()  # slow clips score about 1
    assert (motion_score(frames[:, :1]) == 0).all()
    assert motion_score(frames[:, :, :-1, :-3]).shape == (4,)  # odd sizes


def test_pictures_are_still(source):
    pictures = source.images().batch(range(50))
    assert pictures["frames"].shape == (50, 1, 24, 24, 3)
    assert (pictures["flow"] == 0).all()
    assert not any("moves" in caption for caption in pictures["caption"])


def test_other_sizes():
    config = DigitsConfig(num_clips=3, size=(32, 48), digit_size=20, frames=4)
    clips = DigitsSource(config).batch(range(3))
    assert clips["frames"].shape == (3, 4, 32, 48, 3)
    assert clips["frames"].max() > 150


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"digit_size": 24}, "does not fit"),
        ({"digit_size": 4}, "digit_size"),
        ({"size": (8, 8)}, "does not fit"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"combinations": "some"}, "unknown combinations"),
        ({"combinations": "unseen"}, "held_out"),
        ({"frames": 0}, "frames"),
        ({"frames": -3}, "frames"),
        ({"num_clips": 0}, "num_clips"),
        ({"num_clips": 2**31 - 1}, "at most 10000000"),
        ({"fps": 0}, "fps"),
        ({"place_jitter": 2}, "place_jitter"),
        ({"middle": 0.7}, "middle"),
        ({"size_jitter": -1}, "size_jitter"),
    ],
)
def test_impossible_settings_are_named(settings, named):
    with pytest.raises(NovaError, match=named):
        DigitsConfig(**settings)


def test_there_is_no_clip_past_the_end(source):
    with pytest.raises(IndexError):
        source[300]
