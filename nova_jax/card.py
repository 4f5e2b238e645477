"""The model card: what a model is and how it was made and judged, as the Hugging Face hub shows it.

A file of Markdown under a head of YAML, which the hub's search and its tables of scores read
(`huggingface_hub.ModelCard`). Everything in it comes from the model, its config and files of
results; what is not known is said to be unknown.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax.traverse_util import flatten_dict

from nova_jax import __version__, files
from nova_jax.checkpoints.hub import is_on_hub
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

PAPER = "https://arxiv.org/abs/2412.14169"
#: Folders beside the card.
PICTURES, RESULTS = "pictures", "results"
_REAL = "real clips"
_EVALUATION, _REPORT = "evaluation", "report"  # stems of what `nova_jax.evaluate` writes
#: How pictures are shown, by their suffix.
SHOWN = dict.fromkeys((".png", ".gif", ".jpg", ".jpeg"), "![{0}]({1})")
SHOWN[".mp4"] = '<video src="{1}" controls loop muted></video>'
# Of a run's config, what a reader asks first.
_TRAINING = (
    *("init.checkpoint", "lora.rank", "optimizer.type", "optimizer.learning_rate"),
    *("optimizer.schedule", "data.batch_size", "data.image_batch_size", "loss_repeat", "dtype"),
)


@dataclasses.dataclass(frozen=True)
class Score:
    """A number of a table.

    Attributes:
        dataset: what was judged, in words.
        metric: what was counted.
        value: in percent where there is an interval, else as its report has it.
        interval: of 95 %, in percent; None where the results have none.
        judged: of how many; None where the results do not say.
        of_model: whether the model made what was judged; else it is there to compare with.
    """

    dataset: str
    metric: str
    value: float
    interval: tuple[float, float] | None = None
    judged: int | None = None
    of_model: bool = True

    def text(self) -> str:
        """As a cell of a table."""
        if self.interval is None:
            return f"{self.value:.4g}"
        low, high = self.interval
        return f"{self.value:.1f} [{low:.1f}, {high:.1f}] / {self.judged}"


@dataclasses.dataclass(frozen=True)
class Results:
    """What is known of how good a model is, in one table.

    Attributes:
        file: as `nova_jax.evaluate` wrote it.
        heading: what was done.
        scores: of the table: metrics down, datasets across.
        of: what all of the datasets are, where their names do not say.
        notes: what a reader of the scores should know.
        pictures: files that go with it.
    """

    file: Path
    heading: str
    scores: Sequence[Score]
    of: str = ""
    notes: Sequence[str] = ()
    pictures: Sequence[Path] = ()

    def text(self) -> str:
        """All of it in Markdown."""
        datasets = list(dict.fromkeys(score.dataset for score in self.scores))
        metrics = list(dict.fromkeys(score.metric for score in self.scores))
        cells = {(score.metric, score.dataset): score.text() for score in self.scores}
        rows = [[m, *(cells.get((m, d), "–") for d in datasets)] for m in metrics]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([self.heading, "", _table(["", *datasets], rows), "", *notes]).rstrip()


def read_results(place: str | os.PathLike[str], fingerprint: str) -> list[Results]:
    """Reads what `nova_jax.evaluate` wrote.

    Args:
        place: its folder, or one file: evaluation.json of digits, report.json of suites.
        fingerprint: of the model that it must be of, where it says.

    Raises:
        NovaError: there is no such file, or it is damaged, of another model or of several.
    """
    path, stems = Path(place), (_EVALUATION, _REPORT)
    found = [path / f"{stem}.json" for stem in stems] if path.is_dir() else [path]
    found = [file for file in found if file.is_file()]
    if not found:
        raise NovaError(
            f"{path} is and has no evaluation.json and no report.json; give what "
            "nova_jax.evaluate wrote to its --out"
        )
    return [results for file in found for results in _read(file, fingerprint)]


def _read(file: Path, fingerprint: str) -> list[Results]:
    values = files.read_json(file, "evaluate again")
    try:
        if "judges_on_real_digits" in values:
            if values.get("fingerprint", fingerprint) != fingerprint:
                raise NovaError(
                    f"{file} is of another model, or of this one with parameters of another type; "
                    "evaluate the one that is saved"
                )
            return [_of_digits(file, values)]
        if "tables" in values:
            return _of_suites(file, values)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise NovaError(f"{file} is damaged ({error!r}); evaluate again") from error
    raise NovaError(f"{file} is no result of nova_jax.evaluate; give its evaluation.json")


def _of_digits(file: Path, values: Mapping[str, Any]) -> Results:
    """evaluation.json: by group of prompts, and the judges on real clips."""
    groups = {f"{group} combinations": scores for group, scores in values["scores"].items()}
    groups |= {_REAL: values["judges_on_real_digits"]["scores"]["all"]}

    def score(group: str, metric: str, found: Mapping[str, Any]) -> Score:
        low, high = (100 * float(end) for end in found["interval"])
        rate, total = 100 * float(found["rate"]), int(found["total"])
        return Score(group, metric, rate, (low, high), total, of_model=group != _REAL)

    heading = (
        f"Moving digits, {len(values['answers'])} prompts from seed {values['seed']}, "
        f"{values['frames']} frames: percent right [95 % interval by Wilson] / judged. The judges "
        "are not the model; what they say of real clips is the most that can be measured "
        "(`python -m nova_jax.evaluate`)."
    )
    number = file.stem.removeprefix(_EVALUATION)
    drawn = [file.with_name(f"{_EVALUATION}{of}{number}.png") for of in ("", "_frames")]
    return Results(
        file,
        heading,
        [score(group, *item) for group, found in groups.items() for item in found.items()],
        of="moving digits",
        pictures=[path for path in drawn if path.is_file()],
    )


def _of_suites(file: Path, values: Mapping[str, Any]) -> list[Results]:
    """report.json: what was found of each table, of one model."""
    labels = list(values["scores"])
    if len(labels) != 1:
        raise NovaError(f"{file} is of {len(labels)} models ({', '.join(labels)}); report on one")
    said = [
        line
        for suite in values["scores"][labels[0]].values()
        for line in (*(f"no total without {part}" for part in suite["missing"]), *suite["notes"])
    ]
    results = [
        Results(
            file,
            "By the benchmark's own scorer, which gives no interval (`python -m nova_jax.evaluate "
            "--report`).",
            [
                Score(table["title"], table["columns"][key], float(value))
                for key, value in table["found"][labels[0]].items()
            ],
        )
        for table in values["tables"]
    ]
    return [*results[:-1], *(dataclasses.replace(last, notes=said) for last in results[-1:])]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card tells of a model, beside results and pictures.

    Attributes:
        name: heading of the card, and what `from_pretrained` opens it by.
        model: sizes of the transformer.
        size: height and width of what it draws, in pixels.
        frames: pixel frames of a video unless told otherwise.
        parameters: numbers in the transformer.
        parts: what the frozen parts are called.
        released: whether the directory has the layout of the release.
        config: plain values under `nova_jax.checkpoints.model.MODEL_KEYS`, as far as they are
            known, and ``step``.
        license: as the hub calls it; None where none was given.
    """

    name: str
    model: NovaConfig
    size: tuple[int, int]
    frames: int
    parameters: int
    parts: Sequence[str]
    released: bool
    config: Mapping[str, Any]
    license: str | None

    @property
    def training(self) -> Mapping[str, Any]:
        """The run's config without what is said of the model; empty where it is not known."""
        return self.config.get("training") or {}

    @property
    def base(self) -> str | None:
        """Id on the hub of the model that training started from."""
        start = (self.training.get("init") or {}).get("checkpoint")
        return start if isinstance(start, str) and is_on_hub(start) else None

    @property
    def task(self) -> str:
        """The hub's word for what it does."""
        if self.model.text_dim is None:
            return "unconditional-image-generation"
        return "text-to-video" if self.model.is_video else "text-to-image"


def model_card(facts: Facts, results: Sequence[Results], pictures: Sequence[str]) -> ModelCard:
    """Writes a card.

    Args:
        facts: of the model.
        results: tables of scores.
        pictures: paths of files, from where the card is.
    """
    # Slow to import, and few pipelines are saved.
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        model_name=facts.name,
        license=facts.license,
        library_name="nova_jax",
        pipeline_tag=facts.task,
        base_model=facts.base,
        tags=["nova", "jax", "autoregressive", "diffusion"],
        eval_results=[entry for one in results for entry in _entries(facts.task, one)] or None,
    )
    sections = {
        "Use": _use(facts),
        "Model": _model(facts),
        "Data": _data(facts.config.get("dataset")),
        "Training": _training(facts),
        "Scores": "\n\n".join(one.text() for one in results) or "None were given.",
        "License": _license(facts.license),
    }
    seen = [SHOWN[Path(path).suffix.lower()].format(Path(path).stem, path) for path in pictures]
    text = [f"# {facts.name}", _summary(facts), *seen]
    text += [f"## {title}\n\n{section}" for title, section in sections.items()]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(text) + "\n")


def _entries(task: str, results: Results) -> list[EvalResult]:
    """Scores as the hub's tables have them."""
    from huggingface_hub import EvalResult

    def known(score: Score) -> dict[str, Any] | None:
        if score.interval is None:
            return None
        low, high = score.interval
        return {"interval_95": [round(low, 2), round(high, 2)], "judged": score.judged}

    return [
        EvalResult(
            task_type=task,
            dataset_type="nova_jax",
            dataset_name=f"{results.of}, {score.dataset}" if results.of else score.dataset,
            metric_type="accuracy" if score.interval else "score",
            metric_name=score.metric,
            metric_value=round(score.value, 4),
            metric_args=known(score),
        )
        for score in results.scores
        if score.of_model
    ]


def _summary(facts: Facts) -> str:
    height, width = facts.size
    drawn = "pictures and videos" if facts.model.is_video else "pictures"
    drawn = f"videos of {facts.frames} frames" if facts.frames > 1 else drawn
    told = "class labels" if facts.model.text_dim is None else "text"
    return (
        f"A [NOVA]({PAPER}) model of {facts.parameters / 1e6:,.1f} million parameters: {drawn} of "
        f"{height}x{width} pixels from {told}. Written by nova_jax {__version__}."
    )


def _use(facts: Facts) -> str:
    prompts = (facts.training.get("samples") or {}).get("prompts") or ["what is to be seen"]
    asked = 0 if facts.model.text_dim is None else prompts[0]
    code = (
        "```python\nfrom nova_jax.pipeline import NovaPipeline\n\n"
        f"pipeline = NovaPipeline.from_pretrained({json.dumps(facts.name)})\n"
        f"frames = pipeline({json.dumps(asked)}, seed=0).frames[0]  # uint8 [F, H, W, 3]\n```"
    )
    note = (
        "The files have the layout of the PyTorch release of NOVA."
        if facts.released
        else "The files have the layout of nova_jax."
    )
    return f"{code}\n\n{note}"


def _model(facts: Facts) -> str:
    sampling = facts.config.get("sampling", {})
    rows = {
        **facts.model.to_dict(),
        "frozen parts": ", ".join(facts.parts),
        **{f"schedule.{key}": value for key, value in facts.config.get("schedule", {}).items()},
        **flatten_dict({"sampling": sampling}, sep="."),
        "motion_flow": facts.config.get("motion_flow"),
        "fps": facts.config.get("fps"),
    }
    return _rows(rows)


def _data(dataset: Mapping[str, Any] | None) -> str:
    if not dataset:
        return "Not recorded with the model."
    return _rows(flatten_dict(dataset, sep="."))


def _training(facts: Facts) -> str:
    step = facts.config.get("step", 0)
    if not facts.training:
        return f"{step:,} steps; more is not recorded." if step else "Not recorded with the model."
    every = flatten_dict(facts.training, sep=".")
    rows = {"steps": step} | {key: every[key] for key in _TRAINING if key in every}
    whole = f"```json\n{json.dumps(facts.training, indent=1)}\n```"
    folded = f"<details><summary>The whole recipe</summary>\n\n{whole}\n\n</details>"
    return f"{_rows(rows)}\n\n{folded}"


def _license(license: str | None) -> str:
    if license is None:
        return "None was given; ask the author before you use the model."
    return f"{license}. The architecture and method are those of the [paper]({PAPER})."


def _rows(values: Mapping[str, Any]) -> str:
    """A table of names and values, without those that are None."""
    told = {k: json.dumps(v) for k, v in values.items() if v is not None and v != {}}
    return _table(["", ""], [[key, f"`{value}`"] for key, value in told.items()])


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (heading, *rows)]
    first, *rest = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([first, f"|{'---|' * len(heading)}", *rest])
