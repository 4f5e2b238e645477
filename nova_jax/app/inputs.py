"""What people give to the app: how large it may be, and what it becomes.

Everything is checked here, or by the library, before it waits for its turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from nova_jax import media
from nova_jax.errors import NovaError

#: Characters of a prompt.
LONGEST_PROMPT = 1000
#: Bytes of a file.
LARGEST_FILE = 32 * 2**20
#: Pixels of a picture.
LARGEST_PICTURE = 2**24
#: Bytes of all frames of a video.
LARGEST_VIDEO = 2**26


#: Names and contents of files by what they are: image, mask, video.
Files = Mapping[str, tuple[str, bytes]]


@dataclasses.dataclass(frozen=True)
class Given:
    """What a video begins with, or what is painted anew.

    Attributes:
        arrays: by what they are: image, mask, video; as `NovaPipeline.start` takes them.
        files: the same as files, from which they are read back to the bit.
    """

    arrays: Mapping[str, np.ndarray]
    files: Files

    @classmethod
    def image(cls, picture: media.Picture, size: tuple[int, int]) -> Given:
        """A picture; one that was enlarged for viewing is taken back to `size`."""
        picture = own_pixels(picture, size)
        return cls({"image": picture}, {"image": ("picture.png", media.encode_png(picture))})

    @classmethod
    def painting(
        cls, picture: media.Picture, mask: Bool[np.ndarray, "h w"], size: tuple[int, int]
    ) -> Given:
        """A picture, and white where it is painted anew.

        Raises:
            NovaError: nothing is.
        """
        if not mask.any():
            raise NovaError("nothing is marked; paint over what is to change")
        own = own_pixels(picture, size)
        factor = picture.shape[0] // own.shape[0]
        if factor > 1:
            blocks = mask.reshape(own.shape[0], factor, own.shape[1], factor)
            mask = np.any(blocks, axis=(1, 3))
        white = np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
        files = {
            "image": ("picture.png", media.encode_png(own)),
            "mask": ("mask.png", media.encode_png(white)),
        }
        return cls({"image": own, "mask": mask}, files)

    @classmethod
    def video(cls, path: str) -> Given:
        """A video file.

        Raises:
            NovaError: it is none, or too large.
        """
        frames = media.read_video(path, LARGEST_VIDEO)
        name = f"video{Path(path).suffix.lower()}"
        return cls({"video": frames}, {"video": (name, Path(path).read_bytes())})


#: What most videos begin with.
NOTHING = Given({}, {})


def own_pixels(picture: media.Picture, size: tuple[int, int]) -> UInt8[np.ndarray, "_ _ 3"]:
    """A picture without what `media.enlarge` did to one of this size; others as they are."""
    factor = picture.shape[0] // size[0]
    if factor > 1:
        small = picture[::factor, ::factor]
        whole = small.repeat(factor, 0).repeat(factor, 1)
        if small.shape[:2] == size and np.array_equal(whole, picture):
            return small
    return picture


def read_picture(path: str | None) -> media.Picture:
    """A picture that was uploaded.

    Raises:
        NovaError: there is none, it is none, or it is too large.
    """
    if path is None:
        raise NovaError("no picture is given; upload one, or take one of yours")
    picture = media.read_image(path)
    if picture.shape[0] * picture.shape[1] > LARGEST_PICTURE:
        raise NovaError(f"the picture has more than {LARGEST_PICTURE >> 20} million pixels")
    return picture


def check_prompt(prompt: Any, what: str = "prompt") -> str:
    """A prompt in one line.

    Raises:
        NovaError: it is empty or too long.
    """
    text = " ".join(str(prompt or "").replace("\0", " ").split())
    if not text:
        raise NovaError(f"the {what} is empty; say what to show")
    if len(text) > LONGEST_PROMPT:
        raise NovaError(
            f"the {what} has {len(text)} characters; say it with at most {LONGEST_PROMPT}"
        )
    return text
