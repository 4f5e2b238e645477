"""Draws the pictures of the README with the shipped model: videos, and what is done with sessions.

    python docs/draw_pictures.py docs/images

digits.png, digits.gif: videos of its own length. sessions.png, a row each: a video that goes on; a
prompt that changes on the way; two futures of one past; a picture of which a half is painted anew.
"""

import sys
from pathlib import Path

import einops
import numpy as np

from nova_jax import media
from nova_jax.pipeline import NovaPipeline

SHOWN = 16  # frames of a row
PROMPTS = (
    "a red seven moves slowly to the left",
    "the digit 3 in blue goes quickly up",
    "a green zero races to the lower right corner",
    "a yellow five glides downward",
    "a handwritten 2 in cyan moves fast to the upper left",
    "magenta eight, right",
    "an orange four moves slowly diagonally up right",
    "the number 9, white, moves fast to the right",
)


def row(*frames: np.ndarray) -> np.ndarray:
    """Frames as a strip of so many, every second one where there are twice as many."""
    clip = np.concatenate(frames)
    clip = clip[:: -(-len(clip) // SHOWN)]
    blank = np.full((SHOWN - len(clip), *clip.shape[1:]), 255, np.uint8)
    return media.enlarge(np.concatenate([clip, blank]), 64)


def main(folder: str) -> None:
    """Draws what is to be seen."""
    pipeline, place = NovaPipeline.from_checkpoint(), Path(folder)
    videos = pipeline(PROMPTS)
    clips = media.enlarge(videos.frames, 64)
    sheet = media.contact_sheet(clips, PROMPTS)
    (place / "digits.png").write_bytes(media.encode_png(sheet))
    grid = einops.rearrange(
        np.pad(clips, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255),
        "(rows columns) f h w c -> f (rows h) (columns w) c",
        rows=2,
    )
    (place / "digits.gif").write_bytes(media.encode_gif(grid, videos.fps))
    sheet = sessions(pipeline)
    (place / "sessions.png").write_bytes(media.encode_png(sheet))


def sessions(pipeline: NovaPipeline) -> np.ndarray:
    """The sheet of what is done with sessions and masks."""
    rows = {}

    prompt = "a yellow two moves slowly to the right"
    video = pipeline(prompt, seed=1).frames[0]
    longer = pipeline(prompt, seed=2, video=video, num_frames=16).frames[0]
    rows[f"eight frames that were given, and eight that go on from them: {prompt}"] = [longer]

    session = pipeline.start("a red seven moves slowly to the left", seed=3)
    before = np.concatenate(list(session.stream(8)), axis=1)[0]
    session.prompt("a blue seven moves slowly down", over=2)
    after = np.concatenate(list(session.stream(8)), axis=1)[0]
    rows["a prompt that changes: a red seven moves slowly to the left; a blue seven, down"] = [
        before,
        after,
    ]

    session = pipeline.start("a green three moves slowly up", seed=5)
    past = np.concatenate(list(session.stream(4)), axis=1)[0]
    futures = {"up": session.fork(), "to the right": session.fork().reseed(7)}
    for way, branch in futures.items():
        branch.prompt(f"a green three moves slowly {way}")
        future = np.concatenate(list(branch.stream(12)), axis=1)[0]
        rows[f"one past of four frames, a future {way}"] = [past, future]

    picture = pipeline("a magenta eight", seed=4, num_frames=1).frames[0, 0]
    mask = np.zeros(pipeline.size, bool)
    mask[:, 16:] = True
    erased = np.where(mask[..., None], np.uint8(127), picture)
    painted = [
        pipeline(f"a {color} {digit}", seed=seed, image=picture, mask=mask).frames[0]
        for seed, (color, digit) in enumerate(
            (("magenta", "eight"), ("magenta", "three"), ("magenta", "five"))
        )
    ]
    rows["a picture, what is erased of it, painted anew: eight, three, five"] = [
        picture[None],
        erased[None],
        *painted,
    ]
    clips = [row(*frames) for frames in rows.values()]
    return media.contact_sheet(clips, list(rows), columns=1)


if __name__ == "__main__":
    main(sys.argv[1])
