"""The wheel, built by way of the source distribution: recipes are in it, and it runs on its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ("nova_jax", "configs", "setup.py", "pyproject.toml", "requirements.txt")
SDIST = "import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])"


def run(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder in which the wheel is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "source").mkdir()
    for name in (*SOURCE, "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip = (sys.executable, "-m", "pip")
    wheel = (*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir=wheel")
    install = (*pip, "install", "--no-deps", "--no-index", "--find-links=wheel", "--target=site")
    for command, cwd in [
        ((sys.executable, "-c", SDIST, str(folder / "sdist")), folder / "source"),
        ((*wheel, "--find-links=sdist", "nova_jax"), folder),
        ((*install, "nova_jax"), folder),
    ]:
        done = run(*command, cwd=cwd)
        assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_recipes(site):
    (wheel,) = (site.parent / "wheel").iterdir()
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


@pytest.mark.slow
def test_an_installed_package_finds_its_recipes(site, tmp_path):
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(sys.executable, "-m", *arguments, cwd=tmp_path, PYTHONPATH=str(site))

    commands = run(str(site / "bin" / "nova"), cwd=tmp_path, PYTHONPATH=str(site))
    assert "nova COMMAND [--flag=value]" in commands.stdout
    unknown = command("nova_jax.train", "--config=nope", f"--workdir={tmp_path / 'x'}")
    assert unknown.returncode == 2
    listed = ", ".join(sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
    assert f"there is no recipe 'nope'; give a file, or one of {listed}" in unknown.stderr
    few = ("--config.steps=2", "--config.stop_at=1", "--config.optimizer.warmup_steps=0")
    for name, arguments in {
        "nova_jax.demo": ("--out=demo", *few),
        "nova_jax.train": ("--config=digits_t2v:demo", "--workdir=train", *few),
    }.items():
        done = command(name, *arguments)
        assert done.returncode == 0, done.stderr
        assert "Stopped; the same command goes on from here." in done.stdout
    assert (tmp_path / "demo" / "run" / "checkpoints" / "1").is_dir()
