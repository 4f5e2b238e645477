"""The notebooks are run from top to bottom, with small settings; they are kept without outputs."""

import json
import os
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
#: In place of what the cell of settings says.
SMALL = {
    "generate": dict(FRAMES=2, OPTIONS=dict(num_inference_steps=2, num_diffusion_steps=2)),
    "finetune": dict(STEPS=2),
    "parity": dict(RECORDINGS=[str(ROOT / "tests" / "golden" / n) for n in ("phi", "vae_kl")]),
}
#: What the last of the outputs are, or end in.
MADE = {
    "generate": ["output/a-red-seven-moves-slowly-to-the-left.mp4"],
    "finetune": ["tuned/model/config.json", "saved/README.md"],
    "parity": [],
}


def cells(name: str) -> list[dict]:
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == SMALL.keys()


@pytest.mark.parametrize("name", SMALL)
def test_notebooks_are_short_and_without_outputs(name):
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert sum(len(cell["source"]) for cell in cells(name)) <= 140
    (settings,) = (c for c in code if "parameters" in c["metadata"].get("tags", ()))
    for setting in SMALL[name]:
        assert setting in "".join(settings["source"])


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    reason = "runs notebooks: pip install 'nova_jax[notebooks]'"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    # One device, as on most machines; and what earlier runs have compiled.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    tags = [cell.metadata.get("tags", ()) for cell in notebook.cells]
    settings = "\n".join(f"{key} = {value!r}" for key, value in SMALL[name].items())
    after = 1 + next(i for i, tag in enumerate(tags) if "parameters" in tag)
    notebook.cells.insert(after, nbformat.v4.new_code_cell(settings))
    client = nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    for made in MADE[name]:
        assert (tmp_path / made).is_file()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in shown)
    pictures = [output for output in shown if "image/gif" in output.get("data", {})]
    assert len(pictures) == {"generate": 3, "finetune": 1, "parity": 0}[name]
    if name == "parity":
        assert text.count("0 past their tolerance, 0 not compared") == 2
