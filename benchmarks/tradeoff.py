"""Quality against time: what the options of sampling buy and cost a digits model.

    python benchmarks/tradeoff.py --out=output
    python benchmarks/tradeoff.py --checkpoint=runs/scenes --samples=1000 --out=output
    python benchmarks/tradeoff.py --point="num_inference_steps=8 guidance_trunc=600" --out=output

Takes the model's own options, all AR steps times all diffusion steps (--grid), and every value of
the others by itself (--axes). Of each point it generates --samples videos or pictures of held-out
questions and measures

    right     videos whose digit is right in every frame, or pictures that are right, percent
    distance  Fréchet distance of what the judges' classifier sees of digits to real held-out ones
    ms        of a batch of --batch_size, decoded, a sample; median of --rounds, taken in turns over
              all points, so that a noisy machine is noisy for all
    GFLOP     of matrix products of a sample, counted in the compiled programs of its frames

Points that are in tradeoff.json already are not measured anew. Writes the table as tradeoff.json
and tradeoff.md, and the points with the front (less time and more right) as tradeoff.png.
"""

import dataclasses
import io
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags
from tqdm import tqdm

from nova_jax import media
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.config import from_dict
from nova_jax.digits.clips import DigitsConfig
from nova_jax.digits.frechet import frechet_distance
from nova_jax.digits.judges import Judges
from nova_jax.digits.scene_judges import SceneJudges, is_right
from nova_jax.digits.scene_scores import make_scene_questions
from nova_jax.digits.scenes import ScenesConfig, ScenesSource
from nova_jax.digits.scores import Score, make_questions, right_frames
from nova_jax.files import output_folder
from nova_jax.models import flops
from nova_jax.pipeline import SHIPPED, NovaPipeline
from nova_jax.plan.costs import read_costs
from nova_jax.sampling.frames import compiled_step
from nova_jax.sampling.options import OPTIONS

CHECKPOINT = flags.DEFINE_string("checkpoint", str(SHIPPED), "Model that was trained on digits.")
SAMPLES = flags.DEFINE_integer("samples", 400, "Videos or pictures of each point.")
BATCH = flags.DEFINE_integer("batch_size", 50, "Samples made together.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed batches of each point.")
GRID = flags.DEFINE_string("grid", "4,8,16x6,10,15", "AR steps x diffusion steps; empty: none.")
AXES = flags.DEFINE_string(
    "axes",
    "guidance_scale=1,2 guidance_trunc=300,600,900 flow_shift=1,3,5",
    "Other options, each value by itself.",
)
POINTS = flags.DEFINE_multi_string("point", [], "Further points: option=value ...")
OUT = flags.DEFINE_string("out", "output", "Where to write.")


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked of a model and how its answers are judged.

    Attributes:
        prompts: of all samples.
        right: whether a sample, uint8 [F, H, W, 3], is what prompt number i asks for.
        features: of the digits in a sample.
        real: features of held-out real ones.
    """

    prompts: Sequence[str]
    right: Callable[[int, np.ndarray], bool]
    features: Callable[[np.ndarray], np.ndarray]
    real: np.ndarray


def task_of(dataset: Any, samples: int) -> Task:
    """The task of the dataset that a model was trained on."""
    if dataset["type"] == "scenes":
        scenes = from_dict(ScenesConfig, dataset, "dataset")
        judges = SceneJudges(scenes)
        questions = make_scene_questions(2 * -(-samples // 12), seed=0)[:samples]
        config = dataclasses.replace(scenes, split="held_out", combinations="all")
        real = ScenesSource(config).batch(np.arange(3000))["frames"][:, 0]
        return Task(
            [question.prompt for question in questions],
            lambda index, made: is_right(questions[index].scene, judges(made[0])),
            lambda made: judges.features(made[0]),
            np.concatenate([judges.features(picture) for picture in real]),
        )
    clips = from_dict(DigitsConfig, dataset, "dataset")
    judge = Judges(clips)
    asked = make_questions(samples, seed=0, walls=clips.walls)
    return Task(
        [question.prompt for question in asked],
        lambda index, made: all(right_frames(asked[index], judge(made), "digit")),
        judge.features,
        np.concatenate([judge.features(clip[:8]) for clip in judge.real_clips()["frames"]]),
    )


def read_points(pipeline: NovaPipeline) -> list[dict[str, Any]]:
    """Options of each point, by their names in the pipeline; the first one has none."""
    points: list[dict[str, Any]] = [{}]
    if GRID.value:
        ar, diffusion = ([int(n) for n in side.split(",")] for side in GRID.value.split("x"))
        for k, s in itertools.product(ar, diffusion):
            points.append({"num_inference_steps": k, "num_diffusion_steps": s})
    for name, values in (axis.split("=") for axis in AXES.value.split()):
        points += [{name: json.loads(value)} for value in values.split(",")]
    for point in POINTS.value:
        pairs = (pair.split("=") for pair in point.split())
        points.append({name: json.loads(value) for name, value in pairs})
    own = pipeline.sampling
    unique: dict[Any, dict[str, Any]] = {}
    for point in points:
        if unknown := set(point) - set(OPTIONS):
            sys.exit(f"unknown option {unknown.pop()}; there are {', '.join(OPTIONS)}")
        unique.setdefault(pipeline.sampling_with(own, **point), point)
    return list(unique.values())


def work(pipeline: NovaPipeline, prompt: str, options: dict[str, Any]) -> float:
    """FLOPs of a sample.

    Those of the programs of a first frame and of a later one; what a feature cache spares, which
    depends on the number of a step, is counted from the sizes.
    """
    session, frames = pipeline.start(prompt, **options), pipeline.frames
    config, sampling = pipeline.config, session.sampling

    def of_a_frame(number: int) -> float:
        drawn = dataclasses.replace(sampling.of_frame(number), feature_cache=None)
        step = compiled_step(pipeline.model, session.state, pipeline.schedule, drawn)
        text = jax.jit(lambda state: step(state, None)).lower(session.state).compile().as_text()
        return read_costs(text).flops

    def spatial(feature_cache: int | None) -> float:
        return flops.of_generation(
            config,
            batch=1,
            passes=sampling.guidance.passes,
            slots=sampling.slots(frames),
            sets=sampling.sets(config.num_tokens, frames),
            diffusion_steps=sampling.num_diffusion_steps,
            condition_tokens=config.condition_tokens,
            feature_cache=feature_cache,
        )["spatial decoder"]

    whole = of_a_frame(0) + (frames - 1) * (of_a_frame(1) if frames > 1 else 0)
    return whole - spatial(None) + spatial(sampling.feature_cache)


def judged(
    pipeline: NovaPipeline, task: Task, options: dict[str, Any], label: str
) -> dict[str, Any]:
    """Quality of a point."""
    made = pipeline.stream(
        task.prompts,
        seed=range(len(task.prompts)),
        batch_size=BATCH.value,
        disable_progress_bar=True,
        **options,
    )
    right, features = [], []
    for batch in tqdm(made, label, total=-(-len(task.prompts) // BATCH.value), leave=False):
        for sample in batch.frames:
            right.append(task.right(len(right), sample))
            features.append(task.features(sample))
    score = Score(sum(right), len(right))
    return {
        "right": score.rate,
        "interval": score.interval,
        "distance": frechet_distance(np.concatenate(features), task.real),
    }


def timed(
    pipeline: NovaPipeline, task: Task, points: Sequence[dict[str, Any]]
) -> list[dict[str, float]]:
    """Milliseconds a sample of each point."""

    def run(options: dict[str, Any]) -> float:
        began = time.perf_counter()
        prompts = task.prompts[: BATCH.value]
        pipeline(prompts, batch_size=BATCH.value, disable_progress_bar=True, **options)
        return 1000 * (time.perf_counter() - began) / len(prompts)

    for point in points:
        run(point)
    rounds = [[run(point) for point in points] for _ in range(ROUNDS.value)]
    return [
        {"ms": statistics.median(times), "least": min(times), "most": max(times)}
        for times in zip(*rounds, strict=True)
    ]


def front(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Rows of which no other is as fast and more right, or as right and faster."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["ms"], -rows[i]["right"]))
    best, chosen = -1.0, []
    for index in order:
        if rows[index]["right"] > best:
            best = rows[index]["right"]
            chosen.append(index)
    return chosen


def draw(rows: Sequence[dict[str, Any]], chosen: Sequence[int]) -> bytes:
    """Points and front as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for row in rows:
        low, high = row["interval"]
        error = [[100 * (row["right"] - low)], [100 * (high - row["right"])]]
        axes.errorbar(row["ms"], 100 * row["right"], error, fmt="o", color="0.6", linewidth=0.7)
    axes.plot(
        [rows[i]["ms"] for i in chosen], [100 * rows[i]["right"] for i in chosen], "o-", zorder=3
    )
    for index in chosen:
        row = rows[index]
        axes.annotate(row["label"], (row["ms"], 100 * row["right"]), fontsize=7, rotation=-20)
    axes.set(xscale="log", xlabel="milliseconds a sample", ylabel="right, percent")
    axes.grid(alpha=0.3, which="both")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def main(_: list[str]) -> None:
    """Measures, prints and writes."""
    out = output_folder(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    pipeline = NovaPipeline.from_pretrained(CHECKPOINT.value)
    dataset = open_checkpoint(CHECKPOINT.value, part=None).config["dataset"]
    task = task_of(dataset, SAMPLES.value)
    file = out / "tradeoff.json"
    known = {row["label"]: row for row in json.loads(file.read_text())} if file.exists() else {}
    points = read_points(pipeline)
    labels = [" ".join(f"{k}={v}" for k, v in point.items()) or "as it is" for point in points]
    rows = []
    for point, label in zip(points, labels, strict=True):
        row = known.get(label)
        if row is None or row["samples"] != len(task.prompts):
            row = {"label": label, "samples": len(task.prompts)}
            row |= judged(pipeline, task, point, label)
            row["gflop"] = work(pipeline, task.prompts[0], point) / 1e9
            print(label, {k: v for k, v in row.items() if k != "label"}, flush=True)
        rows.append(row)
        file.write_bytes(json.dumps(rows, indent=1).encode())
    for row, times in zip(rows, timed(pipeline, task, points), strict=True):
        row |= times
    file.write_bytes(json.dumps(rows, indent=1).encode())
    chosen = front(rows)
    lines = [
        "| options | right, percent | distance | ms a sample | GFLOP | on the front |",
        "|---|---|---|---|---|---|",
    ]
    for index, row in enumerate(rows):
        low, high = row["interval"]
        lines.append(
            f"| {row['label']} | {100 * row['right']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | "
            f"{row['distance']:.2f} | {row['ms']:.1f} [{row['least']:.1f}, {row['most']:.1f}] | "
            f"{row['gflop']:.2f} | {'yes' if index in chosen else ''} |"
        )
    print("\n".join(lines))
    (out / "tradeoff.md").write_text("\n".join(lines) + "\n")
    print(media.save(out / "tradeoff.png", draw(rows, chosen)))


if __name__ == "__main__":
    app.run(main)
