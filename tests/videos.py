"""Small videos, made on the spot."""

from fractions import Fraction

import av
import numpy as np


def moving_square(count, size=(48, 64), *, hue=0, step=1):
    """A bright square that moves to the right over a colored gradient, uint8 [F, H, W, 3]."""
    height, width = size
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., hue % 3] = np.linspace(30, 120, width).astype(np.uint8)
    for t, frame in enumerate(frames):
        left = (4 + step * t) % (width - 12)
        frame[height // 3 : height // 3 + 12, left : left + 12] = 230
    return frames


def write_video(path, frames, fps=24):
    """Encodes a video; its suffix says of which kind."""
    codec = {".webm": "libvpx", ".gif": "gif"}.get(path.suffix, "libx264")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
