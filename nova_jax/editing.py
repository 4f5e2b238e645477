"""Editing: which tokens of given frames are painted anew, and how they are put into the frames.

A mask says which pixels are painted anew. A token is if any of its pixels is, and so are the tokens
around it: what is hidden shines through an autoencoder into its neighbors (MAGE, MaskGIT). What is
kept is revealed first, so that drawing starts where so many tokens are revealed. The frames that
are shown go from what was given to what was drawn on the way from the edge of the tokens that were
drawn to the mask; outside they are the given ones, to the bit.

Dimensions: F pixel frames, H×W pixels, g latent frames, N tokens of a frame, B samples.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import einops
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from nova_jax import media
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.config import Natural, convert, shown
from nova_jax.errors import NovaError

logger = logging.getLogger(__name__)

Frames = UInt8[np.ndarray, "F H W 3"]
Mask = Bool[np.ndarray, "F H W"]

#: From this value, of 0..255, a pixel of a mask is white.
WHITE = 128


@dataclasses.dataclass(frozen=True)
class Edit:
    """Given frames, of which a part is painted anew.

    Attributes:
        frames: the given ones.
        share: of what is drawn in what is shown: 1 under the mask, 0 outside of what is drawn.
        kept: tokens that are not drawn.
        seen: as share, in latents: of what is drawn in what later frames see.
    """

    frames: Frames
    share: Float[np.ndarray, "F H W"]
    kept: Bool[np.ndarray, "g n"]
    seen: Float[np.ndarray, "g h w"]

    @classmethod
    def of(cls, frames: Frames, mask: Mask, codec: VideoCodec, patch_size: int) -> Edit:
        """What a mask makes of frames; both have the size that the model generates.

        Args:
            frames: as many as latent frames stand for.
            mask: of each frame, the pixels that are painted anew.
            codec: of the model.
            patch_size: a token's side in latents.
        """
        side, kept, seen = codec.stride * patch_size, [], []
        share = np.zeros(mask.shape, np.float32)
        shown = [0, *map(codec.pixel_frames, range(1, codec.latent_frames(len(frames)) + 1))]
        for start in shown[:-1]:
            # Latent frames that show nothing before their window is full show all of it.
            shows = slice(start, next(end for end in shown if end > start))
            drawn = _tokens(np.any(mask[shows], axis=0), side)
            kept.append(~drawn.ravel())
            area = drawn.repeat(side, 0).repeat(side, 1)
            share[shows] = [_ramp(one, area) for one in mask[shows]]
            blocks = "f (h y) (w x) -> h w"
            seen.append(einops.reduce(share[shows], blocks, "mean", y=codec.stride, x=codec.stride))
        return cls(frames, share, np.stack(kept), np.stack(seen))

    def put_in(self, drawn: UInt8[np.ndarray, "b T H W 3"]) -> UInt8[np.ndarray, "b T H W 3"]:
        """What was drawn, put into the frames; frames beyond the given ones stay as drawn."""
        result, count = drawn.copy(), len(self.frames)
        share, given = self.share[..., None], self.frames.astype(np.float32)
        mixed = np.rint(share * drawn[:, :count] + (1 - share) * given)
        result[:, :count] = mixed.astype(np.uint8)
        return result


def _tokens(mask: Bool[np.ndarray, "H W"], side: int) -> Bool[np.ndarray, "rows columns"]:
    """Tokens that any pixel of the mask is in, and those around them."""
    from scipy import ndimage  # slow to import, and few calls edit

    height, width = mask.shape
    touched = mask.reshape(height // side, side, width // side, side).any((1, 3))
    return np.asarray(ndimage.binary_dilation(touched, np.ones((3, 3), bool)))


def _ramp(mask: Bool[np.ndarray, "H W"], area: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """1 on the mask, 0 outside the area around it, between them by the distance to both."""
    if not mask.any() or area.all():  # nothing to go to, or nothing to come from
        return (mask if not mask.any() else area).astype(np.float32)
    from scipy import ndimage

    inward, onward = map(ndimage.distance_transform_edt, (area, ~mask))
    return inward / (inward + onward)  # a pixel of the mask is not outside: never 0 / 0


def check_mask(mask: Any, shape: tuple[int, int, int]) -> Mask:
    """A mask, one for all frames or one for each, of frames of this shape [F, H, W].

    Pictures and arrays of 0..255 are white from `WHITE` on, others where they are not 0. One of
    another size is scaled, and that is said.

    Raises:
        NovaError: it is none, or there are as many as neither one nor frames.
    """
    several = isinstance(mask, list | tuple)
    pictures = [_gray(one) for one in (mask if several else [mask])]
    try:
        given = np.concatenate([one if one.ndim == 3 else one[None] for one in pictures])
    except ValueError:
        given = np.zeros(0)
    if given.ndim != 3 or not given.size:
        raise NovaError(f"mask is {shown(mask)}; give a picture, or an array [H, W] or [F, H, W]")
    if len(given) not in (1, shape[0]):
        raise NovaError(f"{len(given)} masks for {shape[0]} frames; give one, or one for each")
    if given.shape[1:] != shape[1:]:
        logger.warning("mask of %dx%d scaled to %dx%d", *given.shape[2:0:-1], shape[2], shape[1])
        given = np.stack([np.asarray(Image.fromarray(m).resize(shape[:0:-1])) for m in given])
    return np.broadcast_to(given, shape)


def _gray(mask: Any) -> Bool[np.ndarray, "*shape"]:
    """White pixels of one mask, or of an array of several."""
    if isinstance(mask, Image.Image):
        return media.to_rgb(mask)[..., 0] >= WHITE
    values = np.asarray(mask)
    if values.dtype != bool and not np.issubdtype(values.dtype, np.number):
        raise NovaError(f"mask is {shown(mask)}; give a picture, or an array [H, W] or [F, H, W]")
    deep = values.dtype == np.uint8 and values.size and values.max() > 1
    return values >= WHITE if deep else values != 0


def outpainted(
    frames: Frames, mask: Mask | None, margins: Any
) -> tuple[UInt8[np.ndarray, "F _ _ 3"], Bool[np.ndarray, "F _ _"]]:
    """Frames with room around them, and the mask that has the room painted as well.

    Args:
        frames: F frames.
        mask: of them; None for nothing.
        margins: pixels at the top, right, bottom and left.

    Raises:
        NovaError: they are not four numbers of pixels, or all are 0.
    """
    if not isinstance(margins, list | tuple) or len(margins) != 4:
        raise NovaError(
            f"outpaint is {shown(margins)}; give four numbers of pixels: top, right, bottom, left"
        )
    top, right, bottom, left = (convert(Natural, margin, "outpaint") for margin in margins)
    if not top + right + bottom + left:
        raise NovaError("outpaint is 0 on all sides; give the pixels to add to one")
    largest = max(frames.shape[1] + top + bottom, frames.shape[2] + left + right)
    if largest > 2 * media.LARGEST:
        raise NovaError(f"outpaint makes a picture of {largest} pixels a side; take less")
    sides = ((0, 0), (top, bottom), (left, right))
    mask = np.zeros(frames.shape[:3], bool) if mask is None else mask
    mask = np.pad(mask, sides, constant_values=True)
    return np.pad(frames, (*sides, (0, 0)), constant_values=WHITE - 1), mask


def fit_mask(mask: Mask, size: tuple[int, int]) -> Bool[np.ndarray, "F {size[0]} {size[1]}"]:
    """Scales and crops a mask as `media.fit_image` does pictures; no white pixel of it is lost."""
    gray = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
    fitted = [media.fit_image(one, size, Image.Resampling.BOX)[..., 0] > 0 for one in gray]
    return np.stack(fitted)
