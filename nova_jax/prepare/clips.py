"""Clips out of files: decoding, shots, frames at a fixed stride, and crops of a few fixed shapes.

Letters in shapes:

    F frames of a clip   H, W its pixels

A video is decoded once, from the start, and no further than the clips that are asked of it and the
two frames that tell a cut: memory does not grow with its length, and nothing is believed of what
its header says.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from nova_jax.config import Checked, Count, Positive, Range
from nova_jax.data.motion import motion_score
from nova_jax.errors import NovaError
from nova_jax.media import fit_image, to_rgb
from nova_jax.prepare.manifest import Item

# PyAV and PySceneDetect come with an extra of the package: only what reads videos imports them.
if TYPE_CHECKING:
    import av

# Shot boundaries are looked for on frames this small, [height, width].
_SMALL = (36, 64)
_PERCEPTUAL = 8  # side of the picture that a perceptual hash keeps


Sizes = tuple[tuple[Count, Count], ...]


class Unusable(Exception):
    """Why nothing, or nothing more, can be made of a file; `clips` are what could be."""

    def __init__(self, reason: str, clips: Sequence[Clip] = ()) -> None:
        super().__init__(reason)
        self.clips = clips


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig(Checked):
    """Which clips are taken and what they look like. The defaults are those of the release.

    Attributes:
      sizes: (height, width) that clips are cropped to; each takes the one of the nearest aspect.
      frames: lengths of clips; each takes the longest that its shot has room for. Pictures have
        one frame in any case.
      stride: of how many frames of the video one is kept.
      clips_per_video: how many clips to take of a row, at most, one after the other.
      shot_threshold: mean change of hue (of 180), saturation and value (of 255) from a frame to
        the next that may be a cut.
      shot_ratio: how many times the mean of the two changes before it and the two after it such a
        change must be: fast movement is no cut.
      max_pixels: pictures and videos with larger frames are skipped.
    """

    sizes: Sizes = ((480, 768),)
    frames: tuple[Count, ...] = (33,)
    stride: Count = 2
    clips_per_video: Count = 1
    shot_threshold: Positive = 27.0
    shot_ratio: Annotated[float, Range(1)] = 3.0
    max_pixels: Count = 100_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sizes:
            raise NovaError("sizes is empty; give at least one (height, width)")
        if not self.frames:
            raise NovaError("frames is empty; give at least one length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames of one shot, ready to be encoded, and what is said of them.

    Attributes:
      item: the row that it is of.
      frames: uint8 [F, H, W, 3]; with no frames, where it was encoded before.
      source_size: (height, width) in the file.
      phash: perceptual hash of the middle frame, 64 bits.
      fps: frames per second, of the frames that are kept; 0 for a picture.
      flow: motion score, see `nova_jax.data.motion`.
      start: seconds into the file.
      moments: float16 [T, h, w, M] of a clip that was encoded before; else None.
    """

    item: Item
    frames: np.ndarray
    source_size: tuple[int, int]
    phash: int
    fps: float = 0.0
    flow: float = 0.0
    start: float = 0.0
    moments: np.ndarray | None = None


def read_clips(item: Item, config: ClipConfig) -> list[Clip]:
    """Decodes the clips of a row.

    Raises:
      Unusable: with the reason, and the clips before the damage.
    """
    if item.is_picture:
        return [picture_clip(_read_picture(item.path, config), item, config)]
    import av

    clips: list[Clip] = []
    try:
        with av.open(str(item.path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise Unusable("no video in it")
            for clip in cut_clips(_decode(container, item, config), item, config):
                clips.append(clip)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        if clips:
            raise Unusable(f"damaged, clips before it are used: {_reason(error)}", clips) from error
        raise Unusable(f"cannot be decoded: {_reason(error)}") from error
    return clips


def nearest_size(size: tuple[int, int], sizes: Sizes) -> tuple[int, int]:
    """Returns the one of `sizes` whose aspect is nearest to that of `size`, by its logarithm."""
    aspect = math.log(size[1] / size[0])
    return min(sizes, key=lambda s: (abs(math.log(s[1] / s[0]) - aspect), -s[0] * s[1]))


def perceptual_hash(picture: np.ndarray) -> int:
    """Returns 64 bits that nearly stay when a picture is scaled, compressed or made lighter.

    A bit says whether one of the 8 x 8 lowest frequencies of the picture's cosine transform is
    above their median (Zauner, 2010).

    Args:
      picture: uint8 [H, W, 3].
    """
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (4 * _PERCEPTUAL,) * 2, interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:_PERCEPTUAL, :_PERCEPTUAL].ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


class ArrayFrame:
    """A frame that is pixels already, uint8 [H, W, 3]."""

    def __init__(self, pixels: np.ndarray, time: float) -> None:
        self.pixels, self.time = pixels, time

    def small(self) -> np.ndarray:
        """Returns it as `find_shots` looks at it, uint8 [36, 64, 3], BGR."""
        small = cv2.resize(self.pixels, _SMALL[::-1], interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(small, cv2.COLOR_RGB2BGR)

    def fitted(self, sizes: Sizes) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns it scaled to fill the nearest of `sizes` and cropped about its center, uint8
        [H, W, 3], and its own size, upright."""
        size = (self.pixels.shape[0], self.pixels.shape[1])
        return fit_image(self.pixels, nearest_size(size, sizes)), size


class _VideoFrame:
    """A frame as FFmpeg decoded it."""

    def __init__(self, frame: av.VideoFrame, time: float) -> None:
        self._frame, self.time = frame, time

    def small(self) -> np.ndarray:
        return self._scaled(_SMALL, "AREA", "bgr24")

    def fitted(self, sizes: Sizes) -> tuple[np.ndarray, tuple[int, int]]:
        turns = round(self._frame.rotation / 90) % 4  # counter-clockwise, as telephones write it
        stored = (self._frame.height, self._frame.width)
        shown = stored[::-1] if turns % 2 else stored
        size = nearest_size(shown, sizes)
        scale = max(size[0] / shown[0], size[1] / shown[1])
        height, width = (max(round(s * scale), w) for s, w in zip(shown, size, strict=True))
        pixels = self._scaled((width, height) if turns % 2 else (height, width), "BICUBIC")
        pixels = np.rot90(pixels, turns)
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        return np.ascontiguousarray(pixels[top : top + size[0], left : left + size[1]]), shown

    def _scaled(
        self, size: tuple[int, int], interpolation: str, colors: str = "rgb24"
    ) -> np.ndarray:
        return self._frame.to_ndarray(
            format=colors, height=size[0], width=size[1], interpolation=interpolation
        )


Frame = ArrayFrame | _VideoFrame


def picture_clip(pixels: np.ndarray, item: Item, config: ClipConfig) -> Clip:
    """Makes a clip of one frame of a picture, uint8 [H, W, 3]."""
    frame, size = ArrayFrame(pixels, 0.0).fitted(config.sizes)
    return Clip(item=item, frames=frame[None], source_size=size, phash=perceptual_hash(frame))


def cut_clips(frames: Iterable[Frame], item: Item, config: ClipConfig) -> Iterator[Clip]:
    """Gives the clips of a video, in order; they do not overlap, and cross no cut.

    Raises:
      Unusable: there is none.
    """
    cutter, seen, made = _Cutter(item, config), False, 0
    for frame, begins in find_shots(frames, config):
        seen = True
        for clip in cutter.take(frame, begins):
            yield clip
            if (made := made + 1) == config.clips_per_video:
                return
    if (last := cutter.cut()) is not None:
        yield last
    elif not seen:
        raise Unusable("no frames")
    elif not made:
        raise Unusable(
            f"too short: {cutter.most} frames at stride {config.stride} in its longest shot, "
            f"{min(config.frames)} needed"
        )


def find_shots(frames: Iterable[Frame], config: ClipConfig) -> Iterator[tuple[Frame, bool]]:
    """Gives each frame of a video, and whether a new shot begins with it.

    PySceneDetect compares a change with those around it, and so is a few frames late: these are
    held back. It is silent about the first and the last few frames of what it is shown, and is
    shown those once more for each.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector = AdaptiveDetector(
        adaptive_threshold=config.shot_ratio, min_content_val=config.shot_threshold, min_scene_len=0
    )
    late, shown = detector.window_width, itertools.count()
    held: deque[Frame] = deque()

    def cut(small: np.ndarray) -> bool:
        """Shows the next frame, and says of the one `late` frames before whether it is a cut."""
        return bool(detector.process_frame(FrameTimecode(next(shown), fps=1.0), small))

    for number, frame in enumerate(frames):
        small = frame.small()
        if number == 0:
            for _ in range(late):
                cut(small)
        held.append(frame)
        begins = cut(small)
        if len(held) > late:
            yield held.popleft(), begins
    while held:
        yield held.popleft(), cut(small)


class _Cutter:
    """The frames of the current shot that no clip has yet."""

    def __init__(self, item: Item, config: ClipConfig) -> None:
        self.item, self.config, self.most = item, config, 0
        self._clear()

    def _clear(self) -> None:
        self._kept: list[np.ndarray] = []
        self._times: list[float] = []
        self._since = 0

    def take(self, frame: Frame, begins: bool) -> Iterator[Clip]:
        """Takes the next frame, and whether a shot begins with it; gives the clips it completes."""
        if begins and (clip := self.cut()) is not None:
            yield clip
        if self._since % self.config.stride == 0:
            pixels, self._size = frame.fitted(self.config.sizes)
            self._kept.append(pixels)
            self._times.append(frame.time)
            self.most = max(self.most, len(self._kept))
        self._since += 1
        if len(self._kept) == max(self.config.frames) and (clip := self.cut()) is not None:
            yield clip

    def cut(self) -> Clip | None:
        """Ends the shot: what is kept of it, cut to the longest length it has."""
        kept, times = self._kept, self._times
        self._clear()
        length = max((f for f in self.config.frames if f <= len(kept)), default=0)
        if not length:
            return None
        frames = np.stack(kept[:length])
        seconds = times[length - 1] - times[0]
        return Clip(
            item=self.item,
            frames=frames,
            fps=(length - 1) / seconds if length > 1 and seconds > 0 else 0.0,
            flow=float(motion_score(frames[None])[0]),
            start=times[0],
            source_size=self._size,
            phash=perceptual_hash(frames[length // 2]),
        )


def _read_picture(path: Path, config: ClipConfig) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.width * image.height > config.max_pixels:
                raise Unusable(f"{image.width}x{image.height} pixels are more than max_pixels")
            return to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise Unusable("more pixels than can be decoded safely") from error
    except (OSError, SyntaxError, ValueError, NovaError) as error:
        raise Unusable(f"cannot be decoded: {_reason(error)}") from error


def _decode(container: Any, item: Item, config: ClipConfig) -> Iterator[Frame]:
    """Frames from `item.start` to `item.end`."""
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise Unusable("cannot be decoded: of an unknown codec")
    if stream.width * stream.height > config.max_pixels:
        raise Unusable(f"{stream.width}x{stream.height} pixels are more than max_pixels")
    stream.thread_type = "AUTO"
    if item.start > 0:
        container.seek(int(item.start * 1e6), backward=True)  # microseconds
    rate = float(stream.guessed_rate or stream.average_rate or 0) or 25.0
    for number, frame in enumerate(container.decode(stream)):
        time = frame.time if frame.time is not None else number / rate  # some files have no times
        if time < item.start - 0.5 / rate:
            continue
        if time >= item.end:
            break
        if frame.is_corrupt:
            raise ValueError(f"damaged at {time:.2f} s")
        yield _VideoFrame(frame, time)


def _reason(error: BaseException) -> str:
    """One line of an error of a library."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
