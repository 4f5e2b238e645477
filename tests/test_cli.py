"""Requests that cannot be met: one line that names the thing and the remedy, exit code 2, no trace.

Starting Python and JAX takes seconds, so one process imports what commands do and forks for each
case.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_suites
from PIL import Image

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT / 'configs' / 'digits_t2v.py'}"

# Runs commands as `python -m` does, each in a fork of its own; what they import is there already.
FORKS = """
import json, os, runpy, sys, traceback
import nova_jax.checkpoints.conversion, nova_jax.data.preview, nova_jax.digits.judges
import nova_jax.export, nova_jax.parity.replay, nova_jax.plan.report, nova_jax.prepare.inspection
import nova_jax.prepare.preparation, nova_jax.training.loop
for command, arguments, log in json.loads(sys.argv[1]):
    if not os.fork():
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.argv = [command, *arguments]
        try:
            runpy.run_module("nova_jax." + command, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""

# name: (command, arguments, what the line must say). {names} are files of the fixture below.
CASES = {
    "unknown config key": ("train", "{config} --workdir={new} --config.optimizer.momentum=1",
                           "--config.optimizer.momentum=1: no such key"),
    "unknown section of the config": (
        "train", "--config={sparse_config} --workdir={new} --config.logging.every=1",
        "--config.logging.every=1: no such key"),
    "misspelled config key": ("train", "--config=digits_t2v --config.model.pach_size=3",
                              "no such key; did you mean config.model.patch_size?"),
    "unknown key of a section": ("demo", "--config.model.nope=3 --out={new}",
                                 "no such key; config.model has diffusion_head, frames, "),
    "key of an unknown section": ("plan", "{config} --config.nope.x=1 --topology=cpu:1",
                                  "--config.nope.x=1: no such key; config has checkpoint, codec"),
    "key of a value": ("demo", "--config.model.frames.x=3", "frames is a value without keys"),
    "key past the end of a list": (
        "plan", "--config={sparse_config} --config.dataset.sources[4].path=x",
        "config.dataset.sources has 0"),
    "key that the recipe leaves open": (
        "plan", "--config={sparse_config} --config.samples.every=9", "has None there; change"),
    "text for a whole number": ("demo", "--config.steps=abc", "it must be a whole number"),
    "text for a number": ("train", "{config} --config.optimizer.learning_rate=fast",
                          "learning_rate=fast: it must be a number"),
    "text for a switch": ("train", "{config} --config.model.rotary=maybe", "must be true or false"),
    "a number for a section": ("plan", "{config} --config.model=3", "must be changed key by key"),
    "negative steps": ("train", "{config} --workdir={new} --config.steps=-5",
                       "config.steps is -5; it must be at least 1"),
    "a key before its recipe": ("train", "--config.steps=3", "'config.steps'; give --config first"),
    "two recipes": ("train", "{config} {config}", "--config is given 2 times"),
    "unknown recipe": ("train", "--config=digit_t2v --workdir={new}",
                       "'digit_t2v'; did you mean digits_t2v? There are digits_t2i, digits_t2v, "),
    "unknown variant": ("plan", "--config=t2i:nope", "recipe t2i:nope cannot be read"),
    "recipe of another kind": ("train", "--config={blank}", "KeyError: 'get_config'"),
    "flag without a value": ("train", "--config --workdir={new}", "--config has no value; write"),
    "flag that is empty": ("generate", "--prompt=x --image=", "--image is empty; give it a value"),
    "workdir that is a model": ("train", "{config} --workdir={model}",
                                "is a model directory, not a run's"),
    "config value of a wrong type": ("train", "{config} --workdir={new} --config.steps=many",
                                     "--config.steps=many"),
    "config value of a wrong kind": ("train", "{config} --workdir={new} --config.dataset.size=7",
                                     "dataset.size"),
    "image not divisible by the patch": (
        "train", "{config} --workdir={new} --config.model.patch_size=5", "patch"),
    "heads that do not divide the width": (
        "train", "{config} --workdir={new} --config.model.spatial_decoder=vit_d2w100", "100"),
    "missing config": ("train", "--config=nowhere.py --workdir={new}", "nowhere.py"),
    "recipe with a long name": ("train", f"--config={'x' * 300} --workdir={{new}}",
                                "there is no recipe"),
    "broken config": ("train", "--config={broken_config} --workdir={new}", "cannot be read"),
    "no config": ("train", "--workdir={new}", "--config is missing"),
    "workdir that is a file": ("train", "{config} --workdir={broken_image}", "broken.png"),
    "unknown flag": ("generate", "--promt=x",
                     "Unknown command line flag 'promt'; did you mean --prompt?"),
    "flag of a wrong type": ("generate", "--frames=many", "--frames is 'many'; it must be int"),
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
    "no frames": ("generate", "--checkpoint={model} --prompt=x --frames=0 --out={new}",
                  "--frames is 0; it must be at least 1"),
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
                            "--guidance_renorm is 3; it must be at least 0 and at most 1"),
    "guidance that is no number": ("generate", "--prompt=x --guidance_scale=nan",
                                   "--guidance_scale is nan; it must be finite"),
    "motion without end": ("generate", "--prompt=x --motion_flow=inf", "--motion_flow is inf"),
    "seed beyond 32 bits": ("generate", "--prompt=x --seed=4294967296",
                            "--seed is 4294967296; it must be at least 0 and at most 4294967295"),
    "seed beyond 64 bits": ("generate", "--prompt=x --seed=18446744073709551616",
                            "--seed is 18446744073709551616"),
    "half a seed": ("generate", "--prompt=x --seed=1.5", "--seed is 1.5; it must be int"),
    "rate beyond clocks": ("generate", "--prompt=x --fps=1e9",
                           "--fps is 1000000000.0; it must be at least 0.1 and at most 1000"),
    "rate that is no number": ("generate", "--prompt=x --fps=nan", "--fps is nan"),
    "rate beyond the clock of GIFs": (
        "generate", "--checkpoint={model} --prompt=x --gif --fps=120", "a GIF has at most 100"),
    "too large a video": ("generate", "--prompt=x --upscale=100000", "--upscale is 100000"),
    "unknown type": ("generate", "--prompt=x --dtype=float17", "--dtype is 'float17'; it must be"),
    "unknown weights": ("generate", "--prompt=x --weights=xx", "--weights=xx"),
    "prompt that is no text": ("generate", "--checkpoint={model} --prompt=on\udce9 --out={new}",
                               "is no text; write it in UTF-8"),
    "export of a prompt": ("generate", "--export={new}.zip --prompt=x",
                           "--prompt has no place in an export"),
    "export of a rewriter": ("generate", "--export={new}.zip --rewrite=Qwen/Qwen2.5-7B-Instruct",
                             "--rewrite has no place in an export"),
    "rewriter and rewritten prompts": (
        "generate", "--prompt=x --rewrite={folder} --rewritten={blank} --out={new}",
        "--rewrite and --rewritten are given; give one of them"),
    "seed of no rewriter": ("generate", "--prompt=x --rewrite_seed=1 --out={new}",
                            "--rewrite_seed is of --rewrite, which is not given"),
    "rewriter that is not there": ("generate", "--prompt=x --rewrite={new} --out={new}",
                                   "there is no directory"),
    "rewritten prompts that are none": ("generate", "--prompt=x --rewritten={blank} --out={new}",
                                        "blank.txt is no JSON"),
    "prompt without other words": ("generate", "--prompt=x --rewritten={said} --out={new}",
                                   "no other words for 1 of 1 prompts, the first is 'x'"),
    "export to a file that exists": ("generate", "--checkpoint=nowhere --export={archive}",
                                     "archive.zip exists already; choose another name"),
    "export to nowhere": ("generate", "--export={blank}/x.zip", "blank.txt"),
    "export by the kernel": ("generate", "--checkpoint={model} --export={new}.zip --sampler=pallas",
                             'sampler "pallas" is for the machine it runs on'),
    "checkpoint of other videos": ("evaluate", "{config} --checkpoint={model} --out={new}",
                                   "give the --config it was trained with"),
    "released checkpoint": ("evaluate", "--checkpoint={released} --out={new}",
                            "is a released model, and only digits can be judged; give a model"),
    "evaluation of no frames": ("evaluate", "--frames=0 --out={new}",
                             "--frames is 0; it must be at least 1"),
    "drift of nothing": ("evaluate", "--drift", "--drift has no videos to measure; name files"),
    "drift of a model": ("evaluate", "--drift --checkpoint={model}",
                         "--checkpoint has no place beside --drift"),
    "drift of a suite": ("evaluate", "--drift --suite=geneval some.mp4",
                         "--suite has no place beside --drift"),
    "suite without prompts": ("evaluate", "--suite=geneval --out={new}",
                              "--prompts is missing; give a clone of github.com/djghosh13/geneval"),
    "suite in a folder without prompts": ("evaluate", "--suite=dpg --prompts={videos} --out={new}",
                                          "has no dpg_bench/prompts/*.txt; --prompts is a clone"),
    "prompts of another version": (
        "evaluate", "--suite=geneval --prompts={clones} --out={new}",
        "is of another version: 3 prompts with SHA-256"),
    "prompts of no suite": ("evaluate", "--prompts={clones} --out={new}",
                            "--prompts is for suites; name one with --suite"),
    "preset of no suite": ("evaluate", "--preset=paper --out={new}", "--preset is for suites"),
    "unknown suite": ("evaluate", "--suite=imagenet --out={new}", "should be one of <geneval|"),
    "unknown preset": ("evaluate", "--suite=dpg --preset=best", "should be one of <paper|release>"),
    "unknown part of a suite": (
        "evaluate", "--suite=vbench --prompts={clones} --parts=beauty --out={new}",
        "--parts: VBench has no 'beauty', but subject_consistency, "),
    "share of a suite": (
        "evaluate", "--suite=dpg --prompts={clones} --other_prompts --shard=3/3 --out={new}",
        "--shard=3/3 is not i/n with i from 0 to n - 1"),
    "frames of pictures": ("evaluate", "--suite=dpg --prompts={clones} --frames=3 --out={new}",
                           "--frames has no place with DPG-Bench, which is of pictures"),
    "digits of a suite": ("evaluate", "--suite=dpg --num_prompts=3 --out={new}",
                          "--num_prompts has no place beside --suite"),
    "suite of a model that is none": (
        "evaluate", "--suite=dpg --prompts={clones} --other_prompts --checkpoint={blank} "
        "--out={new}", "blank.txt"),
    "frames of a suite that the model cannot make": (
        "evaluate", "--suite=vbench --prompts={clones} --other_prompts --checkpoint={released} "
        "--out={new}", "VBench is of videos, and"),
    "report of nothing": ("evaluate", "--report={folder}/nothing --out={new}",
                          "nothing does not exist; check the path of the results"),
    "report of what is no result": ("evaluate", "--report={picture} --out={new}",
                                    "is or has no result of a scorer of geneval, "),
    "report of a model": ("evaluate", "--report={blank} --checkpoint={model} --out={new}",
                          "--checkpoint has no place beside --report"),
    "videos without drift": ("evaluate", "some.mp4", "unexpected argument 'some.mp4'"),
    "no input to prepare": ("prepare", "--out={new}", "--input is missing"),
    "nowhere to prepare": ("prepare", "--input={blank}", "--out is missing"),
    "no encoders": ("prepare", "--input={blank} --out={new}",
                    "--checkpoint is missing; give a released model, or --raw"),
    "no such input": ("prepare", "--input=nowhere --out={new} --raw",
                      "nowhere does not exist; give a directory or a manifest"),
    "no such records": ("prepare", "--input=codewithgpu:nowhere --out={new} --raw",
                        "nowhere holds no records of codewithgpu"),
    "input with a long name": ("prepare", f"--input={'x' * 300} --out={{new}} --raw",
                               "does not exist; give a directory or a manifest"),
    "nothing to inspect": ("prepare", "--inspect=nowhere", "nowhere has no metadata.json"),
    "no machine to plan for": ("plan", "{config}", "--topology is missing"),
    "unknown machine": ("plan", "{config} --topology=abacus:8", "abacus"),
    "records among the videos": ("prepare", "--input={videos} --out={videos} --raw",
                                 "overlap; choose another --out"),
    "records in a folder of videos": ("prepare", "--input={videos} --out={videos}/new --raw",
                                      "overlap; choose another --out"),
    "records around the videos": ("prepare", "--input={videos} --out={folder} --raw",
                                  "overlap; choose another --out"),
    "records beside a manifest": ("prepare", "--input={blank} --out={folder} --raw",
                                  "overlap; choose another --out"),
    "records among records": ("prepare", "--input=codewithgpu:{videos} --out={videos}/new --raw",
                              "overlap; choose another --out"),
    # Nothing that a command works from is there: where it writes is what it looks at first.
    "videos to a file": ("generate", "--checkpoint=nowhere --prompt=x --out={blank}",
                         "blank.txt cannot be written to"),
    "videos below a file": ("generate", "--checkpoint=nowhere --prompt=x --out={blank}/new",
                            "blank.txt: Not a directory); choose another place"),
    "videos to no name": ("generate", "--checkpoint=nowhere --prompt=x --out=", "--out is empty"),
    "videos to a bucket": ("generate", "--checkpoint=nowhere --prompt=x --out=gs://bucket/x",
                           "gs://bucket/x is no local directory"),
    "export over a directory": ("generate", "--checkpoint=nowhere --export={blank}/new/x.zip",
                                "Not a directory); choose another place"),
    "scores to a file": ("evaluate", "--checkpoint=nowhere --out={blank}", "cannot be written to"),
    "records to a file": ("prepare", "--input=nowhere --raw --out={blank}", "cannot be written to"),
    "demo to a file": ("demo", "--out={blank}", "blank.txt cannot be written to"),
    "preview to a file": ("train", "{config} --preview --workdir={blank}", "cannot be written to"),
    "run below a file": ("train", "{config} --workdir={blank}/new", "blank.txt: Not a directory"),
    "conversion over a file": ("convert", "nowhere {blank}", "blank.txt exists already"),
    "conversion below a file": ("convert", "nowhere {blank}/new", "blank.txt: Not a directory"),
    "conversion to no disk": ("convert", "nowhere /proc/new", "/proc/new cannot be written to"),
    "table over a file": ("parity", "nowhere --json={blank}", "blank.txt exists already"),
    "table below a file": ("parity", "nowhere --json={blank}/new", "cannot be written to"),
    "part of a released model": ("evaluate", "--checkpoint={released}/vae",
                                 "of a part of a released model; give the directory that vae/"),
    "incomplete released model": ("generate", "--checkpoint={incomplete} --prompt=x --out={new}",
                                  "vae/config.json is missing; is this a model in the released "
                                  "layout? It has model_index.json, transformer/, scheduler/"),
    "directory above a model": ("generate", "--checkpoint={above} --prompt=x --out={new}",
                                "did you mean "),
    "nothing to convert": ("convert", "",
                           "0 arguments given; usage: python -m nova_jax.convert IN OUT ["),
    "no place to convert to": ("convert", "{model}", "1 arguments given; usage: python -m"),
    "too much to convert": ("convert", "a b c", "3 arguments given; usage: python -m"),
    "nothing to compare": ("parity", "", "usage: python -m nova_jax.parity DIR ... [--flag=value]"),
    "inspection of a file": ("prepare", "--inspect={blank}", "blank.txt has no metadata.json"),
    "more devices than can be planned for": (
        "plan", "{config} --topology=cpu:100000",
        "has 100,000 devices; plans are made for 1,024 at most"),
    "more samples than a plan counts": (
        "plan", "{config} --topology=cpu:8 --config.data.batch_size=1000000000",
        "data.batch_size is 1,000,000,000; plans are made for 1,048,576 at most"),
    "longer than memory": (
        "generate", "--checkpoint={model} --prompt=x --frames=1000000000 --out={new}",
        "; lower max_latent_length (num_frames)"),
    "larger than memory": (
        "generate", "--checkpoint={model} --prompt=x --size=99968x99968 --out={new}", "or size"),
    "a model larger than memory": (
        "train", "{config} --workdir={new} --config.model.temporal_encoder=vit_d96w65536 "
        "--config.model.spatial_decoder=vit_d96w65536",
        "lower config.model's widths and depths, or raise config.mesh.fsdp"),
    "a batch larger than memory": (
        "train", "{config} --workdir={new} --config.data.batch_size=2000000000",
        "lower config.data.batch_size"),
    "too few prompts": ("evaluate", "--checkpoint={model} --num_prompts=0",
                        "--num_prompts is 0; it must be at least 2"),
    "seeds beyond 32 bits": ("evaluate", "--checkpoint={model} --seed=4294967295", "--seed is 429"),
    "a video that is none": (
        "generate", "--checkpoint={model} --prompt=x --out={new} --video={blank}", "is no video"),
    "a video that is not there": (
        "generate", "--checkpoint={model} --prompt=x --out={new} --video={new}.mp4", "not exist"),
    "a mask and nothing to paint in": (
        "generate", "--checkpoint={model} --prompt=x --out={new} --mask={picture}",
        "nothing to paint in; give an image or a video"),
    "margins that are none": (
        "generate", "--checkpoint={model} --prompt=x --image={picture} --outpaint=1,2 --out={new}",
        "give four numbers of pixels"),
    "margins that are no numbers": (
        "generate", "--checkpoint={model} --prompt=x --image={picture} --outpaint=a --out={new}",
        "--outpaint=a is not TOP,RIGHT,BOTTOM,LEFT"),
    "a schedule out of order": (
        "generate", "--checkpoint={model} --prompt_schedule=0:a;3:b;2:c --out={new}",
        "frame 2 after frame 3"),
    "a schedule without a beginning": (
        "generate", "--checkpoint={model} --prompt_schedule=1:a --out={new}", "begin with 0:"),
    "a schedule beyond the end": (
        "generate", "--checkpoint={model} --prompt_schedule=0:a;9:b --frames=3 --out={new}",
        "has frame 9; latent frames 0 to 2 are drawn"),
    "a schedule that is none": (
        "generate", "--checkpoint={model} --prompt_schedule=x --out={new}", "write it as"),
    "a window of less than two frames": (
        "generate", "--checkpoint={model} --prompt=x --window=1 --out={new}", "--window is 1"),
    "a session of nothing": (
        "generate", "--checkpoint={model} --resume_session={blank} --out={new}",
        "is no saved session"),
    "a session in batches": (
        "generate", "--checkpoint={model} --stream --prompt=x --batch_size=2 --out={new}",
        "--batch_size has no place in a session"),
    "a session stopped before it begins": (
        "generate", "--checkpoint={model} --prompt=x --image={picture} --frames=3 --stop_after=1 "
        "--out={new}", "--stop_after=1 is in what is given, 1 latent frames"),
    "a GIF that grows": (
        "generate", "--checkpoint={model} --prompt=x --stream --gif --out={new}",
        "--gif has no place beside --stream"),
    "a schedule that begins with a seed": (
        "generate", "--checkpoint={model} --prompt_schedule=0@7:a --out={new}",
        "begins with a seed; give it as --seed=7"),
    "more samples than rows": (
        "generate", "--checkpoint={model} --prompt=x --num_images_per_prompt=3 --rows=2 "
        "--out={new}", "the session has 3 samples, and 2 of the pool's 2 rows are free"),
    "an app at no port": ("app", "--checkpoint={model} --port=0", "--port is 0"),
    "an app with arguments": ("app", "{model}", "unexpected argument"),
    "a session over another file": (
        "generate", "--checkpoint={model} --prompt=x --save_session={blank} --out={new}",
        "exists already"),
    "a plan for nothing": ("plan", "{config} --topology=cpu:8 --generate=0", "--generate is 0"),
    "less than no process": ("train", "{config} --workdir={new} --process_id=-1",
                             "--process_id is -1"),
    "config value that is no number": (
        "train", "{config} --workdir={new} --config.sampling.guidance.scale=nan",
        "config.sampling.guidance.scale is nan; it must be finite"),
    "config value without end": (
        "train", "{config} --workdir={new} --config.optimizer.learning_rate=inf",
        "config.optimizer.learning_rate is inf; it must be finite"),
    "negative seed": ("train", "{config} --workdir={new} --config.seed=-1",
                      "config.seed is -1; it must be at least 0"),
    "seed of a config beyond 32 bits": (
        "train", "{config} --workdir={new} --config.data.seed=4294967296",
        "config.data.seed is 4294967296"),
    "rate of a config": ("train", "{config} --workdir={new} --config.dataset.fps=1e9",
                         "config.dataset.fps is 1000000000.0; it must be at least 0.1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(untrained, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(np.full((30, 50, 3), 99, np.uint8)).save(folder / "picture.png")
    (folder / "broken.png").write_bytes((folder / "picture.png").read_bytes()[:60])
    (folder / "blank.txt").write_text("\n  \n")
    (folder / "archive.zip").touch()
    (folder / "videos").mkdir()
    (folder / "said.jsonl").write_text('{"prompt": "y", "rewritten": "a yellow y"}')
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
        "said": str(folder / "said.jsonl"),
        "blank": str(folder / "blank.txt"),
        "sparse_config": str(ROOT / "configs" / "own_videos.py"),
        "broken_config": str(folder / "broken.py"),
        "archive": str(folder / "archive.zip"),
        "foreign": str(folder / "foreign"),
        "truncated": str(folder / "truncated"),
        "folder": str(folder),
        "videos": str(folder / "videos"),
        "clones": str(small_suites.write_clones(folder / "clones")),
        "above": str(ROOT / "nova_jax" / "assets"),
        "incomplete": str(ROOT / "tests" / "golden" / "t2i_ddpm"),
        "released": str(ROOT / "tests" / "golden" / "pipeline_t2v"),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def results(files, tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit status and output of every case; nothing that was there may have changed."""
    logs, folder = tmp_path_factory.mktemp("logs"), Path(files["blank"]).parent
    before = contents(folder)
    plan = [
        (command, [part.format(**files) for part in arguments.split()], str(logs / name))
        for name, (command, arguments, _) in CASES.items()
    ]
    plan.append(("demo", ["--help"], str(logs / "--help")))
    run = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps(plan)],
        capture_output=True, text=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    codes = [int(code) for code in run.stdout.split()]
    assert len(codes) == len(plan), run.stderr
    names = (*CASES, "--help")
    results = {
        name: (code, (logs / name).read_text()) for name, code in zip(names, codes, strict=True)
    }
    assert contents(folder) == before
    assert not Path(files["new"]).exists()
    return results


@pytest.mark.parametrize("name", CASES)
def test_it_is_one_line_and_exit_code_2(results, name):
    code, output = results[name]
    # What is done to a picture is said when it is read.
    output = re.sub(r"^WARNING:nova_jax.beginning:.*\n", "", output)
    assert output.startswith("error: ") and output.count("\n") == 1, output
    assert CASES[name][2] in output
    assert code == 2


def test_help_lists_the_flags_of_a_command_and_is_no_failure(results):
    code, output = results["--help"]
    assert code == 0
    assert "--config: Recipe, digits_t2v:demo by default" in output and "--out: " in output


def test_flags_that_are_numbers_have_ranges():
    """absl's own take nan and inf for numbers."""
    for path in (ROOT / "nova_jax").rglob("*.py"):
        assert not re.search(r"DEFINE_(integer|float)", path.read_text()), path


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


def test_a_full_disk_is_one_line_and_keeps_whole_files_alone(untrained, tmp_path):
    """On a real file system with room for one of two videos, mounted in a name space of our own."""
    inside = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"]).returncode:
        pytest.skip("needs unprivileged name spaces to mount a small file system")
    command = [sys.executable, "-m", "nova_jax.generate", f"--checkpoint={untrained}"]
    command += ["--prompt=x", "--prompt=y", "--batch_size=1", "--frames=1", "--upscale=4096"]
    command += [f"--out={tmp_path / 'disk'}"]
    (tmp_path / "disk").mkdir()
    script = (
        'mount -t tmpfs -o size=80k disk "$0" && "$@"; code=$?; cp -a "$0" "$0-after"; exit $code'
    )
    run = subprocess.run(
        [*inside, "sh", "-c", script, tmp_path / "disk", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 2, run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "no space left on device" in last
    assert "Traceback" not in run.stderr
    assert run.stdout == f"{tmp_path}/disk/x_seed0.png\n"
    after = tmp_path / "disk-after"
    assert [path.name for path in after.iterdir()] == ["x_seed0.png"]
    with Image.open(after / "x_seed0.png") as picture:
        assert picture.convert("RGB").size == (4096, 4096)
