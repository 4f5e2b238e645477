"""Judges of a digit clip: which digit, what color, along which path, how fast. None is the model.

Digit: a support vector machine trained on real handwriting of the training split. Color and
motion are measured on the pixels. All of them first look for the bright thing on the dark ground.
Digit and color are judged in every frame by itself and in the whole clip; a clip can be right on
the whole while its last frames are wrong.

Letters: F frames, H, W height and width in pixels, P = 12·12 pixels of a crop.
"""

import dataclasses
import functools
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from nova_jax.digits.captions import COLORS, PATHS, SPEEDS
from nova_jax.digits.clips import FREE_STRIDES, DigitsConfig, DigitsSource, glyphs, progress

Clip = UInt8[np.ndarray, "f h w 3"]

CROP = 12  # side of what the classifier sees
WINDOW = 1.25  # side of the window that is cropped, in digit sizes: the digit and a margin
DARK = 48  # a clip that is nowhere brighter (0..255) shows nothing
TRAINING_CLIPS = 6_000


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judges see in one clip; None where they see nothing of the kind.

    Attributes:
      digit, color: of all frames together.
      path, speed: of as many frames as the data has.
      digits, colors: of each frame by itself.
    """

    digit: int | None
    color: str | None
    path: str | None
    speed: str | None
    digits: tuple[int | None, ...]
    colors: tuple[str | None, ...]


TRAITS = ("digit", "color", "path", "speed")


def brightness(clip: Clip) -> Float[np.ndarray, "f h w"]:
    """How far each pixel stands out: its largest channel above a third of the clip's peak, 0..1."""
    value = clip.max(-1).astype(np.float32)
    floor = value.max() / 3
    return np.clip(value - floor, 0, None) / max(value.max() - floor, 1)


def track(clip: Clip) -> Float[np.ndarray, "f 2"]:
    """Center of brightness of every frame as (x, y) in pixels; NaN where a frame is dark."""
    weights = brightness(clip)
    total = weights.sum((1, 2))
    rows, columns = np.arange(clip.shape[1]), np.arange(clip.shape[2])
    with np.errstate(invalid="ignore"):
        x, y = weights.sum(1) @ columns / total, weights.sum(2) @ rows / total
    return np.stack([x, y], -1)


def cut_out(
    value: Float[np.ndarray, "h w"], center: Float[np.ndarray, "2"], side: int
) -> Float[np.ndarray, " p"]:
    """What the classifier sees of a digit: a square about (x, y), at full brightness."""
    crop = cv2.getRectSubPix(value, (side, side), center.tolist())
    crop = cv2.resize(crop, (CROP, CROP), interpolation=cv2.INTER_AREA)
    return crop.ravel() / max(crop.max(), 1e-6)


def measure_color(clip: Clip) -> str:
    """The named color nearest to the clip's mean color at full brightness.

    The mean is weighted with brightness, so that the ground and soft edges do not count.
    """
    weights = brightness(clip)[..., None]
    mean = (weights * clip).sum((0, 1, 2)) / max(weights.sum(), 1e-6)
    names = list(COLORS)
    known = np.array([COLORS[name] for name in names], np.float32)
    distances = known / known.max(1, keepdims=True) - mean / max(mean.max(), 1)
    return names[int(np.linalg.norm(distances, axis=1).argmin())]


@functools.lru_cache
def _path_templates(frames: int) -> Float[np.ndarray, "k {frames} 2"]:
    """The track of each of `PATHS` over one unit of travel, about its own mean."""
    tracks = [
        np.outer(progress(name, frames), direction) / np.linalg.norm(direction)
        for name, direction in PATHS.items()
    ]
    templates = np.stack(tracks)
    return templates - templates.mean(1, keepdims=True)


def measure_motion(clip: Clip) -> tuple[str | None, float, float]:
    """Fits each path to the track of the clip and takes the best.

    A path with template s (one unit of travel, mean removed) explains the track p (mean removed)
    with travel a = <p, s> / <s, s>, leaving |p - a s|².

    Returns:
      The path's name, or None for a clip that goes dark or stands still (travel below one pixel);
      its travel in pixels; the share of the track's variance that it explains, 0..1.
    """
    points = track(clip)
    if np.isnan(points).any():
        return None, 0.0, 0.0
    points = points - points.mean(0)
    templates = _path_templates(len(clip))
    travel = np.einsum("ft,kft->k", points, templates) / np.einsum("kft,kft->k", *[templates] * 2)
    error = ((points - travel[:, None, None] * templates) ** 2).sum((1, 2))
    error[travel <= 0] = np.inf
    best = int(error.argmin())
    if travel[best] < 1:
        return None, 0.0, 0.0
    explained = 1 - float(error[best] / (points**2).sum())
    return list(PATHS)[best], float(travel[best]), explained


def measure_heading(clip: Clip) -> tuple[str | None, float]:
    """Which of the straight `PATHS` a digit between walls starts out along, and how fast.

    Returns:
      The path's name, or None for a clip that is dark or stands still (below half a pixel a frame);
      pixels a frame.
    """
    points = track(clip[: FREE_STRIDES + 1])
    moved = (points[-1] - points[0]) / FREE_STRIDES
    if not (distance := float(np.linalg.norm(moved))) >= 0.5:
        return None, 0.0
    straight = {name: np.array(way) for name, way in PATHS.items() if "bounce" not in name}
    along = {name: moved @ way / np.linalg.norm(way) for name, way in straight.items()}
    return max(along, key=along.__getitem__), distance


class Judges:
    """The judges of clips that look like a given data configuration.

    Building one trains the classifier (seconds) and measures the travel of slow and fast clips,
    both on clips of the training split. Deterministic.

    Args:
      config: what real clips look like. Its split and combinations are not used.
    """

    def __init__(self, config: DigitsConfig) -> None:
        from sklearn.svm import SVC  # slow to import, and few commands judge

        self.config = dataclasses.replace(
            config,
            split="train",
            combinations="seen",
            num_clips=TRAINING_CLIPS,
            seed=config.seed + 1,
        )
        clips = DigitsSource(self.config).batch(np.arange(TRAINING_CLIPS))
        # A middle frame of each clip: more clips teach the classifier more than more frames.
        middle = clips["frames"][:, len(clips["frames"][0]) // 2]
        crops = np.concatenate([self._crops(frame[None]) for frame in middle])
        self._classifier = SVC(C=10, gamma=0.02, decision_function_shape="ovr")
        self._classifier.fit(crops, clips["digit"])
        self._fast = self._speed_boundary(clips) if config.frames > 1 else np.inf

    def __call__(self, clip: Clip) -> Verdict:
        """Judges one clip, which need not be as long as those of the data.

        Path and speed are judged on its first `motion_frames`: a longer clip goes on as no real one
        does, and a shorter one has not shown its path yet.
        """
        if clip.max() < DARK:
            nothing = (None,) * len(clip)
            return Verdict(None, None, None, None, nothing, nothing)
        start = clip[: self.motion_frames]
        shown = len(start) == self.motion_frames > 1
        path, travel = self._motion(start) if shown else (None, 0.0)
        frames = [None if frame.max() < DARK else frame[None] for frame in clip]
        return Verdict(
            digit=self.digit(clip),
            color=measure_color(clip),
            path=path,
            speed=None if path is None else SPEEDS[int(travel > self._fast)],
            digits=tuple(None if frame is None else self.digit(frame) for frame in frames),
            colors=tuple(None if frame is None else measure_color(frame) for frame in frames),
        )

    @property
    def motion_frames(self) -> int:
        """Frames that path and speed are judged on."""
        return FREE_STRIDES + 1 if self.config.walls else self.config.frames

    def digit(self, clip: Clip) -> int:
        """The digit for which the classifier's scores, averaged over the frames, are highest."""
        return int(self.features(clip).mean(0).argmax())

    def features(self, clip: Clip) -> Float[np.ndarray, "f 10"]:
        """The classifier's scores of each frame's digit."""
        return self._classifier.decision_function(self._crops(clip))

    def accuracy_on_raw_digits(self) -> float:
        """How often the classifier is right on the held-out images, merely enlarged: 0 to 1."""
        images, labels = glyphs("held_out")
        read = np.array([self.digit(self._enlarged(image)) for image in images])
        return float((read == labels).mean())

    def real_clips(self, num_clips: int = 1000) -> dict[str, Any]:
        """Rendered clips of held-out handwriting, as `DigitsSource.batch` returns them."""
        config = dataclasses.replace(
            self.config, split="held_out", combinations="all", num_clips=num_clips
        )
        return DigitsSource(config).batch(np.arange(num_clips))

    def _crops(self, clip: Clip) -> Float[np.ndarray, "f p"]:
        """Each frame's digit, cut out about its center of brightness, at full brightness."""
        side = round(WINDOW * self.config.digit_size)
        crops = []
        for value, center in zip(brightness(clip), track(clip), strict=True):
            crops.append(cut_out(value, np.nan_to_num(center), side))
        return np.stack(crops)

    def _enlarged(self, glyph: Float[np.ndarray, "8 8"]) -> Clip:
        side = round(self.config.digit_size)
        image = cv2.resize(glyph, (side, side), interpolation=cv2.INTER_LINEAR)
        image = np.pad(np.clip(image * 255, 0, 255).astype(np.uint8), side // 2)
        return np.repeat(image[None, ..., None], 3, axis=-1)

    def _motion(self, clip: Clip) -> tuple[str | None, float]:
        """The path, and a measure of speed."""
        return measure_heading(clip) if self.config.walls else measure_motion(clip)[:2]

    def _speed_boundary(self, clips: dict) -> float:
        travel = np.array([self._motion(clip)[1] for clip in clips["frames"][:500]])
        slow = np.array(clips["speed"][:500]) == "slow"
        return float(np.sqrt(travel[slow].mean() * travel[~slow].mean()))
