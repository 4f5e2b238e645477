"""What judges say of a digits model: its videos judged, in numbers, words and pictures.

`judge_real` is the most that can be measured: the judges' own accuracy on real clips of held-out
handwriting. `judge_model` has a model make videos of prompts, half of them combinations of digit,
color and path that training never showed, and has the judges look at every frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nova_jax import drift, media
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
from nova_jax.pipeline import NovaPipeline
from nova_jax.plots import Line, encode_plot

SHEET_CLIPS = 48  # seen and unseen combinations alternate
SHEET_WIDTH = 1600  # pixels; a longer strip of frames has a row to itself


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """What the judges see in real clips.

    Attributes:
      raw: their accuracy on digits in merely enlarged images, 0 to 1.
      answers: of real clips, each as a question that it answers right.
    """

    raw: float
    answers: Sequence[tuple[Question, Verdict]]

    def text(self) -> str:
        """The scores in a table, below a line that says what they are."""
        return (
            f"judges on {len(self.answers)} real held-out clips, the most that can be measured, "
            f"percent right [95 % interval] / judged (digit in merely enlarged images: "
            f"{100 * self.raw:.1f}):\n{format_table(tally(self.answers))}"
        )

    def json(self) -> dict[str, Any]:
        """The scores as JSON has them."""
        return {
            "digit_raw": self.raw,
            "scores": _numbers(tally(self.answers)),
            "by_frame": _numbers(tally_frames(self.answers)),
        }


def judge_real(judges: Judges) -> Ceiling:
    """Has the judges look at real clips of handwriting that was held out."""
    real = judges.real_clips()
    raw = judges.accuracy_on_raw_digits()
    return Ceiling(raw, list(zip(real_questions(real), map(judges, real["frames"]), strict=True)))


@dataclasses.dataclass(frozen=True)
class Judged:
    """What the judges see in a model's videos.

    Attributes:
      answers: the prompts, and what the judges see in their videos.
      ceiling: what they see in real clips.
      shown: the first of the videos, uint8 `[F, H, W, 3]` each.
      drifted: how far the videos drift; None of pictures.
      motion_frames: frames that the judges need for path and speed.
      trained: frames that the model was trained on.
    """

    answers: Sequence[tuple[Question, Verdict]]
    ceiling: Ceiling
    shown: Sequence[np.ndarray]
    drifted: drift.Report | None
    motion_frames: int
    trained: int

    @property
    def frames(self) -> int:
        """F, of each video."""
        return len(self.shown[0])

    def text(self, name: str) -> str:
        """The scores in tables, on the whole and frame by frame, of the model of this name."""
        by_frame = tally_frames(self.answers)
        rows = {trait: by_frame["all"][trait] for trait in ("digit", "color")}
        rows |= {f"digit, {group}": by_frame[group]["digit"] for group in ("seen", "unseen")}
        rows |= {"digit, real clips": tally_frames(self.ceiling.answers)["all"]["digit"]}
        parts = [
            f"{name}, {len(self.answers)} prompts, {self.frames} frames, percent right "
            f"[95 % interval] / judged{self._motion_judged_on()}:",
            format_table(tally(self.answers)),
            "percent right by frame, each judged by itself:",
            format_frames(rows),
        ]
        if self.drifted is not None:
            parts += ["drift from the first frame, mean:", self.drifted.table()]
        return "\n".join(parts)

    def json(self) -> dict[str, Any]:
        """The scores and every answer as JSON has them."""
        return {
            "judges_on_real_digits": self.ceiling.json(),
            "scores": _numbers(tally(self.answers)),
            "by_frame": _numbers(tally_frames(self.answers)),
            "drift": self.drifted and self.drifted.summary(),
            "answers": [
                {"asked": dataclasses.asdict(question), "seen": dataclasses.asdict(verdict)}
                for question, verdict in self.answers
            ],
        }

    def sheet(self) -> bytes:
        """The first videos with all of their frames, as a PNG file."""
        shown = media.enlarge(np.stack(self.shown), 64 if self.frames <= 16 else 32)
        columns = max(1, SHEET_WIDTH // (shown.shape[1] * shown.shape[3] + 100))
        captions = [_caption(*answer) for answer in self.answers[: len(self.shown)]]
        return media.encode_png(media.contact_sheet(shown, captions, columns=min(columns, 3)))

    def plot(self) -> bytes:
        """Percent right by frame, with its 95 % band, as a PNG file.

        Raises:
          NovaError: matplotlib is not installed.
        """
        by_frame, real = tally_frames(self.answers), tally_frames(self.ceiling.answers)
        panels, shown = {}, {}
        for trait in ("digit", "color"):
            shown[f"{trait} right, percent"] = (0.0, 100.0)
            most = float(np.mean([score.rate for score in real["all"][trait]]))
            panels[f"{trait} right, percent"] = [
                _line(by_frame["all"][trait], "all, 95 % interval", ".-", with_band=True),
                _line(by_frame["seen"][trait], "seen combinations", "--"),
                _line(by_frame["unseen"][trait], "unseen combinations", "--"),
                Line((1, self.frames), (100 * most, 100 * most), "judges on real clips", style=":"),
            ]
        longer = self.frames > self.trained
        mark = (self.trained, f"training's length, {self.trained}") if longer else None
        title = f"right by frame, each judged by itself; {len(self.answers)} prompts"
        return encode_plot(panels, title, "frame", shown, mark=mark)

    def _motion_judged_on(self) -> str:
        """Says which frames path and speed are judged on, where it is not all."""
        if self.frames > self.motion_frames > 1:
            return f"; path and speed on the first {self.motion_frames}"
        if self.frames == self.motion_frames:
            return ""
        return f"; path and speed only from {self.motion_frames} frames on"


def judge_model(
    pipeline: NovaPipeline,
    dataset: DigitsConfig,
    judges: Judges,
    ceiling: Ceiling,
    *,
    prompts: int,
    seed: int,
    frames: int | None,
    batch_size: int,
) -> Judged:
    """Generates and judges.

    Args:
      pipeline: the model.
      dataset: the clips that it was trained on.
      judges: of such clips.
      ceiling: what they see in real ones.
      prompts: how many, at least 2.
      seed: of the prompts; the videos' seeds count on from it.
      frames: of a video; by default the model's own.
      batch_size: most videos made together.

    Raises:
      NovaError: the model cannot make so many frames, or memory is short.
    """
    questions = make_questions(
        prompts, seed=seed, moving=pipeline.config.is_video, walls=dataset.walls
    )
    made = pipeline.stream(
        [question.prompt for question in questions],
        seed=range(seed, seed + len(questions)),
        batch_size=batch_size,
        num_frames=frames,
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
    if len(shown[0]) < judges.motion_frames:
        questions = without_motion(questions)
    return Judged(
        answers=list(zip(questions, verdicts, strict=True)),
        ceiling=ceiling,
        shown=shown,
        drifted=drift.Report.of(measured) if measured else None,
        motion_frames=judges.motion_frames,
        trained=min(dataset.frames, pipeline.config.frames),
    )


def _numbers(tally: Any) -> Any:
    """Scores in dictionaries and lists as JSON has them."""
    match tally:
        case Score():
            return dataclasses.asdict(tally) | {"rate": tally.rate, "interval": tally.interval}
        case list():
            return [_numbers(score) for score in tally]
    return {name: _numbers(scores) for name, scores in tally.items()}


def _line(scores: list[Score], label: str, style: str, with_band: bool = False) -> Line:
    low, high = 100 * np.array([score.interval for score in scores]).T
    y = [100 * score.rate for score in scores]
    band = (low, high) if with_band else None
    return Line(range(1, len(scores) + 1), y, label, band, style)


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
