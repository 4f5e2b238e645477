"""Scores a digits model, by judges that are not the model; or how far any videos drift.

    python -m nova_jax.evaluate --config=configs/digits_t2v.py --checkpoint=DIR --out=DIR
    python -m nova_jax.evaluate --checkpoint=DIR --frames=32 --out=DIR
    python -m nova_jax.evaluate --drift VIDEO_OR_DIRECTORY... --out=DIR

Half of the prompts ask for combinations of digit, color and path that training never showed. Prints
the judges' own accuracy on real held-out digits and the model's, frame by frame and on the whole,
with 95 % intervals (Wilson), and how far its videos drift; writes evaluation.json, a contact sheet
and a plot over frames.

With --drift nothing is generated: videos (or directories of videos, or of PNG frames) are compared
with their own first frames, see `nova_jax.drift`; writes drift.json, a contact sheet and a plot.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from absl import flags

from nova_jax import cli, drift, media
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.config import Count, Natural, Range, from_dict
from nova_jax.digits.clips import DigitsConfig
from nova_jax.digits.judges import Judges, Verdict
from nova_jax.digits.scores import (
    MEASURES,
    Question,
    Score,
    asks,
    format_frames,
    format_table,
    is_right,
    make_questions,
    real_questions,
    right_frames,
    tally,
    tally_frames,
    without_motion,
)
from nova_jax.errors import NovaError
from nova_jax.files import output_folder
from nova_jax.pipeline import SHIPPED, NovaPipeline
from nova_jax.plots import Line, encode_plot
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
FRAMES = cli.define("frames", Count, None, "Frames of a video; by default the model's own.")
BATCH_SIZE = cli.define("batch_size", Count, 50, "Most videos made together.")
OUT = flags.DEFINE_string("out", "output", "Where to write.")
DRIFT = flags.DEFINE_bool(
    "drift", False, "Measure how the videos that are named drift; nothing is generated."
)
# What --drift has no use for.
MODEL = (CONFIG, CHECKPOINT, WEIGHTS, NUM_PROMPTS, SEED, FRAMES, BATCH_SIZE)

SHEET_CLIPS = 48  # seen and unseen combinations alternate
SHEET_WIDTH = 1600  # pixels; a longer strip of frames has a row to itself


def main(paths: Sequence[str]) -> None:
    """Generates, judges, prints and writes; or measures drift."""
    out = output_folder(OUT.value)
    if DRIFT.value:
        _measure_drift(paths, out)
    elif paths:
        raise NovaError(
            f"unexpected argument {paths[0]!r}; flags are written --name=value, and videos are "
            "named after --drift"
        )
    else:
        _judge(out)


def _model() -> tuple[NovaPipeline, DigitsConfig]:
    """The model to be judged, and the clips that it was trained on.

    Raises:
      NovaError: It is none of digits, or of others than --config says.
    """
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
    return pipeline, dataset


def _judge(out: Path) -> None:
    """Has the judges look at what a model makes, prints and writes what they see."""
    pipeline, dataset = _model()
    pipeline.latent_frames(None, FRAMES.value)  # says now what is wrong with --frames

    judges = Judges(dataset)
    real = judges.real_clips()
    raw = judges.accuracy_on_raw_digits()
    ceiling = list(zip(real_questions(real), map(judges, real["frames"]), strict=True))
    print(
        f"judges on {len(ceiling)} real held-out clips, the most that can be measured, percent "
        f"right [95 % interval] / judged (digit in merely enlarged images: {100 * raw:.1f}):"
    )
    print(format_table(tally(ceiling)))

    questions = make_questions(
        NUM_PROMPTS.value,
        seed=SEED.value,
        moving=pipeline.config.is_video,
        walls=dataset.walls,
    )
    made = pipeline.stream(
        [question.prompt for question in questions],
        seed=range(SEED.value, SEED.value + len(questions)),
        batch_size=BATCH_SIZE.value,
        num_frames=FRAMES.value,
    )
    verdicts: list[Verdict] = []
    shown: list[np.ndarray] = []
    measured: dict[str, Mapping[str, np.ndarray]] = {}
    for videos in made:
        verdicts += [judges(clip) for clip in videos.frames]
        if videos.frames.shape[1] > 1:
            measured |= {
                f"video {len(measured) + i}": drift.measure(clip)
                for i, clip in enumerate(videos.frames, 1)
            }
        shown += list(videos.frames[: SHEET_CLIPS - len(shown)])
    length = len(shown[0])
    if length < judges.motion_frames:
        questions = without_motion(questions)
    answers = list(zip(questions, verdicts, strict=True))
    print(
        f"{CHECKPOINT.value}, {len(questions)} prompts, {length} frames, percent right "
        f"[95 % interval] / judged{_motion_judged_on(length, judges.motion_frames)}:"
    )
    print(format_table(tally(answers)))
    by_frame, real_by_frame = tally_frames(answers), tally_frames(ceiling)
    rows = {name: by_frame["all"][name] for name in ("digit", "color")}
    rows |= {f"digit, {group}": by_frame[group]["digit"] for group in ("seen", "unseen")}
    rows |= {"digit, real clips": real_by_frame["all"]["digit"]}
    print("percent right by frame, each judged by itself:")
    print(format_frames(rows), flush=True)  # whatever becomes of the files
    drifted = drift.Report.of(measured) if measured else None
    if drifted is not None:
        print("drift from the first frame, mean:")
        print(drifted.table(), flush=True)

    report = {
        "checkpoint": str(CHECKPOINT.value),
        "seed": SEED.value,
        "frames": length,
        "sampling": dataclasses.asdict(pipeline.sampling),
        "judges_on_real_digits": {
            "digit_raw": raw,
            "scores": _numbers(tally(ceiling)),
            "by_frame": _numbers(real_by_frame),
        },
        "scores": _numbers(tally(answers)),
        "by_frame": _numbers(by_frame),
        "drift": drifted and drifted.summary(),
        "answers": [
            {"asked": dataclasses.asdict(question), "seen": dataclasses.asdict(verdict)}
            for question, verdict in answers
        ],
    }
    print(media.save(out / "evaluation.json", json.dumps(report, indent=1).encode()))
    print(media.save(out / "evaluation.png", _sheet(shown, answers)))
    trained = min(dataset.frames, pipeline.config.frames)
    _save_plot(out / "evaluation_frames.png", lambda: _plot(by_frame, real_by_frame, trained))


def _measure_drift(paths: Sequence[str], out: Path) -> None:
    """Measures the drift of videos, prints it and writes it."""
    if given := next((flag.name for flag in MODEL if flag.present), None):
        raise NovaError(f"--{given} has no place beside --drift, which takes videos; leave it away")
    if not paths:
        raise NovaError("--drift has no videos to measure; name files or directories after it")
    measured, strips = {}, {}
    for name, path in drift.find_clips(paths).items():
        clip = drift.read(path)
        measured[name], strips[name] = drift.measure(clip), drift.strip(clip)
    report = drift.Report.of(measured)
    frames = " to ".join(map(str, dict.fromkeys(report.lengths)))
    print(f"drift of {len(measured)} videos of {frames} frames from their first frames, mean:")
    print(report.table())
    numbers = {"paths": list(paths)} | report.json()
    print(media.save(out / "drift.json", json.dumps(numbers, indent=1).encode()))
    sheet = drift.contact_sheet(strips, report)
    print(media.save(out / "drift_sheet.png", media.encode_png(sheet)))
    _save_plot(out / "drift.png", report.plot)


def _save_plot(path: Path, draw: Callable[[], bytes]) -> None:
    """Saves a plot; the rest of a report stands without one where matplotlib is not installed."""
    try:
        print(media.save(path, draw()))
    except NovaError as error:
        print(f"no {path.name}: {error}", file=sys.stderr)


def _motion_judged_on(length: int, judged: int) -> str:
    """Says which frames path and speed are judged on, where it is not all."""
    if length > judged > 1:
        return f"; path and speed on the first {judged}"
    return "" if length == judged else f"; path and speed only from {judged} frames on"


def _numbers(tally: Any) -> Any:
    """Scores in dictionaries and lists as JSON has them."""
    match tally:
        case Score():
            return dataclasses.asdict(tally) | {"rate": tally.rate, "interval": tally.interval}
        case list():
            return [_numbers(score) for score in tally]
    return {name: _numbers(scores) for name, scores in tally.items()}


def _sheet(clips: Sequence[np.ndarray], answers: Sequence[tuple[Question, Verdict]]) -> bytes:
    """Clips with all of their frames, as a PNG file."""
    shown = media.enlarge(np.stack(clips), 64 if len(clips[0]) <= 16 else 32)
    columns = max(1, SHEET_WIDTH // (shown.shape[1] * shown.shape[3] + 100))
    captions = [_caption(*answer) for answer in answers[: len(clips)]]
    return media.encode_png(media.contact_sheet(shown, captions, columns=min(columns, 3)))


def _caption(question: Question, verdict: Verdict) -> str:
    """The prompt, before it what was seen instead: on the whole, and in the first wrong frame."""
    wrong = [
        str(getattr(verdict, trait))
        for measure, trait in MEASURES.items()
        if "every frame" not in measure
        and asks(question, trait)
        and not is_right(question, verdict, measure)
    ]
    notes = [f"seen: {', '.join(wrong)}"] if wrong else []
    for trait in ("digit", "color"):
        right = right_frames(question, verdict, trait)
        if not all(right):
            first = right.index(False)
            notes.append(f"frame {first + 1}: {getattr(verdict, f'{trait}s')[first]}")
    return (f"[{'; '.join(notes)}] " if notes else "") + question.prompt


def _plot(by_frame: Any, real: Any, trained: int) -> bytes:
    """Percent right by frame, with its 95 % band, as a PNG file."""

    def line(scores: list[Score], label: str, style: str, with_band: bool = False) -> Line:
        low, high = 100 * np.array([score.interval for score in scores]).T
        y = [100 * score.rate for score in scores]
        band = (low, high) if with_band else None
        return Line(range(1, len(scores) + 1), y, label, band, style)

    panels, shown = {}, {}
    for trait in ("digit", "color"):
        shown[f"{trait} right, percent"] = (0.0, 100.0)
        frames = by_frame["all"][trait]
        most = np.mean([score.rate for score in real["all"][trait]])
        panels[f"{trait} right, percent"] = [
            line(frames, "all, 95 % interval", ".-", with_band=True),
            line(by_frame["seen"][trait], "seen combinations", "--"),
            line(by_frame["unseen"][trait], "unseen combinations", "--"),
            Line((1, len(frames)), (100 * most, 100 * most), "judges on real clips", style=":"),
        ]
    mark = (trained, f"training's length, {trained}") if len(frames) > trained else None
    title = f"right by frame, each judged by itself; {frames[0].total} prompts"
    return encode_plot(panels, title, "frame", shown, mark=mark)


if __name__ == "__main__":
    cli.run(main, arguments="[VIDEO ...]")
