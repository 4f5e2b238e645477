"""How a video drifts away from its first frame: measures of any video, without labels or a model.

A model that makes frames from its own frames adds up its errors. Some of that shows in measures of
the picture that a good video keeps: sharpness, contrast, color, saturation, the size of what is
bright, likeness to the first frame, motion. Each clip is compared with its own start, and the worst
clip is named, because averages hide it.

Letters: F frames, H×W pixels, N clips, P points of time that all clips are compared at.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from nova_jax import media
from nova_jax.data.motion import motion_score
from nova_jax.errors import NovaError
from nova_jax.plots import Line, encode_plot

Clip = UInt8[np.ndarray, "f h w 3"]
Series = Float[np.ndarray, " f"]

#: What is measured, and in which unit; the order of tables and plots.
MEASURES = {
    "sharpness": "ratio",
    "contrast": "ratio",
    "color": "Delta E",
    "saturation": "difference",
    "size": "ratio",
    "like the first": "-1..1",
    "like the one before": "-1..1",
    "motion": "ratio",
}
#: What a plot's axis shows at least, by unit.
SHOWN = {
    "ratio": (0.0, 1.2),
    "Delta E": (0.0, 10.0),
    "difference": (-0.2, 0.2),
    "-1..1": (0.0, 1.0),
}
#: The points of a clip in the table, as shares of it.
POINTS = {"first": 0.0, "1/4": 0.25, "1/2": 0.5, "3/4": 0.75, "last": 1.0}

#: Frames are compared at this size: the longer side, in pixels.
COMPARED = 96
#: A picture whose luma deviates by less than this (0..255) is flat: it looks like nothing.
FLAT = 1.0
#: Less motion than this, in pixels a frame on average, is stillness.
STILL = 0.01

SHEET_CLIPS, SHEET_FRAMES, SHEET_SIDE = 48, 8, 96


def measure(clip: Clip) -> dict[str, Series]:
    """Measures each frame of a clip of at least two frames, relative to the clip's start.

    Y is luma, V the largest and U the smallest channel of a pixel, all 0..255; x₁ is x of the first
    frame. A frame's "like the one before" and "motion" are those of the pair it makes with the
    frame before it; the first frame has the values of the second.

    Returns:
      sharpness: Var(∇²Y) / Var(∇²Y₁), the variance of the Laplacian.
      contrast: Std(Y) / Std(Y₁).
      color: |c - c₁|, CIE 1976 color difference; c is the mean Lab color, weighted with V, so that
        a dark ground does not count.
      saturation: s - s₁ with s = Σ(V - U) / ΣV, 0..1.
      size: n / n₁, n the number of pixels whose V is above a third of the clip's peak.
      like the first: highest correlation with the first frame over all shifts, see `likeness`.
      like the one before: the same with the frame before.
      motion: mean optical flow, relative to the mean of the first quarter of the pairs.
    """
    luma = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip])
    value, least = clip.max(-1), clip.min(-1)
    edges = np.array([cv2.Laplacian(frame, cv2.CV_64F).var() for frame in luma])
    contrast = luma.std((1, 2))
    colors = np.stack([_color(frame) for frame in clip])
    light = value.sum((1, 2), dtype=float)
    saturation = (light - least.sum((1, 2), dtype=float)) / np.maximum(light, 1)
    bright = (value > value.max() / 3).sum((1, 2))
    small = [_small(frame) for frame in luma]
    before = [likeness(a, b) for a, b in zip(small, small[1:], strict=False)]
    motion = np.concatenate([motion_score(pair[None]) for pair in _pairs(clip)]).astype(float)
    start = motion[: max(1, len(motion) // 4)].mean()
    return {
        "sharpness": edges / max(edges[0], 1e-6),
        "contrast": contrast / max(contrast[0], 1e-6),
        "color": np.linalg.norm(colors - colors[0], axis=1),
        "saturation": saturation - saturation[0],
        "size": bright / max(bright[0], 1),
        "like the first": np.array([likeness(small[0], frame) for frame in small]),
        "like the one before": np.array([before[0], *before]),
        "motion": np.array([motion[0], *motion]) / max(start, STILL),
    }


def likeness(one: UInt8[np.ndarray, "h w"], other: UInt8[np.ndarray, "h w"]) -> float:
    """The highest correlation coefficient of two pictures over all shifts of the second, -1..1.

    Shifts go up to half a side, over a border that repeats the edge. What merely moves stays alike;
    SSIM, which compares in place, would call it drift.
    """
    flat = one.std() < FLAT, other.std() < FLAT
    if any(flat):
        return float(all(flat))
    height, width = one.shape
    sides = (height // 2, height // 2, width // 2, width // 2)
    field = cv2.copyMakeBorder(one, *sides, cv2.BORDER_REPLICATE)
    return float(cv2.matchTemplate(field, other, cv2.TM_CCOEFF_NORMED).max())


def _small(luma: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "_ _"]:
    shrink = COMPARED / max(luma.shape)
    if shrink >= 1:
        return luma
    size = tuple(max(1, round(side * shrink)) for side in luma.shape[::-1])
    return cv2.resize(luma, size, interpolation=cv2.INTER_AREA)


def _color(frame: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " 3"]:
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    weights = frame.max(-1, keepdims=True).astype(float)
    return (weights * lab).sum((0, 1)) / max(weights.sum(), 1)


def _pairs(clip: Clip) -> Iterable[Clip]:
    return (clip[index : index + 2] for index in range(len(clip) - 1))


def find_clips(paths: Sequence[str]) -> dict[str, Path]:
    """Videos among files and directories; a directory without any is a clip of PNG frames.

    Returns:
      The path of each by its name: what follows the directory that all have in common.

    Raises:
      NovaError: A path does not exist, or a directory holds neither.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.iterdir()) if path.is_dir() else []
        videos = [file for file in inside if file.suffix.lower() in media.VIDEOS]
        if path.is_dir() and not videos and not any(file.suffix == ".png" for file in inside):
            raise NovaError(f"{path} holds neither videos nor PNG frames; check the path")
        found += videos or [path]
    common = os.path.commonpath([path.absolute().parent for path in found])
    return {str(path.absolute().relative_to(common)): path for path in found}


def read(path: Path) -> Clip:
    """Reads a clip that `find_clips` found.

    Raises:
      NovaError: It is no video, damaged, or of one frame.
    """
    clip = media.read_video(path)
    if len(clip) < 2:
        raise NovaError(f"{path} has one frame; drift takes videos of two or more")
    return clip


@dataclasses.dataclass(frozen=True)
class Report:
    """Measures of several clips at common points of time.

    Attributes:
      clips: name -> measure -> value of each frame.
      curves: measure -> value of each clip at P points, evenly spaced from its first to its last
        frame; P is the length of the longest clip, values between two frames are interpolated.
    """

    clips: Mapping[str, Mapping[str, Series]]
    curves: Mapping[str, Float[np.ndarray, "n p"]]

    @classmethod
    def of(cls, clips: Mapping[str, Mapping[str, Series]]) -> Report:
        """Brings the measures of clips, which may differ in length, to common points."""
        longest = max(len(series["size"]) for series in clips.values())
        share = np.linspace(0, 1, longest)
        curves = {
            name: np.stack(
                [
                    np.interp(share, np.linspace(0, 1, len(series[name])), series[name])
                    for series in clips.values()
                ]
            )
            for name in MEASURES
        }
        return cls(clips, curves)

    @property
    def lengths(self) -> tuple[int, int]:
        """Frames of the shortest and of the longest clip."""
        found = [len(series["size"]) for series in self.clips.values()]
        return min(found), max(found)

    def summary(self) -> dict[str, dict[str, Any]]:
        """By measure: mean at each of `POINTS`, change from first to last, the worst clip.

        A clip's worst frame is the one that is furthest from its first frame's value, whichever
        way, but downward where likeness is measured; in the worst clip it is furthest.
        """
        result = {}
        for name, curve in self.curves.items():
            mean = curve.mean(0)
            share = np.linspace(0, 1, len(mean))
            change = curve[:, -1] - curve[:, 0]
            away = {clip: series[name][0] - series[name] for clip, series in self.clips.items()}
            if not name.startswith("like"):
                away = {clip: np.abs(distance) for clip, distance in away.items()}
            worst = max(away, key=lambda clip: away[clip].max())
            frame = int(away[worst].argmax())
            result[name] = {
                "mean": {point: float(np.interp(at, share, mean)) for point, at in POINTS.items()},
                "change": float(change.mean()),
                "interval": interval(change),
                "worst": {
                    "clip": worst,
                    "frame": frame + 1,
                    "value": float(self.clips[worst][name][frame]),
                },
            }
        return result

    def table(self) -> str:
        """The summary as text."""
        head = "".join(f"{point:>8}" for point in POINTS)
        lines = [f"{'':20}{'':12}{head}   change [95 % interval]    worst clip"]
        for name, row in self.summary().items():
            means = "".join(f"{value:8.2f}" for value in row["mean"].values())
            between = f"[{row['interval'][0]:.2f}, {row['interval'][1]:.2f}]"
            change = f"{row['change']:+9.2f} {between if len(self.clips) > 1 else '':16}"
            worst = "{value:.2f} in frame {frame} of {clip}".format(**row["worst"])
            lines.append(f"{name:20}{MEASURES[name]:12}{means}{change}  {worst}")
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """All numbers: the summary, and every clip's measures by frame."""
        clips = {
            clip: {name: values.tolist() for name, values in series.items()}
            for clip, series in self.clips.items()
        }
        summary = {
            name: row | {"interval": row["interval"] if len(clips) > 1 else None}
            for name, row in self.summary().items()
        }
        return {"units": MEASURES, "summary": summary, "clips": clips}

    def plot(self) -> bytes:
        """The bytes of a PNG: one panel a measure, every clip and the mean with its 95 % band.

        Raises:
          NovaError: matplotlib is not installed.
        """
        shortest, longest = self.lengths
        x = np.linspace(1, longest, longest)
        if shortest < longest:
            x = np.linspace(0, 100, longest)
        panels, shown = {}, {}
        for name, curve in self.curves.items():
            unit = MEASURES[name]
            title = f"{name} ({unit})"
            low, high = np.array([interval(column) for column in curve.T]).T
            mean = Line(x, curve.mean(0), "mean, 95 % interval", (low, high))
            panels[title], shown[title] = [*(Line(x, row) for row in curve), mean], SHOWN[unit]
        count = f"{len(self.clips)} clip{'s' if len(self.clips) > 1 else ''}"
        label = "frame" if shortest == longest else "percent of the clip"
        return encode_plot(panels, f"drift of {count} from the first frame", label, shown)


def interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The 95 % interval of the mean by Student's t; the mean itself where there is one value."""
    from scipy.stats import t  # slow to import

    mean, n = float(values.mean()), len(values)
    if n == 1:
        return mean, mean
    margin = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean - margin, mean + margin


def strip(clip: Clip) -> UInt8[np.ndarray, "_ _ _ 3"]:
    """Evenly spaced frames of a clip, first to last, each fitted into a square."""
    chosen = clip[np.linspace(0, len(clip) - 1, SHEET_FRAMES).round().astype(int)]
    height, width = clip.shape[1:3]
    scale = SHEET_SIDE / max(height, width)
    size = tuple(max(1, round(side * scale)) for side in (width, height))
    squares = np.full((SHEET_FRAMES, SHEET_SIDE, SHEET_SIDE, 3), 255, np.uint8)
    for square, frame in zip(squares, chosen, strict=True):
        square[: size[1], : size[0]] = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return squares


def contact_sheet(strips: Mapping[str, np.ndarray], report: Report) -> UInt8[np.ndarray, "_ _ 3"]:
    """The clips that end least like they began, those first."""
    like = {clip: series["like the first"] for clip, series in report.clips.items()}
    order = sorted(strips, key=lambda clip: like[clip][-1])[:SHEET_CLIPS]
    captions = [
        f"[{like[clip][-1]:.2f} like the first after {len(like[clip])} frames] {clip}"
        for clip in order
    ]
    return media.contact_sheet([strips[clip] for clip in order], captions)
