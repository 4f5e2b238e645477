"""Commands that are killed and started again leave what they would have left if they had not been.

One directory sees all kills of a test: each process finds what the one before it has left.
"""

import copy
import dataclasses
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
from PIL import Image
from processes import arrays, arrays_of, records, start_command, write_recipe
from videos import moving_square, write_video

SLOW = pytest.mark.slow

#: A place to die at, see `processes.die_at`: the one that is tried first.
ONE = {
    "train": "1 os.rename .*orbax-checkpoint-tmp",  # a checkpoint is written and has no name yet
    "prepare.__main__": "3 call nova_jax.prepare.parts:Part.close",
    "generate": "2 os.link",  # a video is written and has no name yet
    "evaluate": "2 os.link",
}
_STEP, _PARTIAL = "call nova_jax.training.throughput:Throughput.step", r".*/out/[.]\w+[.]partial$"
#: Twenty for each, in the order in which a command reaches them that goes on where it was killed.
WORST = {
    "train": (
        "1 open .*/lock$",
        "1 open .*config.json",
        "1 os.rename .*config.json",
        "1 open .*metrics.jsonl",
        "1 os.rename .*metrics.jsonl",
        f"1 {_STEP}",  # in the first step
        f"2 {_STEP}",
        "1 call nova_jax.training.metrics:MetricWriter.flush torn",
        "1 os.mkdir .*orbax-checkpoint-tmp",
        "4 os.mkdir .*orbax-checkpoint-tmp",
        "1 open .*checkpoint.*checksums.json",
        "1 os.rename .*checkpoint.*checksums.json",
        "1 os.rename .*orbax-checkpoint-tmp",
        "1 os.mkdir .*/samples$",
        "1 call nova_jax.training.metrics:MetricWriter.close",  # all is done but the model
        "1 os.mkdir .*/model$",
        "1 open .*model/checksums.json",
        "1 os.rename .*model/checksums.json",
        "1 os.rename .*model/config.json",
        "1 os.remove .*/lock$",
    ),
    "prepare.__main__": (
        "1 open .*/lock-0-of-1$",
        "1 os.mkdir .*/parts$",
        "1 open .*settings.json",
        "1 os.rename .*settings.json",
        "1 call nova_jax.prepare.parts:Part.write",
        "2 call nova_jax.prepare.parts:Part.write",
        "1 call nova_jax.data.records:ShardWriter.close",
        "1 open .*parts/(?!settings).*json",
        "1 os.rename .*parts/(?!settings).*json",
        "2 call nova_jax.data.records:ShardWriter.close",
        "2 open .*parts/(?!settings).*json",
        "2 os.rename .*parts/(?!settings).*json",
        "1 call nova_jax.prepare.parts:Parts.finish",
        "1 open .*numbers.json",
        "1 os.rename .*numbers.json",
        "2 os.rename .*array_record",
        "1 os.rename .*report.json",
        "1 open .*dataset_info.json",
        "1 os.rename .*metadata.json",
        "1 os.remove .*/lock-0-of-1$",
    ),
    "generate": (
        "1 call nova_jax.pipeline:NovaPipeline.from_pretrained",
        "1 call nova_jax.pipeline:generate",
        "2 call nova_jax.pipeline:generate",
        r"1 os.mkdir [^.]*/out$",
        *(f"{n} call nova_jax.media:encode_mp4" for n in (1, 2, 3, 4)),
        *(f"{n} open {_PARTIAL}" for n in (1, 2, 3, 4)),
        *(f"{n} os.link" for n in (1, 2, 3, 4)),
        *(f"{n} os.remove {_PARTIAL}" for n in (1, 2, 3, 4)),
    ),
    "evaluate": (
        "1 call nova_jax.pipeline:NovaPipeline.from_pretrained",
        "1 call nova_jax.digits.judges:Judges.accuracy_on_raw_digits",
        "1 call nova_jax.digits.evaluation:make_questions",
        "1 call nova_jax.pipeline:generate",
        "2 call nova_jax.pipeline:generate",
        *(f"{n} call nova_jax.digits.judges:Judges.__call__" for n in (1, 2, 3, 4)),
        "1 call nova_jax.digits.evaluation:tally",
        "1 call nova_jax.digits.evaluation:format_table",
        "4 call nova_jax.digits.evaluation:_caption",
        "1 call nova_jax.media:contact_sheet",
        r"1 os.mkdir [^.]*/out$",
        *(f"{n} open {_PARTIAL}" for n in (1, 2)),
        *(f"{n} os.link" for n in (1, 2)),
        *(f"{n} os.remove {_PARTIAL}" for n in (1, 2)),
    ),
}


@dataclasses.dataclass
class Command:
    """A command line that lacks its place for results, and what compares two such places."""

    name: str
    arguments: tuple[str, ...]
    output: str
    compare: Callable[[Path, Path, bool], None]
    folder: Path

    def run(self, out: Path, kill: str | None = None, after: float | None = None) -> int | None:
        """Starts it, and kills it at a place or after seconds; returns the exit code."""
        process = start_command(
            self.name, *self.arguments, f"--{self.output}={out}",
            log=self.folder / "log", cache=self.folder / "programs", kill=kill,
        )  # fmt: skip
        process.join(1800 if after is None else after)
        late = process.is_alive()
        process.kill()
        process.join()
        assert after is not None or not late, f"it never ended\n{self.log()}"
        return process.exitcode

    def log(self) -> str:
        return (self.folder / "log").read_text()


# Judges are what takes long, and files are saved as they are by `generate`.
@pytest.fixture(scope="module", params=[*list(WORST)[:-1], pytest.param("evaluate", marks=SLOW)])
def command(request, untrained, tmp_path_factory) -> Command:
    """Each of the commands, and in ``whole`` what it leaves when it is not disturbed."""
    folder = tmp_path_factory.mktemp(request.param)
    make = {
        "train": training, "prepare.__main__": preparation,
        "generate": lambda folder: generation(folder, untrained),
        "evaluate": lambda folder: evaluation(folder, untrained),
    }[request.param]  # fmt: skip
    command = Command(request.param, *make(folder), folder)
    assert command.run(folder / "whole" / "out") == 0, command.log()
    return command


def training(folder):
    run = copy.deepcopy(small.RUN) | {
        "steps": 8,
        "checkpoint": {"every": 2},
        "logging": {"every": 1, "tensorboard": False},
        "validation": {"every": 8, "batches": 1},
        "samples": {"every": 8, "prompts": ("a red seven moves up",)},
    }
    run["data"]["video_fraction"] = 1.0
    return (f"--config={write_recipe(run, folder / 'recipe.py')}",), "workdir", same_runs


def preparation(folder):
    """Ten files that can be used and one that cannot, two to a part."""
    source = folder / "source"
    source.mkdir()
    for n in range(8):
        Image.fromarray(moving_square(1, hue=n)[0]).save(source / f"p{n}.png")
    for n in range(2):
        write_video(source / f"v{n}.mp4", moving_square(12, hue=n), fps=10)
    for path in list(source.iterdir()):
        path.with_suffix(".txt").write_text(f"the clip {path.stem}\n")
    (source / "silent.png").write_bytes((source / "p0.png").read_bytes())
    config = {
        "clips": {"sizes": [[32, 48]], "frames": [5], "stride": 2},
        "threads": 2,
        "rows_per_part": 2,
    }
    recipe = write_recipe(config, folder / "recipe.py")
    return ("--raw", f"--input={source}", f"--config={recipe}"), "out", same_trees


def generation(folder, model):
    prompts = [f"--prompt={color} digit" for color in ("red", "green", "blue", "white")]
    return (f"--checkpoint={model}", *prompts, "--batch_size=2"), "out", same_copies


def evaluation(folder, model):
    return (f"--checkpoint={model}", "--num_prompts=4", "--batch_size=2"), "out", same_copies


def same_runs(found, whole, finished):
    if not finished:
        return
    assert records(found) == records(whole)
    lines = (found / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["step"] for line in lines), "no line is cut short"
    for path in ("config.json", "model/config.json"):
        assert (found / path).read_bytes() == (whole / path).read_bytes()
    same_trees(found / "samples", whole / "samples", finished)
    for of, expected in zip(run_arrays(found), run_arrays(whole), strict=True):
        assert of.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(of[name], value, err_msg=name)


def run_arrays(workdir):
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    return [arrays_of(workdir / "model" / "params"), *(arrays(workdir, step) for step in steps)]


def same_trees(found, whole, finished):
    if finished:
        assert tree(found) == tree(whole)


def same_copies(found, whole, finished):
    """Every file is one of the undisturbed run's, or a copy with a number."""
    expected, names = tree(whole), set()
    for name, data in tree(found).items():
        names.add(original := re.sub(r"-\d+(?=\.\w+$)", "", name))
        assert data == expected[original], name
    assert not finished or names == expected.keys()


def tree(folder):
    """What files hold, but for those which a killed process may leave."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (folder.rglob("*") if folder.exists() else ())
        if path.is_file() and path.suffix != ".partial"
    }


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=SLOW)])
def test_killed_at_the_worst_moments(command, tmp_path, many):
    out, whole = tmp_path / "out", command.folder / "whole" / "out"
    places = WORST[command.name] if many else (ONE[command.name],)
    for place in places:
        assert command.run(out, kill=place) == -9, f"not at {place}\n{command.log()}"
        command.compare(out, whole, False)
    assert command.run(out) == 0, command.log()
    command.compare(out, whole, True)
    print(f"{command.name}: {len(places)} kills at the worst moments")


@SLOW
def test_killed_at_random_moments(command, tmp_path):
    whole, dice = command.folder / "whole" / "out", random.Random(0)
    began = time.monotonic()
    assert command.run(tmp_path / "out" / "out") == 0, command.log()
    command.compare(tmp_path / "out" / "out", whole, True)
    seconds, kills, ended = time.monotonic() - began, 0, 0
    while kills < 20:
        out = tmp_path / str(ended) / "out"
        code = command.run(out, after=dice.uniform(0, seconds))
        assert code in (0, -9), command.log()
        command.compare(out, whole, code == 0)
        kills, ended = kills + (code == -9), ended + (code == 0)
    assert command.run(out) == 0, command.log()
    command.compare(out, whole, True)
    print(f"{command.name}: {kills} kills in {ended + 1} runs, {seconds:.1f} s each undisturbed")
