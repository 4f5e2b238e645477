"""Requests that cannot be met: one line that names the thing and the remedy, exit code 2, no trace.

Starting Python and JAX takes seconds, so one process imports a command and forks for each case.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT / 'configs' / 'digits_t2v.py'}"

# Runs cli.run(main) of one command on many command lines, each in a fork of its own.
FORKS = """
import importlib, json, os, sys, traceback
from nova_jax import cli
try:
    command = importlib.import_module(sys.argv[1] + ".__main__")
except ModuleNotFoundError:
    command = importlib.import_module(sys.argv[1])
for arguments, log in json.loads(sys.argv[2]):
    if not os.fork():
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.argv = [command.__file__, *arguments]
        try:
            cli.run(command.main)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""

# name: (command, arguments, what the line must say). {names} are files of the fixture below.
CASES = {
    "unknown config key": ("train", "{config} --workdir={new} --config.optimizer.momentum=1",
                           "--config.optimizer.momentum=1: no such key"),
    "unknown section of the config": (
        "train", "--config={sparse_config} --workdir={new} --config.logging.every=1",
        "--config.logging.every=1: no such key"),
    "config value of a wrong type": ("train", "{config} --workdir={new} --config.steps=many",
                                     "--config.steps=many"),
    "config value of a wrong kind": ("train", "{config} --workdir={new} --config.dataset.size=7",
                                     "dataset.size"),
    "image not divisible by the patch": (
        "train", "{config} --workdir={new} --config.model.patch_size=5", "patch"),
    "heads that do not divide the width": (
        "train", "{config} --workdir={new} --config.model.spatial_decoder=vit_d2w100", "100"),
    "missing config": ("train", "--config=nowhere.py --workdir={new}", "nowhere.py"),
    "broken config": ("train", "--config={broken_config} --workdir={new}", "cannot be read"),
    "no config": ("train", "--workdir={new}", "--config is missing"),
    "workdir that is a file": ("train", "{config} --workdir={broken_image}", "broken.png"),
    "unknown flag": ("generate", "--promt=x", "Unknown command line flag 'promt'"),
    "flag of a wrong type": ("generate", "--frames=many", "--frames=many"),
    "stray argument": ("generate", "a red seven", "unexpected argument 'a'"),
    "no prompt": ("generate", "--checkpoint={model} --out={new}", "nothing to generate"),
    "empty prompt file": ("generate", "--checkpoint={model} --out={new} --prompt_file={blank}",
                          "blank.txt holds no prompt; write one a line"),
    "missing prompt file": ("generate", "--checkpoint={model} --prompt_file=nowhere.txt",
                            "nowhere.txt cannot be read"),
    "binary prompt file": ("generate", "--checkpoint={model} --prompt_file={picture}",
                           "cannot be read"),
    "missing image": ("generate", "--checkpoint={model} --prompt=x --image=nowhere.png",
                      "nowhere.png does not exist"),
    "unreadable image": ("generate", "--checkpoint={model} --prompt=x --image={broken_image}",
                         "broken.png cannot be read; give a PNG"),
    "size of no kind": ("generate", "--checkpoint={model} --prompt=x --size=16 --out={new}",
                        "--size=16 is not HEIGHTxWIDTH"),
    "size that tokens do not fit": (
        "generate", "--checkpoint={model} --prompt=x --size=16x17 --out={new}",
        "size 16x17 does not fit the model; take multiples of"),
    "no frames": ("generate", "--checkpoint={model} --prompt=x --frames=0 --out={new}", "0 frames"),
    "missing checkpoint": ("generate", "--checkpoint=nowhere --prompt=x --out={new}", "nowhere"),
    "misspelled checkpoint": ("generate", "--checkpoint={folder}/truncate --prompt=x --out={new}",
                              "/truncate; did you mean"),
    "directory of something else": ("generate", "--checkpoint={folder} --prompt=x --out={new}",
                                    "is no checkpoint: it has no config.json"),
    "foreign checkpoint": ("generate", "--checkpoint={foreign} --prompt=x --out={new}",
                           "not of nova_jax"),
    "truncated checkpoint": ("generate", "--checkpoint={truncated} --prompt=x --out={new}",
                             "damaged or cut short"),
    "impossible guidance": ("generate", "--checkpoint={model} --prompt=x --guidance_renorm=3",
                            "renorm 3"),
    "export of a prompt": ("generate", "--export={new}.zip --prompt=x",
                           "--prompt has no place in an export"),
    "export to a file that exists": ("generate", "--checkpoint=nowhere --export={archive}",
                                     "archive.zip exists already; choose another name"),
    "export to nowhere": ("generate", "--export={blank}/x.zip", "blank.txt"),
    "export by the kernel": ("generate", "--checkpoint={model} --export={new}.zip --sampler=pallas",
                             'sampler "pallas" is for the machine it runs on'),
    "checkpoint of other videos": ("evaluate", "{config} --checkpoint={model} --out={new}",
                                   "give the --config it was trained with"),
    "released checkpoint": ("evaluate", "--checkpoint={released} --out={new}",
                            "is a released model, and only digits can be judged; give a model"),
    "evaluation of no frames": ("evaluate", "--frames=0 --out={new}", "0 frames asked for"),
    "drift of nothing": ("evaluate", "--drift", "--drift has no videos to measure; name files"),
    "drift of a model": ("evaluate", "--drift --checkpoint={model}",
                         "--checkpoint has no place beside --drift"),
    "videos without drift": ("evaluate", "some.mp4", "unexpected argument 'some.mp4'"),
    "no input to prepare": ("prepare", "--out={new}", "--input is missing"),
    "nowhere to prepare": ("prepare", "--input={blank}", "--out is missing"),
    "no encoders": ("prepare", "--input={blank} --out={new}",
                    "--checkpoint is missing; give a released model, or --raw"),
    "no such input": ("prepare", "--input=nowhere --out={new} --raw",
                      "nowhere does not exist; give a directory or a manifest"),
    "no such records": ("prepare", "--input=codewithgpu:nowhere --out={new} --raw",
                        "nowhere holds no records of codewithgpu"),
    "nothing to inspect": ("prepare", "--inspect=nowhere", "nowhere has no metadata.json"),
    "no machine to plan for": ("plan", "{config}", "--topology is missing"),
    "unknown machine": ("plan", "{config} --topology=abacus:8", "abacus"),
    "too few prompts": ("evaluate", "--checkpoint={model} --num_prompts=0", "--num_prompts=0"),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(untrained, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(np.full((30, 50, 3), 99, np.uint8)).save(folder / "picture.png")
    (folder / "broken.png").write_bytes((folder / "picture.png").read_bytes()[:60])
    (folder / "blank.txt").write_text("\n  \n")
    (folder / "archive.zip").touch()
    (folder / "broken.py").write_text("def get_config(:\n")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text('{"_class_name": "NOVATransformer3DModel"}')
    shutil.copytree(untrained, folder / "truncated")
    largest = max((folder / "truncated" / "params").rglob("*"), key=lambda f: f.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    return {
        "config": CONFIG,
        "model": str(untrained),
        "new": str(folder / "new"),
        "picture": str(folder / "picture.png"),
        "broken_image": str(folder / "broken.png"),
        "blank": str(folder / "blank.txt"),
        "sparse_config": str(ROOT / "configs" / "own_videos.py"),
        "broken_config": str(folder / "broken.py"),
        "archive": str(folder / "archive.zip"),
        "foreign": str(folder / "foreign"),
        "truncated": str(folder / "truncated"),
        "folder": str(folder),
        "released": str(ROOT / "tests" / "golden" / "pipeline_t2v"),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def results(files, tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit status and output of every case; nothing that was there may have changed."""
    logs, folder = tmp_path_factory.mktemp("logs"), Path(files["blank"]).parent
    before = contents(folder)
    results = {}
    for command in dict.fromkeys(command for command, *_ in CASES.values()):
        names = [name for name, case in CASES.items() if case[0] == command]
        plan = [
            ([part.format(**files) for part in CASES[name][1].split()], str(logs / name))
            for name in names
        ]
        run = subprocess.run(
            [sys.executable, "-c", FORKS, f"nova_jax.{command}", json.dumps(plan)],
            capture_output=True, text=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        codes = [int(code) for code in run.stdout.split()]
        assert len(codes) == len(names), run.stderr
        for name, code in zip(names, codes, strict=True):
            results[name] = (code, (logs / name).read_text())
    assert contents(folder) == before
    assert not Path(files["new"]).exists()
    return results


@pytest.mark.parametrize("name", CASES)
def test_it_is_one_line_and_exit_code_2(results, name):
    code, output = results[name]
    assert output.startswith("error: ") and output.count("\n") == 1, output
    assert CASES[name][2] in output
    assert code == 2


def test_generate_writes_and_never_overwrites(untrained, files, tmp_path):
    """The same prompt twice: two files, the same video. A picture becomes the first frame."""
    run = subprocess.run(
        [sys.executable, "-m", "nova_jax.generate", f"--checkpoint={untrained}", "--frames=2",
         "--prompt=a red seven!", "--prompt=a red seven!", f"--image={files['picture']}", "--gif",
         f"--out={tmp_path}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    paths = run.stdout.splitlines()
    assert "image of 50x30 scaled and cropped about its center to 16x16" in run.stderr
    assert "2/2" in run.stderr  # the progress bar
    assert paths == [f"{tmp_path}/a-red-seven_seed0.gif", f"{tmp_path}/a-red-seven_seed0-2.gif"]
    assert Path(paths[0]).read_bytes() == Path(paths[1]).read_bytes()
    with Image.open(paths[0]) as gif:
        assert gif.size == (192, 192) and gif.n_frames == 2
        assert gif.convert("RGB").getpixel((5, 5)) == pytest.approx((99, 99, 99), abs=2)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(untrained, tmp_path):
    """On a real file system of 4 KB, mounted in a name space of our own."""
    inside = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"]).returncode:
        pytest.skip("needs unprivileged name spaces to mount a small file system")
    command = [sys.executable, "-m", "nova_jax.generate", f"--checkpoint={untrained}"]
    command += ["--prompt=x", "--frames=1", "--upscale=4096", f"--out={tmp_path}"]
    script = 'mount -t tmpfs -o size=4k disk "$0" && "$@"; code=$?; ls "$0"; exit $code'
    run = subprocess.run(
        [*inside, "sh", "-c", script, tmp_path, *command], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 2, run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "no space left on device" in last
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
