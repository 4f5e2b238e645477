"""Pictures of one to four handwritten digits: the six tasks of GenEval, with nothing to download.

A scene (`nova_jax.digits.scene_captions.Scene`) is drawn on a black ground, its digits of real
handwriting (scikit-learn's 8 x 8 images) in one of eight colors each, apart from each other. Its
caption tells one thing of it: a digit, two, how many, in what color, where, or which is of which
color (GenEval, arXiv 2310.11513). A picture is a function of (seed, index) only.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from nova_jax.config import Checked, Count, Fraction, Range, Seed
from nova_jax.digits.captions import COLORS
from nova_jax.digits.clips import COMBINATIONS, GLYPH, SPLITS, Rows, glyphs, render
from nova_jax.digits.scene_captions import (
    COUNTS,
    RELATIONS,
    TASKS,
    TRAINING_TASKS,
    Scene,
    caption,
    has_seen_colors,
    is_seen,
)
from nova_jax.errors import NovaError

#: Things of a scene stand at least so many pixels apart, soft edges included.
GAP = 2.0
#: Of a relation: how much further apart things are along it than across it, at least.
_STRAIGHT = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesConfig(Checked):
    """What the pictures look like and which ones there are.

    Attributes:
        type: "scenes".
        size: height and width of a picture in pixels.
        digit_size: side in pixels of the box that holds a digit, at least 8; four of them fit.
        split: "train" or "held_out" handwriting. The two share no image.
        combinations: "seen" (what training may use), "unseen" or "all", see
            `nova_jax.digits.scene_captions.is_seen`.
        tasks: what captions tell, in turn; one that stands there twice is shown twice as often.
        num_scenes: how many different pictures.
        seed: another seed, other pictures.
        place_jitter: 0 puts things into the cells of a grid of 3 x 3, 1 anywhere.
        filled: whether every cell holds one of the scene's things, whose captions count none. What
            a cell shows is then the caption's business, not chance: a model learns what words mean
            from such pictures in a few hundred steps, and from others in many thousands.
        size_jitter, brightness_jitter: largest relative change of size and loss of brightness.
    """

    type: Literal["scenes"] = "scenes"
    size: tuple[Count, Count] = (48, 48)
    digit_size: Annotated[float, Range(GLYPH)] = 12.0
    split: str = "train"
    combinations: str = "seen"
    tasks: tuple[str, ...] = TASKS
    num_scenes: Count = 200_000
    seed: Seed = 0
    place_jitter: Fraction = 1.0
    filled: bool = False
    size_jitter: Annotated[float, Range(0, below=1)] = 0.08
    brightness_jitter: Annotated[float, Range(0, below=1)] = 0.15
    #: Pictures.
    frames: ClassVar[int] = 1
    fps: ClassVar[float] = 1.0
    #: Of text features in batches, see `nova_jax.data.batch`.
    text_dtype: ClassVar[DTypeLike] = np.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("split", SPLITS), ("combinations", COMBINATIONS)):
            if (value := getattr(self, name)) not in choices:
                raise NovaError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
        if not self.tasks or set(self.tasks) - set(TRAINING_TASKS):
            raise NovaError(f"tasks {self.tasks} must be some of {', '.join(TRAINING_TASKS)}")
        if self.filled and ("counting" in self.tasks or self.place_jitter > 0.1):
            raise NovaError(
                "things of filled pictures are in their cells and not counted; set place_jitter to "
                "0.1 or less, and leave counting out of tasks"
            )
        if self.split == "train" and self.combinations != "seen":
            raise NovaError(
                f"combinations={self.combinations!r} with the train split would show training what "
                'evaluation keeps back; use split="held_out" or combinations="seen"'
            )
        if 3 * self.side + 2 * GAP > min(self.size):
            raise NovaError(
                f"three digits of {self.digit_size:g} pixels (up to {self.side:.1f} with their "
                f"soft edges) do not fit side by side into {self.size[0]}x{self.size[1]}; make "
                "digit_size smaller or size larger"
            )

    @property
    def side(self) -> float:
        """Of the largest thing, its soft edge included, in pixels."""
        return self.digit_size * (1 + self.size_jitter) * (GLYPH + 1) / GLYPH


def draw_scene(rng: np.random.Generator, task: str) -> Scene:
    """A scene of a task, all of its combinations equally likely."""
    if task == "counting":
        count = int(rng.choice(list(COUNTS)))
        digits = [int(rng.integers(10))] * count
    else:
        count = 1 if task in ("single_object", "colors") else 2
        digits = rng.choice(10, count, replace=False).tolist()
    # Things whose colors are told are told apart by them, as GenEval's are.
    same = task not in ("color_attr", "color_position")
    colors = rng.choice(list(COLORS), count, replace=same).tolist()
    relation = str(rng.choice(list(RELATIONS))) if task.endswith("position") else None
    return Scene(task, tuple(digits), tuple(colors), relation)


class ScenesSource(Rows):
    """A random-access source of pictures (`nova_jax.data.pipeline.ClipSource`)."""

    def __init__(self, config: ScenesConfig) -> None:
        self.config = config
        self._glyphs, labels = glyphs(config.split)
        self._of_digit = [np.flatnonzero(labels == digit) for digit in range(10)]

    def __len__(self) -> int:
        return self.config.num_scenes

    def images(self) -> Self:
        """Itself: all are pictures."""
        return self

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Draws pictures.

        Returns:
            frames: uint8 [B, 1, H, W, 3], RGB.
            flow, fps: float32 [B]: pictures move nowhere.
            caption, short_caption: lists of B strings, two wordings; scene: list of B `Scene`.
        """
        pictures, scenes, captions = [], [], []
        for index in indices:
            rng = np.random.Generator(np.random.Philox([self.config.seed, int(index)]))
            scene, wordings = self._draw(rng, self.config.tasks[index % len(self.config.tasks)])
            pictures.append(self._paint(rng, scene))
            scenes.append(scene)
            captions.append([caption(scene, wording) for wording in wordings])
        full, other = map(list, zip(*captions, strict=True))
        return {
            "frames": np.stack(pictures)[:, None],
            "caption": full,
            "short_caption": other,
            "flow": np.zeros(len(pictures), np.float32),
            "fps": np.full(len(pictures), self.config.fps, np.float32),
            "scene": scenes,
        }

    def _draw(self, rng: np.random.Generator, task: str) -> tuple[Scene, list[int]]:
        """A scene of the combinations that are asked for, and two wordings."""
        which = self.config.combinations
        while True:
            scene, wordings = draw_scene(rng, task), rng.integers(2**62, size=2).tolist()
            seen = {is_seen(scene, wording) for wording in wordings}
            # Training is shown none of the colors that are kept back, told or not.
            shown = which != "seen" or has_seen_colors(scene)
            if shown and (which == "all" or seen == {which == "seen"}):
                return scene, wordings

    def _paint(self, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """The picture of a scene, uint8 [H, W, 3]."""
        config = self.config
        which = _filling(rng, scene) if config.filled else range(len(scene.digits))
        digits, colors = [scene.digits[i] for i in which], [scene.colors[i] for i in which]
        images = [rng.choice(self._of_digit[digit]) for digit in digits]
        size, light = rng.uniform(-1, 1, len(digits)), rng.uniform(0, 1, len(digits))
        cell = config.digit_size / GLYPH * (1 + config.size_jitter * size)
        corner = self._place(rng, (GLYPH + 1) * cell, scene.relation) + cell[:, None] / 2
        tint = np.array([COLORS[color] for color in colors], np.float32)
        tint *= (1 - config.brightness_jitter * light)[:, None]
        things = render(self._glyphs[images], cell, corner[:, None], tint, config.size)
        return things[:, 0].max(0)

    def _place(
        self, rng: np.random.Generator, side: Float[np.ndarray, " n"], relation: str | None
    ) -> Float[np.ndarray, "n 2"]:
        """Upper left corners (down, right) of squares that keep apart and stand in a relation."""
        jitter, count = self.config.place_jitter, len(side)
        room = np.array(self.config.size) - side[:, None]
        cells = np.array(list(itertools.product(range(3), repeat=2))) / 2
        while True:
            free = rng.uniform(0, 1, (count, 2)) * room
            if self.config.filled:
                return (1 - jitter) * cells * room + jitter * free
            place = (1 - jitter) * cells[rng.permutation(9)[:count]] * room + jitter * free
            middle = place + side[:, None] / 2
            if all(
                np.abs(middle[i] - middle[j]).max() >= (side[i] + side[j]) / 2 + GAP
                for i, j in itertools.combinations(range(count), 2)
            ) and (relation is None or _stand(middle, relation)):
                return place


def _filling(rng: np.random.Generator, scene: Scene) -> Int[np.ndarray, " 9"]:
    """Which of a scene's things each cell holds: those of a relation their side, else any."""
    if scene.relation is None:
        return rng.integers(len(scene.digits), size=9)
    right, down = RELATIONS[scene.relation]
    line = np.arange(3) >= rng.integers(1, 3)  # one or two of three rows or columns
    line = line if right + down < 0 else ~line
    grid = line[:, None] if down else line[None]
    return np.broadcast_to(grid, (3, 3)).ravel().astype(int)


def _stand(middle: Float[np.ndarray, "2 2"], relation: str) -> bool:
    """Whether the first of two things stands clearly in a relation to the second."""
    right, down = RELATIONS[relation]
    apart = middle[0] - middle[1]
    along, across = (apart[0], apart[1]) if down else (apart[1], apart[0])
    return along * (right + down) >= _STRAIGHT * abs(across)
