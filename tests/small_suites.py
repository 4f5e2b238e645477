"""Prompt files of the suites' form, with few prompts, and the results of their scorers."""

import json
from pathlib import Path

from nova_jax.suites import geneval

#: Two prompts of GenEval's form, as its lines are.
GENEVAL = (
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], '
    '"prompt": "a photo of a bench"}',
    '{"tag": "counting", "include": [{"class": "clock", "count": 2}], '
    '"exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"}',
    '{"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "blue"}], '
    '"prompt": "a photo of a blue cow"}',
)
VBENCH = (
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a cat, oil painting", "dimension": ["appearance_style"]},
    {
        "prompt_en": "a cat, oil painting",
        "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"],
    },
)
COMPBENCH = ("a green bench and a blue bowl", "a red cup")
DPG = {"7": "A long prompt.\n", "whoops3": "Another one, with a dog. "}


def write_clones(folder: Path) -> Path:
    """Writes what is read of all four repositories into one folder."""
    geneval = folder / "prompts" / "evaluation_metadata.jsonl"
    geneval.parent.mkdir(parents=True)
    geneval.write_text("".join(f"{line}\n" for line in GENEVAL))
    vbench = folder / "vbench" / "VBench_full_info.json"
    vbench.parent.mkdir()
    vbench.write_text(json.dumps(VBENCH))
    dataset = folder / "examples" / "dataset"
    dataset.mkdir(parents=True)
    for category in ("color", "shape"):
        (dataset / f"{category}_val.txt").write_bytes("\r\n".join(COMPBENCH).encode())
    dpg = folder / "dpg_bench" / "prompts"
    dpg.mkdir(parents=True)
    for name, text in DPG.items():
        (dpg / f"{name}.txt").write_text(text)
    return folder


#: Shares of right pictures by task.
SIXTHS = dict(zip(geneval.TASKS, (0.5, 0.25, 1.0, 0.0, 0.75, 0.2), strict=True))


def geneval_lines(right, count=4):
    """As evaluate_images.py writes them: of every picture of every task, `right` of a share."""
    lines = []
    for task, prompts in geneval.TASKS.items():
        for i in range(prompts):
            for j in range(count):
                done = i * count + j < right[task] * prompts * count - 1e-9
                row = {
                    "filename": f"images/{task}{i}/{j}.png",
                    "tag": task,
                    "prompt": f"{task} {i}",
                }
                lines.append(json.dumps(row | {"correct": done, "reason": "", "metadata": "{}"}))
    return lines
