"""The command that scores a digits model, whole: the shipped model, longer than its training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from nova_jax.pipeline import NovaPipeline

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_long_videos_are_scored_frame_by_frame(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "nova_jax.evaluate", "--num_prompts=4", "--frames=6",
         f"--out={tmp_path}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "path and speed on the first 4, as long as training's clips" in run.stdout
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["fingerprint"] == NovaPipeline.from_checkpoint().fingerprint
    seen = [answer["seen"]["digits"] for answer in report["answers"]]
    asked = [answer["asked"]["digit"] for answer in report["answers"]]
    assert [len(digits) for digits in seen] == [6] * 4
    right = [sum(map(int.__eq__, frame, asked)) for frame in zip(*seen, strict=True)]
    counted = report["by_frame"]["all"]["digit"]
    assert [score["right"] for score in counted] == right
    every = sum(set(digits) == {digit} for digits, digit in zip(seen, asked, strict=True))
    assert report["scores"]["all"]["digit in every frame"]["right"] == every
    assert report["judges_on_real_digits"]["scores"]["all"]["digit in every frame"]["rate"] > 0.95
    for name in ("evaluation.png", "evaluation_frames.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300
