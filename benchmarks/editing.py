"""How well the digits model paints anew what is erased from real clips it has never seen.

    python benchmarks/editing.py --clips=100 --out=output

In a held-out clip's frames (a) the right half of the digit is erased: with the clip's own caption,
is it the same digit in every frame after? (b) The digit is erased: asked for another one, does that
appear in every frame? Both on the clip and on its first frame alone, as a picture. Outside of what
is drawn every pixel must be the given one. Judged by the judges of nova_jax.evaluate; by how many
of a frame's tokens are kept, too, for training shows at most 30 %.
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import app, flags

from nova_jax import media
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.config import from_dict
from nova_jax.digits.captions import prompt as caption
from nova_jax.digits.clips import DigitsConfig
from nova_jax.digits.judges import Judges, brightness
from nova_jax.digits.scores import Score
from nova_jax.pipeline import SHIPPED, NovaPipeline

CHECKPOINT = flags.DEFINE_string("checkpoint", str(SHIPPED), "Model that was trained on digits.")
CLIPS = flags.DEFINE_integer("clips", 100, "Held-out clips.")
OUT = flags.DEFINE_string("out", "output", "Where the picture is written.")

SHOWN = 6  # clips on the picture
#: Shares of tokens that are kept, up to these.
SHARES = (0.3, 0.6, 1.0)


def boxes(clip: np.ndarray) -> np.ndarray:
    """Of each frame, the box around what is bright: a mask [F, H, W]."""
    mask = np.zeros(clip.shape[:3], bool)
    for frame, bright in zip(mask, brightness(clip) > 0, strict=True):
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return mask


def right_halves(mask: np.ndarray) -> np.ndarray:
    """The right half of each frame's box."""
    halves = mask.copy()
    for frame in halves:
        columns = np.flatnonzero(frame.any(0))
        frame[:, : (columns[0] + columns[-1] + 1) // 2] = False
    return halves


def main(_: list[str]) -> None:
    """Erases, paints, judges and prints."""
    checkpoint = open_checkpoint(CHECKPOINT.value, part=None)
    pipeline = NovaPipeline.from_pretrained(CHECKPOINT.value)
    dataset = from_dict(DigitsConfig, checkpoint.config["dataset"], "dataset")
    dataset = dataclasses.replace(dataset, frames=min(dataset.frames, pipeline.config.frames))
    judges = Judges(dataset)
    real = judges.real_clips()
    clips = real["frames"][: CLIPS.value]
    scores: dict[tuple[str, str], list[tuple[bool, float]]] = {}
    rows: list[np.ndarray] = []
    captions: list[str] = []
    for index, clip in enumerate(clips):
        digit, color = int(real["digit"][index]), str(real["color"][index])
        other = (digit + 3 + index % 5) % 10
        whole = boxes(clip)
        moves = {"clip": (str(real["path"][index]), str(real["speed"][index])), "picture": ()}
        tasks = {"half erased": (right_halves(whole), digit), "another digit": (whole, other)}
        for task, (mask, wanted) in tasks.items():
            for kind, frames in {"clip": len(clip), "picture": 1}.items():
                prompt = caption(wanted, color, *moves[kind])
                asked = {"video": clip[:frames], "mask": mask[:frames], "seed": index}
                edit = pipeline.request(prompt, **asked).edit
                made = pipeline(prompt, **asked, disable_progress_bar=True).frames[0]
                outside = edit.share == 0
                assert (made[outside] == clip[:frames][outside]).all(), "the outside has changed"
                right = all(seen == wanted for seen in judges(made).digits)
                scores.setdefault((task, kind), []).append((right, float(edit.kept.mean())))
                if kind == "clip" and index < SHOWN:
                    erased = np.where(mask[..., None], np.uint8(127), clip)
                    rows += [erased, made]
                    captions += [f"a {digit}: {task}", f"{'right' if right else 'wrong'}: {prompt}"]
    print(f"{'':14}{'':8}{'right in every frame':>28}   by share of tokens that are kept")
    for (task, kind), found in scores.items():
        shares = []
        for least, most in zip((-1.0, *SHARES), SHARES, strict=False):
            some = [right for right, kept in found if least < kept <= most]
            part = f"{100 * np.mean(some):.0f} % of {len(some)}" if some else "none"
            shares.append(f"to {100 * most:.0f} %: {part}")
        score = Score(sum(right for right, _ in found), len(found))
        low, high = score.interval
        rate = f"{100 * score.rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        print(f"{task:14}{kind:8}{rate:>28}   {', '.join(shares)}")
    sheet = media.contact_sheet([media.enlarge(row, 64) for row in rows], captions)
    print(media.save(Path(OUT.value) / "editing.png", media.encode_png(sheet)))


if __name__ == "__main__":
    app.run(main)
