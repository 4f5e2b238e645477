"""Pixels of latent frames as these come, in the windows that a codec's own `decode` cuts.

Letters in shapes:

    B clips   F pixel frames   H, W pixels   t latent frames   h, w latent sides   C latent channels
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Float

from nova_jax.autoencoders.interface import Array, VideoCodec


@dataclasses.dataclass(frozen=True)
class StreamDecoder:
    """What a codec has not yet decoded of videos that go on: a value, replaced with each frame.

    Its memory is that of one window, however long the videos become.

    Attributes:
        waiting: latents of the window that is not full; None before the first.
        shown: pixel frames of that window that were given already.
        first: whether it is the first window.
    """

    waiting: Float[Array, "b t h w c"] | None = None
    shown: int = 0
    first: bool = True

    def push(
        self, codec: VideoCodec, latents: Float[Array, "b t h w c"]
    ) -> tuple[StreamDecoder, list[Float[Array, "b F H W 3"]]]:
        """Takes latent frames, and gives the pixels of every window that is full with them."""
        windows, ready = codec.decode_windows, []
        waiting, shown, first = latents, self.shown, self.first
        if self.waiting is not None:
            waiting = jnp.concatenate([self.waiting, latents], axis=1)
        while waiting.shape[1] >= windows.size:
            pixels = codec.decode(waiting[:, : windows.size])[:, shown:]
            if pixels.shape[1]:
                ready.append(pixels)
            # What a later window repeats of the one before was shown there.
            waiting, shown, first = waiting[:, windows.step :], windows.drop, False
        return StreamDecoder(waiting, shown, first), ready

    def flush(self, codec: VideoCodec) -> tuple[StreamDecoder, list[Float[Array, "b F H W 3"]]]:
        """Gives what can be shown of a window that is not full, at the end of videos.

        As in `decode`, that is a first window; of a later one, frames that do not fill it are left
        out. When the videos go on, what was shown is not shown again.
        """
        if self.waiting is None or not self.first:
            return self, []
        pixels = codec.decode(self.waiting)[:, self.shown :]
        if not pixels.shape[1]:
            return self, []
        return dataclasses.replace(self, shown=self.shown + pixels.shape[1]), [pixels]
