"""The command that prepares data, started as users do."""

import subprocess
import sys

import pytest

PROGRAM = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None  # as if it were not installed
runpy.run_module("nova_jax.prepare", run_name="__main__")
"""


@pytest.mark.parametrize("package", ["av", "pyarrow", "scenedetect"])
def test_a_missing_package_is_named_before_any_work(package, tmp_path):
    options = ["--raw", f"--input={tmp_path}", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-c", PROGRAM, package, *options]
    result = subprocess.run(command, capture_output=True, text=True)
    line = f"error: preparing data needs {package}: pip install 'nova_jax[prepare]'\n"
    assert (result.returncode, result.stderr) == (2, line)
    assert not (tmp_path / "out").exists()
