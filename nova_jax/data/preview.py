"""What training sees, for a person to look at: a contact sheet and a video of decoded batches."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nova_jax import media
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_uint8
from nova_jax.errors import NovaError

SHEET_SIDE = 96  # pixels, at least, that a frame is enlarged to
VIDEO_SIDE = 384
COLUMNS = 2
REPEATS = 3


@dataclasses.dataclass(frozen=True)
class _Clip:
    frames: np.ndarray  # uint8 [F, H, W, 3]
    caption: str
    measures: str
    fps: float


def write_preview(
    batches: Iterator[dict[str, Any]], codec: VideoCodec, out_dir: Path, count: int = 16
) -> tuple[Path, Path]:
    """Writes `preview.png` and `preview.mp4` of the next batches and returns their paths.

    Everything has gone through the transforms and comes back through the codec. The sheet shows
    `count` videos with all their frames, then `count` pictures, if the stream has any; below each
    stand its caption ("[dropped]" in front where training gets no text), a video's motion score,
    and the number of latent frames. The video plays up to six of the clips, three times.

    Args:
      batches: from `make_iterator`, its `Encode` with keep_captions=True; the stream moves on.
      codec: the one the batches were made with.
      out_dir: made if missing; nothing in it is overwritten.
      count: how many clips of each kind, at most; a hundred batches are searched for them.
    """
    if count < 1:
        raise NovaError(f"a preview needs at least 1 clip, not {count}")
    kinds: dict[int, list[_Clip]] = {}
    for batch in itertools.islice(batches, 100):
        clips = kinds.setdefault(batch["latents"].shape[1], [])
        clips += _clips(batch, codec)[: count - len(clips)]
        if len(kinds) == 2 and all(len(clips) == count for clips in kinds.values()):
            break
    if not kinds:
        raise NovaError("no batches to preview; make num_clips larger or batch_size smaller")

    sheets = []
    for latent_frames, clips in sorted(kinds.items(), reverse=True):
        columns = COLUMNS if latent_frames > 1 else 2 * COLUMNS
        strips = [media.enlarge(clip.frames, SHEET_SIDE) for clip in clips]
        labels = [f"{clip.caption} · {clip.measures}" for clip in clips]
        sheets.append(media.contact_sheet(strips, labels, columns))
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [
        np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0)), constant_values=255)
        for sheet in sheets
    ]
    picture = media.save(out_dir / "preview.png", media.encode_png(np.concatenate(padded)))

    played = kinds[max(kinds)][:6]
    labels = [clip.caption for clip in played]
    large = [media.enlarge(clip.frames, VIDEO_SIDE) for clip in played]
    moments = [
        media.contact_sheet([frames[t : t + 1] for frames in large], labels, min(3, len(large)))
        for t in range(len(large[0]))
    ]
    film = media.encode_mp4(np.stack(moments * REPEATS), played[0].fps)
    return picture, media.save(out_dir / "preview.mp4", film)


def _clips(batch: dict[str, Any], codec: VideoCodec) -> list[_Clip]:
    if "caption" not in batch:
        raise NovaError("a preview needs captions; encode batches with keep_captions=True")
    pixels = np.asarray(to_uint8(codec.decode(batch["latents"])))
    latent_frames = batch["latents"].shape[1]
    return [
        _Clip(
            frames=frames,
            caption=f"{'[dropped] ' if dropped else ''}{caption}",
            measures=f"flow {flow:.2f} · T {latent_frames}" if latent_frames > 1 else "T 1",
            fps=float(fps),
        )
        for frames, caption, dropped, flow, fps in zip(
            pixels, batch["caption"], batch["dropped"], batch["flow"], batch["fps"], strict=True
        )
    ]
