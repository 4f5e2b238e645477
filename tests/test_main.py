"""The command `nova`, and what a package says that is missing or too old."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import nova_jax
from nova_jax import __main__ as nova
from nova_jax import versions


def test_all_commands_are_listed_with_what_they_do(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nova"])
    nova.main()
    listed = capsys.readouterr().out
    assert "  train      Trains a model\n" in listed
    package = Path(nova_jax.__file__).parent
    commands = {path.stem for path in package.glob("*.py") if "cli.run(" in path.read_text()}
    commands |= {path.parent.name for path in package.glob("*/__main__.py")}
    assert commands - {"cli"} == set(nova.COMMANDS)
    for command in nova.COMMANDS:
        assert len(nova.summary(command)) > 10


def test_a_command_gets_its_flags():
    command = [sys.executable, "-m", "nova_jax", "plan", "--topolgy=v5e:2x2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean --topology?" in done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian", "nova has no command 'trian'; did you mean train?"),
        ("xyz", "nova has no command 'xyz'; give one of demo, prepare, train, "),
    ],
)
def test_an_unknown_command_is_one_line(command, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nova", command])
    with pytest.raises(SystemExit) as stop:
        nova.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_what_is_missing_or_too_old_is_named_with_its_remedy(monkeypatch):
    jax = importlib.metadata.version("jax")
    wanted = [
        f"jax>={jax}",
        "numpy>=999",
        "no-such-package>=1.2",
        "torch>=999; extra == 'torch'",
        "numpy>=999; python_version < '3'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    numpy = importlib.metadata.version("numpy")
    with pytest.raises(ImportError) as error:
        versions.check()
    assert str(error.value) == (
        f"nova_jax cannot run here: numpy is {numpy}, no-such-package is not installed; "
        "pip install 'numpy>=999' 'no-such-package>=1.2'"
    )
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted[:1])
    versions.check()


def test_a_clone_that_is_not_installed_is_not_checked(monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    versions.check()
