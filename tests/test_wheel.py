"""The source distribution, and the wheel built from it: all is in it, and it runs without a clone.

Where there is a network (`--network`), also in an empty environment, with what the wheel asks for
and nothing else; of the Python that PACKAGE_PYTHON names, or of this one.
"""

import email
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import serving

from nova_jax.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCE = ("nova_jax", "configs", "setup.py", "pyproject.toml", "requirements.txt")
SDIST = "import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])"
PIP = ("-m", "pip", "--disable-pip-version-check")

pytestmark = pytest.mark.slow
KEPT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}


def must(*command: object, cwd: Path) -> None:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=KEPT
    )
    assert done.returncode == 0, done.stderr


class Installed(NamedTuple):
    """The command `nova` of the wheel, and the environment in which it runs."""

    command: Path
    env: dict[str, str]

    def __call__(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        words = [self.command, *arguments]
        return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=self.env)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel that was built from a source distribution."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "source").mkdir()
    for name in (*SOURCE, "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    must(sys.executable, "-c", SDIST, folder / "sdist", cwd=folder / "source")
    shutil.rmtree(folder / "source")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--find-links=sdist")
    must(sys.executable, *PIP, "wheel", *options, "--wheel-dir=wheel", "nova_jax", cwd=folder)
    (built,) = (folder / "wheel").iterdir()
    return built


@pytest.fixture(scope="module", params=["here", pytest.param("empty", marks=pytest.mark.network)])
def nova(request, wheel, tmp_path_factory) -> Installed:
    """The wheel, installed beside what is here, or in an empty place with the app's extra."""
    place = tmp_path_factory.mktemp(request.param) / "site"
    command = place / "bin" / "nova"
    if request.param == "empty":
        must(os.environ.get("PACKAGE_PYTHON", sys.executable), "-m", "venv", place, cwd=Path("/"))
        must(place / "bin" / "python", *PIP, "install", f"{wheel}[app]", cwd=Path("/"))
        return Installed(command, KEPT)
    options = ("--no-deps", "--no-index", f"--target={place}")
    must(sys.executable, *PIP, "install", *options, wheel, cwd=Path("/"))
    return Installed(command, KEPT | {"PYTHONPATH": str(place)})


def test_the_wheel_holds_the_package_and_its_recipes(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for place, name in (("nova_jax", "nova_jax"), ("configs", "nova_jax/configs")):
        files = (path for path in (ROOT / place).rglob("*") if path.is_file())
        here = {f"{name}/{path.relative_to(ROOT / place)}" for path in files}
        assert {path for path in here if "__pycache__" not in path} <= names
    assert {name.split("/")[0] for name in names} <= {
        "nova_jax",
        wheel.name.split("-py3")[0] + ".dist-info",
    }


def test_the_wheel_says_what_it_is_for(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        about = email.message_from_bytes(archive.read(name))
    versions = {line.rpartition(":: ")[2] for line in about.get_all("Classifier")}
    assert {"3.11", "3.12", "3.13"} <= versions and about["Requires-Python"] == ">=3.11"
    extras = {"cuda", "tpu", "app", "prepare", "plots", "torch", "wandb", "dev"}
    assert extras <= set(about.get_all("Provides-Extra"))
    assert about["License-Expression"] == "Apache-2.0"


def test_an_installed_package_needs_no_clone(nova, tmp_path):
    listed = nova("--help", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines() if line[:2] == "  "] == [
        *COMMANDS
    ]

    unknown = nova("train", "--config=nope", "--workdir=nothing", cwd=tmp_path)
    assert unknown.returncode == 2
    recipes = ", ".join(sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
    assert f"there is no recipe 'nope'; give a file, or one of {recipes}" in unknown.stderr

    few = ("--config.steps=2", "--config.stop_at=1", "--config.optimizer.warmup_steps=0")
    trained = nova("train", "--config=digits_t2v:demo", "--workdir=mine", *few, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "Stopped; the same command goes on from here." in trained.stdout
    assert (tmp_path / "mine" / "checkpoints" / "1").is_dir()

    steps = ("--num_inference_steps=2", "--num_diffusion_steps=2", "--frames=2")
    made = nova("generate", "--prompt=a red seven", *steps, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    (video,) = (tmp_path / "output").iterdir()
    assert video.suffix == ".mp4" and str(video.name) in made.stdout


def test_the_app_of_an_installed_package_serves_until_it_is_interrupted(nova, tmp_path):
    said = tmp_path / "said.txt"
    command = (nova.command, "app")
    with serving.serving(command, said, cwd=tmp_path, env=nova.env) as (address, process):
        with urllib.request.urlopen(address) as page:
            assert b"NOVA" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert said.read_text().splitlines()[-1] == "interrupted"
    assert not [path for path in tmp_path.iterdir() if path != said]
