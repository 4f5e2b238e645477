"""Drift that is put into real clips shows in the measure it belongs to; real clips have none."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nova_jax import drift, media
from nova_jax.digits.clips import DigitsConfig, DigitsSource
from nova_jax.errors import NovaError

ROOT = Path(__file__).parents[1]
CLIPS, FRAMES = 6, 12


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Held-out digits on straight paths, as large as the commands write them, 4 frames a second."""
    config = DigitsConfig(split="held_out", combinations="all", frames=FRAMES, num_clips=99, seed=3)
    clips = DigitsSource(config).batch(np.arange(99))
    straight = [not path.startswith("bounce") for path in clips["path"]]
    return media.enlarge(clips["frames"][straight][:CLIPS])


@pytest.fixture(scope="module")
def measured(real) -> dict:
    return {f"{i}.mp4": drift.measure(clip) for i, clip in enumerate(real)}


def faded(clip, share):
    """The last frame keeps this share of its light."""
    return (clip * np.linspace(1, share, len(clip))[:, None, None, None]).astype(np.uint8)


def blurred(clip):
    rest = [cv2.GaussianBlur(frame, (0, 0), 2.0 * t) for t, frame in enumerate(clip[1:], 1)]
    return np.stack([clip[0], *rest])


def grayed(clip):
    gray = clip.max(-1, keepdims=True).astype(float)
    share = np.linspace(0, 1, len(clip))[:, None, None, None]
    return (clip * (1 - share) + gray * share).astype(np.uint8)


def shrunk(clip):
    side = clip.shape[1]
    frames = []
    for t, frame in enumerate(clip):
        small = cv2.resize(frame, (side - 10 * t,) * 2, interpolation=cv2.INTER_AREA)
        frames.append(np.pad(small, ((0, 10 * t), (0, 10 * t), (0, 0))))
    return np.stack(frames)


def frozen(clip):
    return clip[np.minimum(np.arange(len(clip)), len(clip) // 2)]


def change(clips, name):
    return drift.Report.of({f"{i}": clip for i, clip in enumerate(clips)}).summary()[name]["change"]


def test_real_clips_do_not_drift_not_even_after_encoding(real, tmp_path):
    paths = [media.save_clip(tmp_path / f"{i}", clip, 4.0) for i, clip in enumerate(real)]
    found = drift.find_clips([str(tmp_path)])
    assert list(found.values()) == sorted(paths) and set(found) == {path.name for path in paths}
    measured = {name: drift.measure(media.read_video(path)) for name, path in found.items()}
    summary = drift.Report.of(measured).summary()
    limits = {"sharpness": 0.03, "contrast": 0.01, "saturation": 0.01, "size": 0.05, "motion": 0.1}
    assert {name: abs(summary[name]["change"]) < most for name, most in limits.items()} == (
        dict.fromkeys(limits, True)
    )
    assert summary["color"]["change"] < 1  # below what an eye can tell
    for series in measured.values():
        assert series["like the first"].min() > 0.85
        assert np.abs(series["size"] - 1).max() < 0.25


@pytest.mark.parametrize(
    ("spoil", "name", "most", "least"),
    [
        (blurred, "sharpness", -0.9, -1),
        (lambda clip: faded(clip, 0.5), "contrast", -0.45, -0.55),
        (lambda clip: faded(clip, 0.2), "size", -0.9, -1),
        (shrunk, "size", -0.7, -0.9),
        (frozen, "motion", -0.95, -1.1),
    ],
)
def test_what_is_lost_shows_in_its_measure(real, spoil, name, most, least):
    assert least <= change([drift.measure(spoil(clip)) for clip in real], name) <= most


def test_light_that_fades_by_half_changes_neither_saturation_nor_likeness(real):
    clips = [drift.measure(faded(clip, 0.5)) for clip in real]
    assert abs(change(clips, "saturation")) < 0.01
    assert min(series["like the first"].min() for series in clips) > 0.85


def test_color_that_goes_shows_in_saturation_and_color(real):
    clips = [drift.measure(grayed(clip)) for clip in real if clip.min(-1).max() < 100]
    assert len(clips) >= 3
    assert change(clips, "saturation") < -0.6
    assert change(clips, "color") > 30


def test_another_thing_from_the_middle_on_shows_in_likeness(real):
    half = FRAMES // 2
    swapped = np.concatenate([real[0][:half], real[1][half:]])
    series = drift.measure(swapped)
    assert series["like the first"][:half].min() > 0.85
    assert series["like the first"][half:].max() < 0.8
    assert series["like the one before"].argmin() == half


def test_a_still_video_has_no_motion_and_is_like_itself(real):
    series = drift.measure(np.repeat(real[0][:1], 5, axis=0))
    np.testing.assert_array_equal(series["motion"], 0)
    np.testing.assert_allclose(series["like the first"], 1, atol=1e-5)
    np.testing.assert_allclose(series["like the one before"], 1, atol=1e-5)


def test_a_clip_that_goes_dark_has_finite_measures(real):
    series = drift.measure(np.concatenate([real[0][:3], np.zeros_like(real[0][:3])]))
    assert all(np.isfinite(values).all() for values in series.values())
    assert series["contrast"][-1] == series["size"][-1] == series["like the first"][-1] == 0
    backward = drift.measure(np.concatenate([np.zeros_like(real[0][:3]), real[0][:3]]))
    assert all(np.isfinite(values).all() for values in backward.values())


def test_measures_of_a_picture_written_out():
    """A white square on black, then half as bright and red: every number by hand."""
    clip = np.zeros((2, 20, 20, 3), np.uint8)
    clip[0, 5:15, 5:15] = 200
    clip[1, 5:15, 5:15, 0] = 100
    series = drift.measure(clip)
    assert series["contrast"][1] == pytest.approx(30 / 200)  # Rec. 601 luma: 0.299 of red
    assert series["sharpness"][1] == pytest.approx((30 / 200) ** 2)
    assert series["saturation"][1] == 1
    assert series["size"][1] == 1
    # CIE L*a*b* of sRGB (200, 200, 200) and (100, 0, 0), D65, as tables have them.
    one, other = np.array([80.6, 0, 0]), np.array([19.4, 41.6, 30.0])
    assert series["color"][1] == pytest.approx(np.linalg.norm(one - other), abs=1)


def test_the_worst_clip_is_named(real, measured):
    spoiled = measured | {"faded.mp4": drift.measure(faded(real[0], 0.5))}
    report = drift.Report.of(spoiled)
    worst = report.summary()["contrast"]["worst"]
    assert (worst["clip"], worst["frame"]) == ("faded.mp4", FRAMES)
    assert worst["value"] == pytest.approx(0.5, abs=0.02)
    (line,) = [line for line in report.table().splitlines() if line.startswith("contrast")]
    assert line.endswith("0.50 in frame 12 of faded.mp4")


def test_clips_of_different_lengths_are_compared_at_shares_of_them(real):
    clip = faded(real[0], 0.5)
    report = drift.Report.of({"all": drift.measure(clip), "few": drift.measure(clip[[0, 11]])})
    assert report.lengths == (2, 12)
    mean = report.summary()["contrast"]["mean"]
    shares = {"first": 1, "1/4": 0.875, "1/2": 0.75, "3/4": 0.625, "last": 0.5}
    assert mean == pytest.approx(shares, abs=0.02)


def test_the_interval_is_students():
    """t of 4 degrees of freedom is 2.776 in every table; the deviation is √2.5."""
    margin = 2.776 * np.sqrt(2.5) / np.sqrt(5)
    found = drift.interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found == pytest.approx((3 - margin, 3 + margin), abs=1e-3)


def test_what_cannot_drift_is_named(tmp_path):
    one = np.zeros((1, 16, 16, 3), np.uint8)
    media.save(tmp_path / "still" / "one.png", media.encode_png(one[0]))
    media.save(tmp_path / "one.gif", media.encode_gif(one, 4.0))
    for path in (tmp_path / "still", tmp_path / "one.gif"):
        with pytest.raises(NovaError, match=f"{path} has one frame; drift takes videos of two"):
            drift.read(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NovaError, match="empty holds neither videos nor PNG frames; check"):
        drift.find_clips([str(tmp_path / "empty")])


def test_the_command_reads_videos_and_frames_and_writes_a_report(real, tmp_path):
    """An MP4, a shorter GIF of another shape, PNG frames."""
    media.save_clip(tmp_path / "videos" / "one", real[0], 4.0)
    media.save_clip(tmp_path / "videos" / "two", real[1][:5, :100], 4.0, gif=True)
    for t, frame in enumerate(real[2]):
        media.save(tmp_path / "frames" / f"{t}.png", media.encode_png(frame))
    run = subprocess.run(
        [sys.executable, "-m", "nova_jax.evaluate", "--drift", str(tmp_path / "videos"),
         str(tmp_path / "frames"), f"--out={tmp_path / 'out'}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "drift of 3 videos of 5 to 12 frames" in run.stdout
    report = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert list(report["clips"]) == ["videos/one.mp4", "videos/two.gif", "frames"]
    assert [len(series["size"]) for series in report["clips"].values()] == [12, 5, 12]
    for name in ("drift.png", "drift_sheet.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 200
