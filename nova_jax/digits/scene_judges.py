"""Judges of scenes: what stands in a picture, where and in what color. None of them is the model.

Things are pieces that hang together on the dark ground; a support vector machine trained on real
handwriting of the training split reads each, its color is the nearest named one. Whether a picture
is right is decided as GenEval does (github.com/djghosh13/geneval, evaluation/evaluate_images.py),
but strictly: a thing too many is wrong in every task.

Letters: H, W height and width in pixels, P = 12·12 pixels of a crop.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from nova_jax.digits.judges import DARK, WINDOW, cut_out, measure_color
from nova_jax.digits.scene_captions import RELATIONS, Scene
from nova_jax.digits.scenes import ScenesConfig, ScenesSource

Picture = UInt8[np.ndarray, "h w 3"]

#: Of a thing's brightest channel, as a share of the picture's peak: below it is ground.
GROUND = 0.25
#: Pieces of fewer pixels are specks, as a share of the box of a digit.
SPECK = 0.06
#: GenEval's: along a relation things are apart by more than this share of their sizes together, ...
APART = 0.1
#: ... and at least so much of their distance lies along it.
ALONG = 0.5
TRAINING_SCENES = 9_000


@dataclasses.dataclass(frozen=True)
class Thing:
    """A digit that was found.

    Attributes:
        digit: 0..9.
        color: one of `nova_jax.digits.captions.COLORS`.
        middle: of its box (right, down), in pixels.
        size: of its box (right, down), in pixels.
    """

    digit: int
    color: str
    middle: tuple[float, float]
    size: tuple[float, float]


class SceneJudges:
    """The judges of pictures that look like a given data configuration.

    Building one trains the classifier (seconds), on pictures of the training split. Deterministic.

    Args:
        config: what real pictures look like. Its split and combinations are not used.
    """

    def __init__(self, config: ScenesConfig) -> None:
        self.config = dataclasses.replace(
            config,
            split="train",
            combinations="seen",
            num_scenes=TRAINING_SCENES,
            seed=config.seed + 1,
        )
        pictures = ScenesSource(self.config).batch(np.arange(TRAINING_SCENES))
        crops, digits = [], []
        for picture, scene in zip(pictures["frames"][:, 0], pictures["scene"], strict=True):
            # Where digits differ nothing says which is which; one digit has one name.
            if len(set(scene.digits)) == 1:
                found = [self._crop(picture, piece) for piece in self._pieces(picture)]
                crops += found
                digits += scene.digits[:1] * len(found)
        from sklearn.svm import SVC  # slow to import, and few commands judge

        self._classifier = SVC(C=5, gamma=0.09)
        self._classifier.fit(np.stack(crops), digits)

    def __call__(self, picture: Picture) -> tuple[Thing, ...]:
        """The things in a picture, from left to right."""
        things = []
        for piece in self._pieces(picture):
            down, right = (np.flatnonzero(piece.any(axis)) for axis in (1, 0))
            digit = int(self._classifier.predict(self._crop(picture, piece)[None])[0])
            middle = (float(right[[0, -1]].mean()), float(down[[0, -1]].mean()))
            size = (float(np.ptp(right)) + 1, float(np.ptp(down)) + 1)
            color = measure_color((picture * piece[..., None])[None])
            things.append(Thing(digit, color, middle, size))
        return tuple(sorted(things, key=lambda thing: thing.middle))

    def features(self, picture: Picture) -> Float[np.ndarray, "n 10"]:
        """The classifier's scores of each thing in a picture."""
        crops = [self._crop(picture, piece) for piece in self._pieces(picture)]
        return self._classifier.decision_function(crops) if crops else np.empty((0, 10))

    def _pieces(self, picture: Picture) -> list[Bool[np.ndarray, "h w"]]:
        """Masks of what hangs together; strokes up to two pixels apart are of one piece."""
        value = picture.max(-1)
        if value.max() < DARK:
            return []
        ink = value > max(GROUND * value.max(), DARK)
        near = cv2.morphologyEx(ink.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        number, labels = cv2.connectedComponents(near, connectivity=8)
        pieces = [ink & (labels == label) for label in range(1, number)]
        return [p for p in pieces if p.sum() >= SPECK * self.config.digit_size**2]

    def _crop(self, picture: Picture, piece: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " p"]:
        """A thing about its center of brightness, at full brightness, without its neighbors."""
        around = cv2.dilate(piece.astype(np.uint8), np.ones((3, 3), np.uint8))
        value = np.where(around, picture.max(-1), 0).astype(np.float32)
        rows, columns = (np.arange(side) for side in value.shape)
        weights = np.where(piece, value, 0)
        center = (weights.sum(0) @ columns, weights.sum(1) @ rows) / weights.sum()
        return cut_out(value, center, round(WINDOW * self.config.digit_size))


def is_right(scene: Scene, things: Sequence[Thing]) -> bool:
    """Whether a picture shows what the caption of a scene says, and nothing besides."""
    if Counter(scene.digits) != Counter(thing.digit for thing in things):
        return False
    if scene.colors_told:
        asked = Counter(zip(scene.digits, scene.colors, strict=True))
        return asked == Counter((thing.digit, thing.color) for thing in things)
    if scene.relation is not None:
        first, second = sorted(things, key=lambda thing: scene.digits.index(thing.digit))
        return stands(first, scene.relation, second)
    return True


def stands(first: Thing, relation: str, second: Thing) -> bool:
    """Whether one thing stands in a relation to another, by GenEval's rule.

    What boxes are apart beyond a tenth of their sizes together, d = (right, down), has at least
    half of its length |d| along the relation's direction.
    """
    apart = np.subtract(first.middle, second.middle)
    slack = APART * np.add(first.size, second.size)
    beyond = np.maximum(np.abs(apart) - slack, 0) * np.sign(apart)
    length = np.linalg.norm(apart)
    return bool(length and (beyond / length) @ RELATIONS[relation] > ALONG)
