"""A run whose work directory is a bucket, on an emulator of Google Cloud Storage."""

import copy
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
from processes import free_port, write_recipe

ROOT = Path(__file__).parents[2]

# What happens to the bucket between two processes of the run.
DAMAGE = """
from etils.epath import Path
checkpoints = Path("gs://bucket/run/checkpoints")
print(sorted(path.name for path in checkpoints.iterdir()))
file = max((checkpoints / "3" / "params" / "d").iterdir(), key=lambda f: f.stat().length)
content = bytearray(file.read_bytes())
content[len(content) // 2] ^= 1
file.write_bytes(bytes(content))
"""
LOOK = """
import json
from etils.epath import Path
from nova_jax.checkpoints.open import open_checkpoint
run = Path("gs://bucket/run")
print(sorted(path.name for path in (run / "checkpoints").iterdir()))
lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
print([line["step"] for line in lines if "train_video/loss" in line])
found = [open_checkpoint(f"gs://bucket/run{model}") for model in ("/model", "")]
assert all(checkpoint.load_transformer() for checkpoint in found)
print(*(checkpoint.step for checkpoint in found))
"""


@pytest.fixture
def bucket(tmp_path):
    """The environment in which gs://bucket is there."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    if not (server := shutil.which("fake-gcs-server")):
        pytest.skip("fake-gcs-server is not installed")
    (tmp_path / "data" / "bucket").mkdir(parents=True)
    port = free_port()
    place = f"http://localhost:{port}"
    process = subprocess.Popen(
        [server, "-scheme=http", f"-port={port}", "-backend=memory", "-log-level=error",
         f"-external-url={place}", f"-public-host=localhost:{port}", f"-data={tmp_path / 'data'}"]
    )  # fmt: skip
    time.sleep(2)
    yield os.environ | {
        "STORAGE_EMULATOR_HOST": place,
        "TENSORSTORE_GCS_HTTP_URL": place,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_and_survives_damage(bucket, tmp_path):
    run = copy.deepcopy(small.RUN) | {"steps": 4, "samples": {"every": None}}
    run["data"]["video_fraction"] = 1.0
    run |= {"checkpoint": {"every": 1}, "logging": {"every": 1, "tensorboard": False}}
    recipe = write_recipe(run | {"stop_at": 3}, tmp_path / "run.py")

    def python(*arguments):
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=bucket, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    train = ["-m", "nova_jax.train", f"--config={recipe}", "--workdir=gs://bucket/run"]
    assert "3 of 4 steps done" in python(*train).stdout
    assert python("-c", DAMAGE).stdout == "['2', '3']\n"
    write_recipe(run, recipe)
    again = python(*train)
    assert "is damaged or cut short" in again.stderr and "4 of 4 steps done" in again.stdout
    checkpoints, metrics, steps = python("-c", LOOK).stdout.splitlines()
    assert checkpoints == "['3', '3.damaged', '4']"
    assert metrics == "[1, 2, 3, 4]"
    assert steps == "4 4"
