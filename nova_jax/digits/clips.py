"""Captioned moving digits: clips rendered from an index, with nothing to download.

Each clip shows one real handwritten digit (scikit-learn's 8 x 8 images) in one color, moving along
one path. A clip is a function of (seed, index) only: row `index` of a table of random numbers holds
every choice, and the pixels, the captions and the measured motion score follow from it.

    B clips   F frames   H, W canvas   G = 8 side of a glyph

Rendering is separable: with position and size known, frame = rows · glyph · columnsᵀ, where
rows [H, G] and columns [W, G] hold the values of an interpolation kernel. Sub-pixel movement and
continuous sizes come with it, and a whole batch is two matrix products.
"""

import abc
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jax.typing import DTypeLike

from nova_jax.config import Checked, Count, Fraction, FrameRate, Range, Seed
from nova_jax.data.motion import motion_score
from nova_jax.digits.captions import COLORS, PATHS, SPEEDS, numbered_caption
from nova_jax.errors import NovaError

SPLITS = ("train", "held_out")
COMBINATIONS = ("seen", "unseen", "all")

GLYPH = 8
#: Every fifth image of a digit is held out: 20 %, the same share of each digit.
HELD_OUT_EVERY = 5

#: Of so many clips the random numbers, which stay in memory, take a gigabyte.
_MOST_CLIPS = 10_000_000

#: When a bounce turns, as a share of the clip.
TURN = 2 / 3
#: Length of a path as a share of the longest that keeps the digit on the canvas.
_PATH_LENGTH = {"slow": 0.65, "fast": 0.95}
#: What a digit between walls moves in a frame, as a share of the room it has.
_STRIDE = {"slow": 0.08, "fast": 0.16}
#: Strides before its first wall, at least, so that it can be seen where it starts out to.
FREE_STRIDES = 2

Combination = tuple[int, str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsConfig(Checked):
    """What the clips look like and which ones there are.

    Attributes:
      type: "digits".
      size: height and width of a frame in pixels.
      frames: frames of a clip. One frame is a picture: the middle of a path, its captions say
        nothing of motion, its motion score is 0. A bounce needs at least 3 frames to show.
      fps: frames per second, as told to the model and to the MP4 writer.
      digit_size: side in pixels of the box that holds a glyph; at least 8.
      split: "train" or "held_out" handwriting. The two share no image.
      combinations: of digit, color and path: "seen" (what training may use), "unseen" (held-out
        handwriting only) or "all"; see `combinations`.
      num_clips: how many different clips; the tables take 92 bytes of memory for each.
      seed: another seed, other clips.
      middle: when paths pass the middle of the canvas, as a share of the clip. 0 starts them there,
        and is learned fastest; later leaves more room for movement. Without walls.
      place_jitter: 0 leads paths through the middle, 1 uses all the room they leave.
      walls: whether digits move on and on and bounce off the edges of the canvas. They start in the
        middle (`place_jitter` 0) to anywhere (1); paths say whereto, and none is called a bounce.
      size_jitter, brightness_jitter: largest relative change of size and loss of brightness.
    """

    type: Literal["digits"] = "digits"
    size: tuple[Count, Count] = (24, 24)
    frames: Count = 4
    fps: FrameRate = 4.0
    digit_size: Annotated[float, Range(GLYPH)] = 12.0
    split: str = "train"
    combinations: str = "seen"
    num_clips: Annotated[int, Range(1, _MOST_CLIPS)] = 200_000
    seed: Seed = 0
    middle: Annotated[float, Range(0, 0.5)] = 1 / 3
    place_jitter: Fraction = 0.1
    size_jitter: Annotated[float, Range(0, below=1)] = 0.08
    brightness_jitter: Annotated[float, Range(0, below=1)] = 0.15
    walls: bool = False
    #: Of text features in batches, see `nova_jax.data.batch`.
    text_dtype: ClassVar[DTypeLike] = np.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in SPLITS:
            raise NovaError(f"unknown split {self.split!r}; choose one of {', '.join(SPLITS)}")
        if self.combinations not in COMBINATIONS:
            raise NovaError(
                f"unknown combinations {self.combinations!r}; "
                f"choose one of {', '.join(COMBINATIONS)}"
            )
        if self.split == "train" and self.combinations != "seen":
            raise NovaError(
                f"combinations={self.combinations!r} with the train split would show training what "
                'evaluation keeps back; use split="held_out" or combinations="seen"'
            )
        largest = self.digit_size * (1 + self.size_jitter) * (GLYPH + 1) / GLYPH
        if largest >= min(self.size):
            raise NovaError(
                f"a digit of {self.digit_size:g} pixels (up to {largest:.1f} with its soft edge) "
                f"does not fit a canvas of {self.size[0]}x{self.size[1]}; "
                "make digit_size smaller or size larger"
            )


def combinations(which: str, *, walls: bool = False) -> tuple[Combination, ...]:
    """Returns the (digit, color, path) triples of "seen", "unseen" or "all" (864, 96, 960).

    Between walls no path is called a bounce (576, 64, 640).

    The unseen ones are never rendered for training: one digit for each color and path, spread by a
    congruence, so that every digit, color, path and every pair of two of them is still seen.
    """
    return tuple(
        (digit, color, path)
        for digit in range(10)
        for i, color in enumerate(COLORS)
        for j, path in enumerate(PATHS)
        if not (walls and path.startswith("bounce"))
        if which == "all" or ((digit + 3 * i + 7 * j) % 10 == 0) == (which == "unseen")
    )


def bounced(place: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Where something is that would be at `place` if there were no walls at 0 and `room`."""
    return room - np.abs(place % (2 * room) - room)


def progress(path: str, frames: int) -> np.ndarray:
    """How far along its direction a path is in each frame, float64 [F]; straight ones end at 1.

    A bounce runs like a straight path until it turns, so that only its caption can announce the
    turn, and keeps its speed.
    """
    time = np.linspace(0, 1, frames)
    return TURN - np.abs(time - TURN) if path.startswith("bounce") else time


@functools.lru_cache
def glyphs(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the handwritten digits of a split: images float32 [n, 8, 8] in [0, 1], labels [n]."""
    from sklearn.datasets import load_digits  # takes a second, and reports draw no digits

    data = load_digits()
    held_out = np.zeros(len(data.target), bool)
    for digit in range(10):
        held_out[np.flatnonzero(data.target == digit)[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
    chosen = held_out if split == "held_out" else ~held_out
    return (data.images[chosen] / 16).astype(np.float32), data.target[chosen]


class Rows(abc.ABC):
    """Random access to what comes in batches."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Columns, by name, of the rows with these numbers."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one row of `batch`, each of its values by itself.

        Raises:
          IndexError: the index is not in 0..len - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: column[0] for name, column in self.batch([index]).items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


class DigitsSource(Rows):
    """A random-access source of clips, for the pipeline and for anyone who wants to look at one."""

    def __init__(self, config: DigitsConfig) -> None:
        self.config = config
        self._combinations = combinations(config.combinations, walls=config.walls)
        self._glyphs, labels = glyphs(config.split)
        self._progress = {path: progress(path, config.frames) for path in PATHS}
        self._of_digit = [np.flatnonzero(labels == digit) for digit in range(10)]
        # Drawn row by row: a clip stays the same when num_clips changes.
        rng = np.random.Generator(np.random.Philox(config.seed))
        self._numbers = rng.random((config.num_clips, 11))
        # Motion scores, each measured when its clip is first rendered: half the cost of a clip.
        self._flow = np.full(config.num_clips, np.nan, np.float32)

    def __len__(self) -> int:
        return self.config.num_clips

    def __reduce__(self) -> tuple:
        # A worker process draws the table itself instead of receiving it.
        return DigitsSource, (self.config,)

    def images(self) -> "DigitsSource":
        """The same kind of clips, as single pictures."""
        return DigitsSource(dataclasses.replace(self.config, frames=1))

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Renders clips.

        Returns:
          frames: uint8 [B, F, H, W, 3], RGB.
          flow: float32 [B], the measured motion score in pixels per frame; fps: float32 [B].
          caption, short_caption, color, path, speed: lists of B strings; digit: list of B ints.
        """
        config = self.config
        indices = np.asarray(indices)
        numbers = self._numbers[indices]
        which, glyph, speed, *jitters, wording, short_wording = numbers.T
        triples = [self._combinations[int(u * len(self._combinations))] for u in which]
        digits, colors, paths = (list(column) for column in zip(*triples, strict=True))
        speeds = [SPEEDS[int(u * len(SPEEDS))] for u in speed]
        choices = [self._of_digit[digit] for digit in digits]
        shapes = self._glyphs[
            [images[int(u * len(images))] for images, u in zip(choices, glyph, strict=True)]
        ]
        cell, corner, brightness = self._trajectories(paths, speeds, jitters)
        tint = np.array([COLORS[color] for color in colors], np.float32) * brightness[:, None]
        frames = render(shapes, cell, corner, tint, config.size)

        flow = self._flow[indices]
        new = np.isnan(flow)
        if new.any():
            flow[new] = self._flow[indices[new]] = motion_score(frames[new])

        moving = config.frames > 1
        told = paths if moving else [None] * len(paths)

        def words(numbers: np.ndarray, *, short: bool) -> list[str]:
            wordings = (numbers * 2**53).astype(int).tolist()
            clips = zip(digits, colors, told, speeds, wordings, strict=True)
            return [numbered_caption(*clip, short=short) for clip in clips]

        return {
            "frames": frames,
            "caption": words(wording, short=False),
            "short_caption": words(short_wording, short=True),
            "flow": flow,
            "fps": np.full(len(frames), config.fps, np.float32),
            "digit": digits,
            "color": colors,
            "path": paths,
            "speed": speeds,
        }

    def _trajectories(
        self, paths: list[str], speeds: list[str], jitters: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns cell size [B] in pixels, glyph corner [B, F, 2] (down, right), brightness [B]."""
        config = self.config
        length, size, light, down, right, _ = jitters
        cell = config.digit_size / GLYPH * (1 + config.size_jitter * (2 * size - 1))
        # Interpolation softens the glyph's edge by half a cell on each side.
        room = np.array(config.size) - (GLYPH + 1) * cell[:, None]

        direction = np.array([PATHS[path][::-1] for path in paths], float)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        shares = _STRIDE if config.walls else _PATH_LENGTH
        reach = np.array([shares[speed] for speed in speeds]) * (0.95 + 0.1 * length)
        reach, jitter = reach * room.min(-1), np.stack([down, right], -1)
        if config.walls:
            place = self._between_walls(room, reach[:, None] * direction, jitter)
        else:
            # From the middle to the end it must not go further than to the edge.
            travel = (reach / 2 / (1 - config.middle))[:, None] * direction
            place = self._along_paths(room, travel, jitter, paths)
        return cell, (cell / 2)[:, None, None] + place, 1 - config.brightness_jitter * light

    def _along_paths(
        self, room: np.ndarray, travel: np.ndarray, jitter: np.ndarray, paths: list[str]
    ) -> np.ndarray:
        """Places [B, F, 2] in a room [B, 2] on the way past its middle, once in a clip."""
        config = self.config
        left_over = room - 2 * (1 - config.middle) * np.abs(travel)
        middle = room / 2 + config.place_jitter * left_over * (jitter - 0.5)
        along = np.stack([self._progress[path] for path in paths]) - config.middle
        # A picture shows the middle of its path.
        along = along if config.frames > 1 else np.zeros_like(along)
        return middle[:, None] + along[..., None] * travel[:, None]

    def _between_walls(
        self, room: np.ndarray, stride: np.ndarray, jitter: np.ndarray
    ) -> np.ndarray:
        """Places [B, F, 2] in a room [B, 2] on the way from wall to wall, without an end."""
        free = FREE_STRIDES * stride
        low, high = np.maximum(-free, 0), room - np.maximum(free, 0)
        share = self.config.place_jitter
        start = (1 - share) * room / 2 + share * (low + jitter * (high - low))
        time = np.arange(self.config.frames)[:, None]
        return bounced(start[:, None] + time * stride[:, None], room[:, None])


def render(
    shapes: np.ndarray,
    cell: np.ndarray,
    corner: np.ndarray,
    tint: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Draws glyphs [B, G, G] at corners [B, F, 2] in tints [B, 3]: uint8 [B, F, H, W, 3]."""
    rows, columns = (
        _weights(cell, corner[..., axis].astype(np.float32), pixels)
        for axis, pixels in enumerate(size)
    )
    mask = rows @ shapes[:, None] @ columns.swapaxes(-1, -2)
    np.clip(mask, 0, 1, out=mask)
    frames = np.empty((*mask.shape, 3), np.uint8)
    for channel in range(3):
        level = tint[:, channel, None, None, None]
        np.multiply(mask, level, out=frames[..., channel], casting="unsafe")
    return frames


def _weights(cell: np.ndarray, corner: np.ndarray, pixels: int) -> np.ndarray:
    """Catmull-Rom interpolation weights [B, F, pixels, G] of the glyph cells at the pixel centers.

    k(d) = 1.5 |d|³ - 2.5 |d|² + 1 for |d| < 1,  -0.5 |d|³ + 2.5 |d|² - 4 |d| + 2 for 1 <= |d| < 2
    (Keys 1981), d the distance in cells.
    """
    cell = cell.astype(np.float32)[:, None, None]
    centers = np.arange(pixels, dtype=np.float32) + np.float32(0.5)
    place = (centers - corner[..., None]) / cell - np.float32(0.5)
    d = np.abs(place[..., None] - np.arange(GLYPH, dtype=np.float32))
    near = (np.float32(1.5) * d - np.float32(2.5)) * d * d + 1
    far = ((np.float32(-0.5) * d + np.float32(2.5)) * d - 4) * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, 0))
