"""Draws docs/images/sessions.png with the shipped model.

    python docs/draw_sessions.py docs/images/sessions.png

A row each: a video of eight frames that goes on; a prompt that changes on the way; two futures of
one past; a picture of which a half is painted anew.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from nova_jax import media
from nova_jax.pipeline import NovaPipeline

SHOWN = 16  # frames of a row


def row(*frames: np.ndarray) -> np.ndarray:
    """Frames as a strip of so many, every second one where there are twice as many."""
    clip = np.concatenate(frames)
    clip = clip[:: -(-len(clip) // SHOWN)]
    blank = np.full((SHOWN - len(clip), *clip.shape[1:]), 255, np.uint8)
    return media.enlarge(np.concatenate([clip, blank]), 64)


def main(file: str) -> None:
    """Draws what is to be seen."""
    pipeline = NovaPipeline.from_checkpoint()
    rows = {}

    prompt = "a yellow two moves slowly to the right"
    video = pipeline(prompt, seed=1).frames[0]
    longer = pipeline("a yellow two moves slowly up", seed=2, video=video, num_frames=16).frames[0]
    rows[f"eight frames, and eight that go on from them with another prompt: {prompt}; up"] = [
        longer
    ]

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
    sheet = media.contact_sheet(clips, list(rows), columns=1)
    Path(file).write_bytes(media.encode_png(sheet))
    print(Image.open(file).size)


if __name__ == "__main__":
    main(sys.argv[1])
