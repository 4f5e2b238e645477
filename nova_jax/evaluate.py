"""Draws benchmarks and reports their scores; scores a digits model; measures how videos drift.

    python -m nova_jax.evaluate --suite=geneval --prompts=CLONE --checkpoint=DIR --out=DIR
    python -m nova_jax.evaluate --suite=vbench --prompts=CLONE --out=DIR --list
    python -m nova_jax.evaluate --report=DIR --out=DIR
    python -m nova_jax.evaluate --config=configs/digits_t2v.py --checkpoint=DIR --out=DIR
    python -m nova_jax.evaluate --checkpoint=DIR --frames=32 --out=DIR
    python -m nova_jax.evaluate --drift VIDEO_OR_DIRECTORY... --out=DIR

With --suite a benchmark is drawn as its scorer takes it, see docs/evaluation.md; the same command
goes on where it was stopped, and several processes share the work. With --report the results of
scorers become the tables of the paper.

Without, digits are judged by judges that are not the model. Half of the prompts ask for
combinations of digit, color and path that training never showed. Prints the judges' own accuracy on
real held-out digits and the model's, frame by frame and on the whole, with 95 % intervals (Wilson),
and how far its videos drift; writes evaluation.json, a contact sheet and a plot over frames.

With --drift nothing is generated: videos (or directories of videos, or of PNG frames) are compared
with their own first frames, see `nova_jax.drift`; writes drift.json, a contact sheet and a plot.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
from absl import flags

from nova_jax import cli, drift, media
from nova_jax.arguments import DType
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.config import Count, MotionScore, Natural, Range, from_dict
from nova_jax.digits import evaluation
from nova_jax.digits.clips import DigitsConfig
from nova_jax.digits.judges import Judges
from nova_jax.distributed.multihost import launched_as, parse_shard
from nova_jax.errors import NovaError
from nova_jax.files import output_folder
from nova_jax.pipeline import SHIPPED, NovaPipeline
from nova_jax.sampling.options import OPTIONS
from nova_jax.shared_flags import RewriterFlags, define_tune
from nova_jax.suites import presets, report
from nova_jax.suites.drawing import Asked, draw
from nova_jax.suites.folder import Folder, missing
from nova_jax.suites.interface import Prompts, Suite
from nova_jax.suites.registry import SUITES

CONFIG = cli.define_config(
    "Recipe whose dataset and sampling options count; else the checkpoint's own."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    str(SHIPPED),
    "Model directory or --workdir of a training run; with --suite also a released model: its "
    "directory or its id on the Hugging Face hub.",
)
WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "raw"], "Of a training run: averaged or raw parameters."
)
# So many that the seeds of all of them are seeds.
NUM_PROMPTS = cli.define("num_prompts", Annotated[int, Range(2, 10**6)], 200, "Prompts to draw.")
SEED = cli.define("seed", Natural, 0, "Of the prompts; the videos' seeds count on from it.")
FRAMES = cli.define("frames", Count, None, "Frames of a video; by default the model's own.")
BATCH_SIZE = cli.define("batch_size", Count, 50, "Most videos made together.")
define_tune()
OUT = flags.DEFINE_string("out", "output", "Where to write.")
DRIFT = flags.DEFINE_bool(
    "drift", False, "Measure how the videos that are named drift; nothing is generated."
)
SUITE = flags.DEFINE_enum("suite", None, list(SUITES), "Benchmark to draw.")
PROMPTS = flags.DEFINE_string("prompts", None, "Clone of the suite's repository.")
PARTS = flags.DEFINE_list(
    "parts", None, "Tasks, categories or dimensions of the suite, with commas; by default all."
)
OTHER_PROMPTS = flags.DEFINE_bool(
    "other_prompts", False, "Draw prompt files of another version; no published number compares."
)
PRESET = flags.DEFINE_enum(
    "preset", None, list(presets.PRESETS), "Options that published numbers were made with."
)
SHARD = flags.DEFINE_string(
    "shard", None, "i/n: the i-th share of n, from 0; by default as the launcher says, or all."
)
LIST = flags.DEFINE_bool("list", False, "Say what of the suite is missing in --out, and end.")
REPORT = flags.DEFINE_multi_string(
    "report", [], "Results of scorers, or folders with them; more may follow it."
)
NEGATIVE = flags.DEFINE_string("negative_prompt", None, "With --suite: what to stay away from.")
DTYPE = cli.define(
    "dtype", DType, "float32", "With --suite: of the computation and of the parameters."
)
REWRITER = RewriterFlags()
# Options of the pipeline, in place of the preset's or the checkpoint's.
CALL = {
    "motion_flow": cli.define("motion_flow", MotionScore, None, "Motion score."),
    **{name: cli.define(name, option.kind, None, option.help) for name, option in OPTIONS.items()},
}
# What has a meaning with --suite alone, and without it or --drift alone.
OF_SUITES = (
    *(PARTS, OTHER_PROMPTS, PRESET, SHARD, LIST, NEGATIVE, DTYPE),
    *(*CALL.values(), *REWRITER.all),
)
OF_DIGITS = (CONFIG, NUM_PROMPTS)
# What --drift has no use for.
MODEL = (*OF_DIGITS, CHECKPOINT, WEIGHTS, SEED, FRAMES, BATCH_SIZE, SUITE, PROMPTS, *OF_SUITES)


def main(paths: Sequence[str]) -> None:
    """Draws a suite, reports, measures drift, or judges digits."""
    if DRIFT.value:
        _refuse("--drift, which takes videos", *MODEL, REPORT)
        _measure_drift(paths, output_folder(OUT.value))
    elif REPORT.value:
        _refuse("--report", CHECKPOINT, WEIGHTS, SEED, FRAMES, BATCH_SIZE, *OF_DIGITS, *OF_SUITES)
        _report([*REPORT.value, *paths], output_folder(OUT.value))
    elif paths:
        raise NovaError(
            f"unexpected argument {paths[0]!r}; flags are written --name=value, and videos are "
            "named after --drift"
        )
    elif SUITE.value is None:
        if given := cli.present(PROMPTS, *OF_SUITES):
            raise NovaError(f"--{given} is for suites; name one with --suite, or leave it away")
        _judge(output_folder(OUT.value))
    else:
        _refuse("--suite", *OF_DIGITS)
        _draw(SUITES[SUITE.value], output_folder(OUT.value))


def _draw(suite: Suite, out: Path) -> None:
    """Draws what is missing of a suite, or says what that is."""
    options = presets.options(PRESET.value, suite.medium)
    options |= {name: flag.value for name, flag in CALL.items() if flag.value is not None}
    if FRAMES.present:
        if suite.medium == "picture":
            raise NovaError(f"--frames has no place with {suite.title}, which is of pictures")
        options = {k: v for k, v in options.items() if k != "max_latent_length"}
        options["num_frames"] = FRAMES.value
    prompts = suite.prompts(
        None if PROMPTS.value is None else Path(PROMPTS.value),
        _parts(suite),
        verify=not OTHER_PROMPTS.value,
    )
    texts = [item.prompt for item in prompts.items]
    rewriter = None if LIST.value else REWRITER.rewrite(texts, video=suite.medium == "video")
    asked = Asked(
        suite,
        prompts,
        options | {"negative_prompt": NEGATIVE.value},
        seed=SEED.value,
        rewriter=rewriter,
        rewriter_name=None if rewriter is None else rewriter.source,
        checkpoint=str(CHECKPOINT.value),
        preset=PRESET.value,
    )
    if LIST.value:
        _list(prompts, out)
        return
    shard = parse_shard(SHARD.value) if SHARD.value else launched_as(os.environ)
    # Compilers do not make the same program twice, and another one may round otherwise: whoever
    # comes later reads even the smallest ones that the first has compiled.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with Folder.claim(out, shard) as folder:
        folder.compare(asked.beginning())  # says before anything is loaded what is wrong
        pipeline = NovaPipeline.from_pretrained(
            CHECKPOINT.value, weights=WEIGHTS.value, dtype=DTYPE.value
        )
        done = draw(pipeline, asked, folder, batch_size=BATCH_SIZE.value)
    share = "" if shard[1] == 1 else " of shard {}/{}".format(*shard)
    print(f"{done.files} files{share} are in {out}, {done.new} of them drawn now")
    targets = (target for item in prompts.items for target in item.targets)
    if left := sum(not (out / target.path).exists() for target in targets):
        print(f"{left} files of other shards are missing; --list names them")
    else:
        print(f"all of {suite.title} is drawn. Next, {suite.scoring(out, prompts, pipeline.size)}")


def _parts(suite: Suite) -> Sequence[str]:
    parts = [name.strip() for name in PARTS.value or suite.parts]
    if unknown := next((name for name in parts if name not in suite.parts), None):
        raise NovaError(f"--parts: {suite.title} has no {unknown!r}, but {', '.join(suite.parts)}")
    return [name for name in suite.parts if name in parts]


def _list(prompts: Prompts, out: Path) -> None:
    targets = [target for item in prompts.items for target in item.targets]
    left = missing(out, targets)
    print(*(target.path for target in left), sep="\n", end="\n" if left else "")
    print(
        f"{len(left)} of {len(targets)} files of {len(prompts.items)} prompts are missing in {out}"
    )


def _report(paths: Sequence[str], out: Path) -> None:
    """Prints the tables of results and writes them."""
    suites = SUITES if SUITE.value is None else {SUITE.value: SUITES[SUITE.value]}
    found = report.read(paths, suites, None if PROMPTS.value is None else Path(PROMPTS.value))
    print(found.text())
    for name, content in report.as_files(found).items():
        print(media.save(out / name, content))


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
        from nova_jax.training.config import TrainConfig  # slow to import, for recipes alone

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
    ceiling = evaluation.judge_real(judges)
    print(ceiling.text())
    judged = evaluation.judge_model(
        pipeline,
        dataset,
        judges,
        ceiling,
        prompts=NUM_PROMPTS.value,
        seed=SEED.value,
        frames=FRAMES.value,
        batch_size=BATCH_SIZE.value,
    )
    print(judged.text(CHECKPOINT.value), flush=True)  # whatever becomes of the files
    facts = {
        "checkpoint": str(CHECKPOINT.value),
        "fingerprint": pipeline.fingerprint,
        "seed": SEED.value,
        "frames": judged.frames,
        "sampling": dataclasses.asdict(pipeline.sampling),
    }
    numbers = json.dumps(facts | judged.json(), indent=1)
    print(media.save(out / "evaluation.json", numbers.encode()))
    print(media.save(out / "evaluation.png", judged.sheet()))
    _save_plot(out / "evaluation_frames.png", judged.plot)


def _measure_drift(paths: Sequence[str], out: Path) -> None:
    """Measures the drift of videos, prints it and writes it."""
    if not paths:
        raise NovaError("--drift has no videos to measure; name files or directories after it")
    measured, strips = {}, {}
    for name, path in drift.find_clips(paths).items():
        clip = drift.read(path)
        measured[name], strips[name] = drift.measure(clip), drift.strip(clip)
    found = drift.Report.of(measured)
    frames = " to ".join(map(str, dict.fromkeys(found.lengths)))
    print(f"drift of {len(measured)} videos of {frames} frames from their first frames, mean:")
    print(found.table())
    numbers = {"paths": list(paths)} | found.json()
    print(media.save(out / "drift.json", json.dumps(numbers, indent=1).encode()))
    sheet = drift.contact_sheet(strips, found)
    print(media.save(out / "drift_sheet.png", media.encode_png(sheet)))
    _save_plot(out / "drift.png", found.plot)


def _save_plot(path: Path, plot: Callable[[], bytes]) -> None:
    """Saves a plot; the rest of a report stands without one where matplotlib is not installed."""
    try:
        print(media.save(path, plot()))
    except NovaError as error:
        print(f"no {path.name}: {error}", file=sys.stderr)


def _refuse(beside: str, *flags: flags.FlagHolder[Any]) -> None:
    """Raises a `NovaError` if one of the flags is given."""
    if given := cli.present(*flags):
        raise NovaError(f"--{given} has no place beside {beside}; leave it away")


if __name__ == "__main__":
    cli.run(main, arguments="[VIDEO ...]")
