"""What videos begin with: a picture, a video or latents, and what of them is painted anew.

Letters as in `nova_jax.pipeline`; P prompts, g latent frames are given.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from nova_jax import media
from nova_jax.arguments import check_numbers
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_float
from nova_jax.config import shown
from nova_jax.editing import Edit, check_mask, fit_mask, outpainted
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.request import FirstFrames

logger = logging.getLogger(__name__)

Pictures = np.ndarray | Sequence[Image.Image]


def check_beginning(
    image: np.ndarray | Image.Image | None,
    video: Pictures | None,
    latents: Any,
    mask: Any,
    outpaint: Any,
    count: int,
    *,
    config: NovaConfig,
    codec: VideoCodec,
) -> FirstFrames | None:
    """What the videos of so many prompts begin with; None for nothing.

    Args:
        image: a picture, uint8 [H, W, 3].
        video: pictures, uint8 [F, H, W, 3].
        latents: [1 or P, g, h, w, C].
        mask: pixels of the picture or video that are painted anew, see `editing.check_mask`.
        outpaint: pixels that are added around it, see `editing.outpainted`.
        count: P.
        config, codec: of the model.

    Raises:
        NovaError: several are given, one is something else, or it does not fit the model.
    """
    names = {"image": image, "video": video, "latents": latents}
    given = [name for name, value in names.items() if value is not None]
    if len(given) > 1:
        article = "an" if given[0] == "image" else "a"
        raise NovaError(f"{article} {given[0]} and {given[1]} are given; give one of them")
    edits = [
        name for name, wish in {"mask": mask, "outpaint": outpaint}.items() if wish is not None
    ]
    if edits and not {"image", "video"} & set(given):
        raise NovaError(f"{edits[0]} is given and nothing to paint in; give an image or a video")
    if latents is not None:
        return check_latents(latents, count, config)
    if not given:
        return None
    frames = _frames_of(image) if video is None else _frames_of(video, several=True)
    if len(frames) > 1 and not config.is_video:
        raise NovaError("an image model takes no video; give an image")
    hidden = None if mask is None else check_mask(mask, frames.shape[:3])
    chosen = _fitting(len(frames), codec, from_end=not edits)
    frames, hidden = frames[chosen], hidden if hidden is None else hidden[chosen]
    if outpaint is not None:
        frames, hidden = outpainted(frames, hidden, outpaint)
    return _encode(frames, hidden, count, config, codec)


def check_latents(latents: Any, count: int, config: NovaConfig) -> FirstFrames:
    """Latents, [1 or P, g, h, w, C], that the videos of so many prompts begin with.

    Raises:
        NovaError: they are not of this model.
    """
    given = check_numbers(latents, "latents")
    wanted = (*config.latent_size, config.latent_channels)
    if given.ndim != 5 or given.shape[2:] != wanted or given.shape[0] not in (1, count):
        raise NovaError(
            f"latents have shape {list(given.shape)}; this model takes "
            f"[1 or {count}, frames, {', '.join(map(str, wanted))}]"
        )
    mean = np.broadcast_to(given, (count, *given.shape[1:]))
    return FirstFrames(mean, np.zeros_like(given[:1]))


def _frames_of(given: Any, *, several: bool = False) -> UInt8[np.ndarray, "F H W 3"]:
    """One picture, or several of one size, as frames.

    Raises:
        NovaError: they are something else.
    """
    what, shape = ("video", "[frames, height, width, 3]") if several else ("image", "[H, W, 3]")
    pictures = given if several else [given]
    if isinstance(pictures, list | tuple):
        pictures = [media.to_rgb(p) if isinstance(p, Image.Image) else p for p in pictures]
    try:
        frames = np.asarray(pictures)
    except ValueError:
        frames = np.zeros(0)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        is_array = isinstance(given, np.ndarray)
        found = f"{given.dtype} {list(given.shape)}" if is_array else shown(given)
        raise NovaError(
            f"{what} is {found}; give uint8 {shape} with pixels in it, or PIL's of one size"
        )
    return frames


def _fitting(count: int, codec: VideoCodec, *, from_end: bool) -> slice:
    """As many frames as latent frames stand for; of what goes on the last ones, else the first."""
    number = next(n for n in range(count, 0, -1) if codec.pixel_frames(codec.latent_frames(n)) == n)
    if number < count:
        logger.warning(
            "video of %d frames: the %s %d are left out, for latent frames stand for %d of them",
            *(count, "first" if from_end else "last", count - number, number),
        )
    return slice(count - number, None) if from_end else slice(number)


def _encode(
    frames: UInt8[np.ndarray, "F H W 3"],
    hidden: Bool[np.ndarray, "F H W"] | None,
    count: int,
    config: NovaConfig,
    codec: VideoCodec,
) -> FirstFrames:
    """Frames in the model's size, what a mask says of them, and their latents."""
    size = (config.latent_size[0] * codec.stride, config.latent_size[1] * codec.stride)
    if frames.shape[1:3] != size:
        logger.warning(
            "%s of %dx%d scaled and cropped about its center to %dx%d",
            *("image" if len(frames) == 1 else "video", *frames.shape[2:0:-1], *size[::-1]),
        )
        frames = np.stack([media.fit_image(frame, size) for frame in frames])
        hidden = None if hidden is None else fit_mask(hidden, size)
    edit, pixels = None, to_float(frames)
    if hidden is not None:
        edit = Edit.of(frames, hidden, codec, config.patch_size)
        # Gray, so that what is hidden does not shine through an autoencoder.
        pixels[hidden] = 0
    mean, deviation = (np.asarray(x) for x in codec.posterior(pixels[None]))
    return FirstFrames(np.broadcast_to(mean, (count, *mean.shape[1:])), deviation, edit)
