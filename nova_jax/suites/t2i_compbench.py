"""T2I-CompBench(++) (Huang et al. 2023, arXiv:2307.06350): attributes, relations, numbers.

Read in Karine-Huang/T2I-CompBench at 1b70949: examples/dataset, Readme.md,
BLIPvqa_eval/BLIP_vqa.py, UniDet_eval, CLIPScore_eval/CLIP_similarity.py, 3_in_1_eval/3_in_1.py. Its
scorers take one category at a time, sort pictures by the number at their end, and read the prompt
before the first "_".

    OUT/color/samples/a green bench and a blue bowl_000000.png … _002999.png
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from nova_jax.errors import NovaError
from nova_jax.suites import prompt_files
from nova_jax.suites.interface import Item, Medium, Prompts, Scores, Target
from nova_jax.suites.prompt_files import PromptFile

SAMPLES, COUNT = 10, 300
#: By category: the checksum of its prompts, and where its scorer writes below the folder of
#: samples.
CATEGORIES: Mapping[str, tuple[str, str]] = {
    "color": (
        "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
        "annotation_blip",
    ),
    "shape": (
        "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
        "annotation_blip",
    ),
    "texture": (
        "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
        "annotation_blip",
    ),
    "spatial": (
        "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
        "annotation_obj_detection_2d",
    ),
    "non_spatial": (
        "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
        "annotation_clip",
    ),
    "complex": (
        "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
        "annotation_3_in_1",
    ),
    "numeracy": (
        "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
        "annotation_num",
    ),
    "3d_spatial": (
        "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
        "annotation_obj_detection_3d",
    ),
}
RESULTS = "vqa_result.json"


class T2ICompBench:
    """See `nova_jax.suites.interface.Suite`."""

    name = "t2i_compbench"
    title = "T2I-CompBench"
    source = "github.com/Karine-Huang/T2I-CompBench at 1b70949"
    medium: Medium = "picture"
    size: tuple[int, int] | None = None
    parts = tuple(CATEGORIES)

    def prompts(self, folder: Path | None, parts: Sequence[str], *, verify: bool) -> Prompts:
        """Every category has a folder and numbers of its own."""
        items, checksums = [], {}
        for category in parts:
            file = PromptFile(
                f"examples/dataset/{category}_val.txt", COUNT, CATEGORIES[category][0]
            )
            lines, checksums[file.path] = prompt_files.read(
                folder, file, _parse, self.source, verify=verify
            )
            items += [_item(category, index, prompt) for index, prompt in enumerate(lines)]
        return Prompts(items, tuple(parts), prompt_files.joined(checksums), verify)

    def scoring(self, out: Path, prompts: Prompts, size: tuple[int, int]) -> str:
        """The command for the attributes; other categories have scorers of their own."""
        lines = [f"in BLIPvqa_eval of a clone of {self.source}, with its environment:"]
        lines += [
            f"  python BLIP_vqa.py --out_dir={out}/{category}/"
            if CATEGORIES[category][1] == "annotation_blip"
            else f"  as Readme.md says, {CATEGORIES[category][1]} in {out}/{category}"
            for category in prompts.parts
        ]
        return "\n".join([*lines, f"  python -m nova_jax.evaluate --report={out}"])

    def results(self, folder: Path) -> list[Path]:
        """Of each category what its scorer wrote, not what that was made from."""
        found = (file for file in sorted(folder.rglob(RESULTS)) if category_of(file))
        return [f for f in found if f.parent.name == CATEGORIES[category_of(f) or ""][1]]

    def reads(self, file: Path) -> bool:
        """Files of the scorers' name, and their mean in words."""
        return file.name == RESULTS or (file.suffix == ".txt" and "score" in file.name)

    def scores(self, files: Sequence[Path], prompts: Path | None) -> Scores:
        """Means over pictures, times 100 as in tables."""
        values: dict[str, float] = {}
        missing, notes, read = [], [], dict[str, Path]()
        for file in files:
            category = category_of(file)
            if category is None:
                raise NovaError(
                    f"{file} does not say its category; keep it below a folder named "
                    f"{', '.join(CATEGORIES)}"
                )
            scorer = CATEGORIES[category][1]
            if file.parent.name.startswith("annotation") and file.parent.name != scorer:
                raise NovaError(f"{file} is no score of {category}; that is in {scorer}")
            if category in read:
                raise NovaError(f"{read[category]} and {file} are both of {category}; give one")
            read[category] = file
            if file.suffix == ".txt":
                values[f"t2i_compbench.{category}"] = 100 * _read_mean(file)
                notes.append(f"T2I-CompBench {category}: {file.name} does not say of how many")
                continue
            answers = _read_answers(file)
            if len(answers) == COUNT * SAMPLES:
                values[f"t2i_compbench.{category}"] = 100 * mean(answers)
            else:
                missing.append(
                    f"T2I-CompBench {category}: {len(answers)} of {COUNT * SAMPLES} pictures"
                )
        return Scores(values, missing, notes)


def category_of(file: Path) -> str | None:
    """The category in whose folder a file lies."""
    return next((part for part in reversed(file.absolute().parts) if part in CATEGORIES), None)


def _parse(texts: Mapping[str, str]) -> list[str]:
    (text,) = texts.values()
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    for prompt in prompts:
        if "_" in prompt or "/" in prompt:  # no name of a file then, or not the scorers'
            raise ValueError(f"the prompt {prompt!r}")
    return prompts


def _item(category: str, index: int, prompt: str) -> Item:
    numbers = range(index * SAMPLES, (index + 1) * SAMPLES)
    paths = [f"{category}/samples/{prompt}_{number:06}.png" for number in numbers]
    return Item(prompt, tuple(Target(path, (i,)) for i, path in enumerate(paths)))


def _read_answers(file: Path) -> list[float]:
    """The scores of pictures, each of which is there once."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("no list of answers")
        answers = {int(row["question_id"]): float(row["answer"]) for row in rows}
        if len(answers) != len(rows):
            raise ValueError("a question_id is there twice")
        if not all(map(math.isfinite, answers.values())):
            raise ValueError("an answer is not finite")
    except (ValueError, KeyError, TypeError) as error:
        raise NovaError(f"{file} is no result of T2I-CompBench ({error}); score again") from error
    return list(answers.values())


def _read_mean(file: Path) -> float:
    """What stands behind the colon in "BLIP-VQA score:0.7075"."""
    try:
        value = float(file.read_text(encoding="utf-8").strip().rpartition(":")[2])
        if not math.isfinite(value):
            raise ValueError(value)
        return value
    except ValueError as error:
        raise NovaError(f"{file} holds no score ({error}); give {RESULTS}") from error
