"""VBench (Huang et al. 2023, arXiv:2311.17982): sixteen dimensions of videos.

Read in Vchitect/VBench at 45e79ec: vbench/VBench_full_info.json, prompts/README.md,
vbench/__init__.py, static_filter.py, scripts/constant.py, scripts/cal_final_score.py.

    OUT/videos/PROMPT-0.mp4 … PROMPT-4.mp4     25 where temporal flickering is judged

One flat folder: the scorer looks for the names of each dimension. Temporal flickering is judged on
those of its 25 that static_filter.py finds still, at most five of a prompt. Two prompts are in two
dimensions; they are drawn once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from nova_jax.errors import NovaError
from nova_jax.suites import prompt_files
from nova_jax.suites.interface import Item, Medium, Prompts, Scores, Target
from nova_jax.suites.prompt_files import PromptFile

SAMPLES, FLICKER_SAMPLES, FLICKER = 5, 25, "temporal_flickering"
PROMPTS = PromptFile(
    path="vbench/VBench_full_info.json",
    count=946,
    sha256="5dd2de80ee43cda750b2b72ea7023657c0b90d3702041c7e4608c65dbe50dccd",
)
#: Lowest and highest score that the leaderboard normalizes with, by dimension.
QUALITY: Mapping[str, tuple[float, float]] = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "dynamic_degree": (0.0, 1.0),
    "aesthetic_quality": (0.0, 1.0),
    "imaging_quality": (0.0, 1.0),
}
SEMANTIC: Mapping[str, tuple[float, float]] = {
    "object_class": (0.0, 1.0),
    "multiple_objects": (0.0, 1.0),
    "human_action": (0.0, 1.0),
    "color": (0.0, 1.0),
    "spatial_relationship": (0.0, 1.0),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
#: All other weights are 1.
WEIGHTS: Mapping[str, float] = {"dynamic_degree": 0.5}
#: Prompts of each dimension.
COUNTS: Mapping[str, int] = {
    "subject_consistency": 72,
    "background_consistency": 86,
    "temporal_flickering": 75,
    "motion_smoothness": 72,
    "dynamic_degree": 72,
    "aesthetic_quality": 93,
    "imaging_quality": 93,
    "object_class": 79,
    "multiple_objects": 82,
    "human_action": 100,
    "color": 85,
    "spatial_relationship": 84,
    "scene": 86,
    "appearance_style": 90,
    "temporal_style": 100,
    "overall_consistency": 93,
}
#: Of these the scorer leaves videos out: those that move, and those without the object.
LEAVES_OUT = (FLICKER, "color")
RESULTS = "_eval_results.json"


class VBench:
    """See `nova_jax.suites.interface.Suite`."""

    name = "vbench"
    title = "VBench"
    source = "github.com/Vchitect/VBench at 45e79ec"
    medium: Medium = "video"
    size: tuple[int, int] | None = None
    parts = (*QUALITY, *SEMANTIC)

    def prompts(self, folder: Path | None, parts: Sequence[str], *, verify: bool) -> Prompts:
        """Of all dimensions that are wanted, each prompt once."""
        entries, sha256 = prompt_files.read(folder, PROMPTS, _parse, self.source, verify=verify)
        samples: dict[str, int] = {}
        for prompt, dimensions in entries:
            for dimension in set(dimensions) & set(parts):
                number = FLICKER_SAMPLES if dimension == FLICKER else SAMPLES
                samples[prompt] = max(number, samples.get(prompt, 0))
        items = [
            Item(prompt, tuple(Target(f"videos/{prompt}-{i}.mp4", (i,)) for i in range(number)))
            for prompt, number in samples.items()
        ]
        return Prompts(items, tuple(parts), sha256, verify)

    def scoring(self, out: Path, prompts: Prompts, size: tuple[int, int]) -> str:
        """The commands of the repository, for an environment of its own with a GPU."""
        others = " ".join(part for part in prompts.parts if part != FLICKER)
        lines = [f"in a clone of {self.source}, with its environment:"]
        if others:
            lines.append(
                f"  python evaluate.py --videos_path {out}/videos --output_path {out}/results "
                f"--dimension {others}"
            )
        if FLICKER in prompts.parts:
            lines += [
                f"  python static_filter.py --videos_path {out}/videos --result_path {out}/still",
                f"  python evaluate.py --videos_path {out}/still/filtered_videos "
                f"--output_path {out}/results --dimension {FLICKER}",
            ]
        return "\n".join([*lines, f"  python -m nova_jax.evaluate --report={out}"])

    def results(self, folder: Path) -> list[Path]:
        """All that the scorer wrote; it may have been run dimension by dimension."""
        return sorted(folder.rglob(f"*{RESULTS}"))

    def reads(self, file: Path) -> bool:
        """Files that end as the scorer's do."""
        return file.name.endswith(RESULTS)

    def scores(self, files: Sequence[Path], prompts: Path | None) -> Scores:
        """Raw scores times 100, and the leaderboard's three totals where they can be had."""
        found: dict[str, float] = {}
        read: dict[str, Path] = {}
        missing, notes = [], []
        for file in files:
            for dimension, (score, videos) in _read(file).items():
                if dimension in read:
                    raise NovaError(
                        f"{read[dimension]} and {file} both have {dimension}; give one of them"
                    )
                read[dimension] = file
                wanted = SAMPLES * COUNTS[dimension]
                if videos == wanted or (dimension in LEAVES_OUT and 0 < videos < wanted):
                    found[dimension] = score
                else:
                    missing.append(f"VBench {dimension}: {videos} of {wanted} videos")
                if 0 < videos < wanted and dimension in LEAVES_OUT:
                    notes.append(f"VBench {dimension}: the scorer took {videos} of {wanted} videos")
        missing += [f"VBench {dimension}" for dimension in self.parts if dimension not in read]
        values = {dimension: 100 * score for dimension, score in found.items()}
        totals = {
            name: 100 * weighted(found, dimensions)
            for name, dimensions in (("quality", QUALITY), ("semantic", SEMANTIC))
            if found.keys() >= dimensions.keys()
        }
        if len(totals) == 2:
            totals["total"] = total(totals["quality"], totals["semantic"])
        values |= totals
        return Scores({f"vbench.{name}": value for name, value in values.items()}, missing, notes)


def weighted(scores: Mapping[str, float], dimensions: Mapping[str, tuple[float, float]]) -> float:
    """The weighted mean of normalized scores: Σ w·(x − low)/(high − low) / Σ w."""
    weights = {dimension: WEIGHTS.get(dimension, 1.0) for dimension in dimensions}
    normalized = {d: (scores[d] - low) / (high - low) for d, (low, high) in dimensions.items()}
    return sum(weights[d] * normalized[d] for d in dimensions) / sum(weights.values())


def total(quality: float, semantic: float) -> float:
    """(4·quality + semantic) / 5."""
    return (4 * quality + semantic) / 5


def _parse(texts: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Prompts with their dimensions."""
    (text,) = texts.values()
    entries = [(entry["prompt_en"], entry["dimension"]) for entry in json.loads(text)]
    for prompt, dimensions in entries:
        if not isinstance(prompt, str) or "/" in prompt or not set(dimensions) <= COUNTS.keys():
            raise ValueError(f"the prompt {prompt!r}")
    return entries


def _read(file: Path) -> dict[str, tuple[float, int]]:
    """By dimension: the score, and of how many videos."""
    try:
        results = {
            dimension: (float(score), len(videos))
            for dimension, (score, videos) in json.loads(file.read_text(encoding="utf-8")).items()
        }
        if unknown := results.keys() - COUNTS.keys():
            raise ValueError(f"no dimension {min(unknown)!r}")
        if not all(math.isfinite(score) for score, _ in results.values()):
            raise ValueError("a score is not finite")
    except (ValueError, TypeError, AttributeError) as error:
        raise NovaError(f"{file} is no result of VBench ({error}); score again") from error
    return results
