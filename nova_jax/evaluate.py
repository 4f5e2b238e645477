"""Scores a digits model: draws prompts, generates, and lets judges that are not the model look.

    python -m nova_jax.evaluate --config=configs/digits_t2v.py --checkpoint=DIR --out=DIR

Half of the prompts ask for combinations of digit, color and path that training never showed. Prints
the judges' own accuracy on real held-out digits and the model's with 95 % intervals (Wilson), and
writes evaluation.json and a contact sheet.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import numpy as np
from absl import flags

from nova_jax import cli, media
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.config import Count, Natural, Range, from_dict
from nova_jax.digits.clips import DigitsConfig
from nova_jax.digits.judges import TRAITS, Judges, Verdict
from nova_jax.digits.scores import Question, format_table, is_right, make_questions, tally
from nova_jax.errors import NovaError
from nova_jax.files import output_folder
from nova_jax.pipeline import SHIPPED, NovaPipeline
from nova_jax.training.config import TrainConfig

CONFIG = cli.define_config(
    "Recipe whose dataset and sampling options count; else the checkpoint's own."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    str(SHIPPED),
    "Model trained on digits: model directory, or --workdir of a training run.",
)
WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "raw"], "Of a training run: averaged or raw parameters."
)
# So many that the seeds of all of them are seeds.
NUM_PROMPTS = cli.define("num_prompts", Annotated[int, Range(2, 10**6)], 200, "Prompts to draw.")
SEED = cli.define("seed", Natural, 0, "Of the prompts; the videos' seeds count on from it.")
BATCH_SIZE = cli.define("batch_size", Count, 50, "Most videos made together.")
OUT = flags.DEFINE_string("out", "output", "Where to write.")

SHEET_CLIPS = 48  # seen and unseen combinations alternate


def main() -> None:
    """Generates, judges, prints and writes."""
    out = output_folder(OUT.value)
    checkpoint = open_checkpoint(CHECKPOINT.value, weights=WEIGHTS.value, part=None)
    if checkpoint.kind == "released":
        raise NovaError(
            f"{CHECKPOINT.value} is a released model, and only digits can be judged; "
            "give a model that was trained on them, such as the one in the package"
        )
    pipeline = NovaPipeline.from_pretrained(checkpoint.directory, weights=WEIGHTS.value)
    if CONFIG.value is not None:
        recipe = TrainConfig.from_dict(CONFIG.value.to_dict())
        if not isinstance(recipe.dataset, DigitsConfig):
            raise NovaError(f"config.dataset is {recipe.dataset.type}; only digits can be judged")
        dataset, pipeline.sampling = recipe.dataset, recipe.sampling
    else:
        if "dataset" not in checkpoint.config:
            raise NovaError(f"{CHECKPOINT.value} does not say its dataset; give --config=FILE")
        dataset = from_dict(DigitsConfig, checkpoint.config["dataset"], "dataset")
    if dataset.size != pipeline.size:
        raise NovaError(
            f"the checkpoint makes {pipeline.size} pixels, the dataset has {dataset.size}; "
            "give the --config it was trained with"
        )

    judges = Judges(dataset)
    real = judges.accuracy_on_real_digits()
    print("judges on real held-out digits, percent right:")
    print("  " + "  ".join(f"{name} {100 * rate:.1f}" for name, rate in real.items()))

    questions = make_questions(NUM_PROMPTS.value, seed=SEED.value, moving=pipeline.config.is_video)
    made = pipeline.stream(
        [question.prompt for question in questions],
        seed=range(SEED.value, SEED.value + len(questions)),
        batch_size=BATCH_SIZE.value,
    )
    verdicts: list[Verdict] = []
    shown: list[np.ndarray] = []
    for videos in made:
        verdicts += [judges(clip) for clip in videos.frames]
        shown += list(media.enlarge(videos.frames[: SHEET_CLIPS - len(shown)], 64))
    answers = list(zip(questions, verdicts, strict=True))
    table = tally(questions, verdicts)
    print(f"{CHECKPOINT.value}, {len(questions)} prompts, percent right [95 % interval] / judged:")
    print(format_table(table), flush=True)  # whatever becomes of the files

    report = {
        "checkpoint": str(CHECKPOINT.value),
        "seed": SEED.value,
        "sampling": dataclasses.asdict(pipeline.sampling),
        "judges_on_real_digits": real,
        "scores": {
            group: {
                trait: dataclasses.asdict(score) | {"rate": score.rate, "interval": score.interval}
                for trait, score in scores.items()
            }
            for group, scores in table.items()
        },
        "answers": [
            {"asked": dataclasses.asdict(question), "seen": dataclasses.asdict(verdict)}
            for question, verdict in answers
        ],
    }
    captions = [_caption(*answer) for answer in answers]
    sheet = media.contact_sheet(shown, captions[:SHEET_CLIPS], columns=3)
    print(media.save(out / "evaluation.json", json.dumps(report, indent=1).encode()))
    print(media.save(out / "evaluation.png", media.encode_png(sheet)))


def _caption(question: Question, verdict: Verdict) -> str:
    """The prompt, and in front of it what the judges saw instead where it is wrong."""
    wrong = [
        str(getattr(verdict, trait))
        for trait in TRAITS
        if getattr(question, trait) is not None and not is_right(question, verdict, trait)
    ]
    return (f"[seen: {', '.join(wrong)}] " if wrong else "") + question.prompt


if __name__ == "__main__":
    cli.run(main)
