"""The motion score of a clip: how fast its picture moves, by OpenCV's dense optical flow.

It is measured on the pixels, never taken from what rendered them, so real videos get the same
score. NOVA conditions on it (Deng et al., 2024, arXiv 2412.14169).
"""

from typing import Any

import cv2
import numpy as np

# OpenCV's own threads would only get in the way of the pipeline's.
cv2.setNumThreads(1)

#: Flow is measured on frames shrunk by this factor: a quarter of the work, and steadier.
SHRINK = 2
#: Farneback (2003). OpenCV itself leaves out pyramid levels smaller than 32 pixels: tiny frames
#: use one level, real videos three.
_FARNEBACK: dict[str, Any] = dict(
    pyr_scale=0.5, levels=3, winsize=9, iterations=1, poly_n=3, poly_sigma=0.8, flags=0
)


def motion_score(clips: np.ndarray) -> np.ndarray:
    """Returns the mean optical flow magnitude of each clip in pixels per frame: float32 [B].

    The mean goes over all pixels and all pairs of neighboring frames; one frame alone scores 0. A
    clip's frames lie side by side in a strip: shifted by one frame, the strip is its own successor,
    and one call measures all pairs. Clips are measured apart, so a score is its clip's alone.

    Args:
      clips: uint8 [B, F, H, W, 3], RGB.
    """
    batch, frames = clips.shape[:2]
    height, width = (side // SHRINK for side in clips.shape[2:4])
    if frames == 1:
        return np.zeros(batch, np.float32)
    even = np.ascontiguousarray(clips[:, :, : height * SHRINK, : width * SHRINK])
    gray = cv2.cvtColor(even.reshape(-1, width * SHRINK, 3), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (width, len(gray) // SHRINK), interpolation=cv2.INTER_AREA)

    strips = np.ascontiguousarray(small.reshape(batch, frames, height, width).swapaxes(1, 2))
    flow = np.empty((batch, height, (frames - 1) * width, 2), np.float32)
    for strip, result in zip(strips.reshape(batch, height, -1), flow, strict=True):
        cv2.calcOpticalFlowFarneback(strip[:, :-width], strip[:, width:], result, **_FARNEBACK)
    return SHRINK * np.hypot(flow[..., 0], flow[..., 1]).mean((1, 2))
