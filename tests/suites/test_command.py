"""`evaluate --suite` as users run it: shares that are killed and go on, full disks, reports."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_suites
from PIL import Image
from processes import can_mount, start_command

from nova_jax.suites.folder import Folder

ROOT = Path(__file__).parents[2]
RELEASED = ROOT / "tests" / "golden" / "pipeline_t2i"


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    return small_suites.write_clones(tmp_path_factory.mktemp("clones") / "clones")


@pytest.fixture(scope="module")
def evaluate(clones, tmp_path_factory):
    """Runs it on a small model in the released layout, with two AR steps."""
    folder = tmp_path_factory.mktemp("evaluate")

    def evaluate(*arguments, kill=None, suite="geneval", checkpoint=RELEASED):
        log = folder / "log"
        log.write_text("")
        process = start_command(
            "evaluate", f"--suite={suite}", f"--prompts={clones}", "--other_prompts",
            f"--checkpoint={checkpoint}", "--num_inference_steps=2", "--num_diffusion_steps=2",
            "--batch_size=4", *arguments, log=log, cache=folder / "programs", kill=kill,
        )  # fmt: skip
        process.join(600)
        assert process.exitcode is not None, log.read_text()
        return process.exitcode, log.read_text()

    return evaluate


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("speed")
    }


@pytest.fixture(scope="module")
def whole(evaluate, tmp_path_factory):
    """GenEval's small form, drawn undisturbed: 12 pictures and 3 files of metadata."""
    out = tmp_path_factory.mktemp("whole") / "out"
    code, said = evaluate(f"--out={out}")
    assert code == 0, said
    assert f"12 files are in {out}, 12 of them drawn now" in said
    assert f"evaluation/evaluate_images.py {out}/images --outfile" in said
    assert "12/12" in said and "sample/s" in said  # the bar
    return out


def test_shares_that_are_killed_at_random_and_started_again_make_the_same_bytes(
    evaluate, whole, tmp_path
):
    out, dice = tmp_path / "out", random.Random(11)
    killed = dice.randrange(3)
    for shard in range(3):
        arguments = (f"--out={out}", f"--shard={shard}/3")
        if shard == killed:
            # Before a file of the four gets its name, or while one is written.
            place = dice.choice((r"{} os.rename .*\.png$", r"{} open .*/\.unfinished-.*/\.\w+"))
            code, said = evaluate(*arguments, kill=place.format(dice.randint(1, 4)))
            assert code == -9, said
            assert len(list(out.rglob("*.png"))) < 4 * (shard + 1)
        code, said = evaluate(*arguments)
        assert code == 0, said
        assert f"4 files of shard {shard}/3 are in" in said
        left = 4 * (2 - shard)
        assert (f"{left} files of other shards are missing" in said) == bool(left)
    assert files(out) == files(whole)


def test_what_is_missing_is_listed_and_nothing_drawn(evaluate, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "images/00001/samples/00002.png").unlink()
    before = files(out)
    code, said = evaluate(f"--out={out}", "--list")
    assert code == 0
    assert said == (
        f"images/00001/samples/00002.png\n1 of 12 files of 3 prompts are missing in {out}\n"
    )
    assert files(out) == before


def test_a_second_run_in_a_folder_is_told_who_is_there(evaluate, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    with Folder.claim(out, (0, 1)):
        code, said = evaluate(f"--out={out}")
    assert code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: {out} is in use by process ")
    assert files(out) == files(whole)


def test_another_suite_or_model_in_a_folder_is_one_line(evaluate, whole, untrained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for change, said in (
        ({"suite": "dpg"}, "has results of suite geneval, not dpg"),
        (
            {"checkpoint": untrained},
            f"has results of checkpoint {RELEASED}, not {untrained}; model ",
        ),
    ):
        code, log = evaluate(f"--out={out}", **change)
        assert code == 2 and log.count("\n") == 1 and said in log, log
    assert files(out) == files(whole)


def test_a_full_disk_is_one_line_and_keeps_whole_files_alone(untrained, clones, tmp_path):
    """On a real file system with room for some of 12 pictures."""
    if shutil.which("unshare") is None or not can_mount():
        pytest.skip("needs unprivileged name spaces to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [
        sys.executable, "-m", "nova_jax.evaluate", "--suite=geneval", f"--prompts={clones}",
        "--other_prompts", f"--checkpoint={untrained}", "--batch_size=3", f"--out={disk}/out",
    ]  # fmt: skip
    script = (
        'mount -t tmpfs -o size=48k disk "$0" && "$@"; code=$?; cp -a "$0" "$0-after"; exit $code'
    )
    run = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, disk, *command],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("error: no space left on device; free some space"), run.stderr
    assert "Traceback" not in run.stderr
    after = tmp_path / "disk-after" / "out"
    pictures = list(after.rglob("*.png"))
    assert 0 < len(pictures) < 12
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.convert("RGB").size == (16, 16)
    kinds = {path.name for path in after.rglob("*") if path.is_file() and path.suffix != ".png"}
    assert kinds == {"run.json", "prompts.jsonl", "metadata.jsonl"}


def test_a_report_is_printed_and_written(evaluate, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "results.jsonl").write_text(
        "\n".join(small_suites.geneval_lines(small_suites.SIXTHS)[:-4])
    )
    done = subprocess.run(
        [sys.executable, "-m", "nova_jax.evaluate", f"--report={run}", f"--out={tmp_path}/report"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name = f"{RELEASED}, other prompts"
    assert done.stdout.startswith("Text to image\n") and f"* {name}" in done.stdout
    assert f"- {name}: no total without GenEval color_attr: 396 of 400 pictures" in done.stdout
    assert done.stdout.splitlines()[-2:] == [
        f"{tmp_path}/report/report.md",
        f"{tmp_path}/report/report.json",
    ]
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "geneval.overall" not in data["scores"][name]["geneval"]["values"]
    assert (tmp_path / "report" / "report.md").read_text().startswith("## Text to image\n")
