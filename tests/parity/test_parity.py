"""Every number measured on the PyTorch release, folder by folder, and the comparison itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from nova_jax.errors import NovaError
from nova_jax.parity import compare, replay

GOLDEN = Path(__file__).parent.parent / "golden"
FOLDERS = sorted(path.parent.name for path in GOLDEN.glob("*/golden.safetensors"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_meets_the_release(folder):
    rows, missing = replay.check([GOLDEN / folder])
    assert not missing
    assert len(rows) > 500 or not (GOLDEN / folder / "transformer").exists() or "pipeline" in folder
    assert not [f"{r.array}: {r.relative_error:.1e}" for r in rows if r.verdict != "ok"]


def test_an_error_past_the_tolerance_fails():
    wanted = {"a.latents": np.array([1.0, -2.0]), "a.in.order": np.zeros(3), "b": np.array(4.0)}
    got = {"a.latents": np.array([1.0, -2.0005]), "b": np.array(4.0)}
    rows, missing = compare.compare("f", wanted, got, {"b": 1e-5})
    assert [(r.array, r.verdict) for r in rows] == [("a.latents", "FAIL"), ("b", "ok")]
    assert rows[0].relative_error == pytest.approx(2.5e-4)
    assert not missing
    rows, _ = compare.compare("f", wanted, got, {"a.latents": 1e-3})
    assert rows[0].verdict == "ok"


def test_not_a_number_fails():
    rows, _ = compare.compare("f", {"a": np.array([1.0])}, {"a": np.array([np.nan])}, {})
    assert rows[0].verdict == "FAIL"


def test_numbers_that_are_not_finite_are_null_in_json():
    rows, _ = compare.compare("f", {"a": np.array([1.0])}, {"a": np.array([np.nan])}, {})
    (row,) = json.loads(compare.json_table(rows, ["b"]), parse_constant=pytest.fail)["rows"]
    assert row["relative_error"] is None and row["verdict"] == "FAIL"


def test_an_array_without_counterpart_is_listed():
    _, missing = compare.compare("f", {"gen.first.unheard_of": np.zeros(2)}, {}, {})
    assert missing == ["gen.first.unheard_of"]


def test_the_worst_of_arrays_that_differ_in_numbers_is_shown():
    names = ["train.act.blocks.0", "train.act.blocks.11", "s.grad.a.weight", "s.grad.b.bias"]
    wanted = {name: np.array([1.0]) for name in names}
    errors = (1e-3, 2e-3, np.nan, 1e-3)
    got = {name: np.array([1.0 + error]) for name, error in zip(names, errors, strict=True)}
    rows, _ = compare.compare("f", wanted, got, {})
    assert [row.array for row in compare.worst(rows)] == ["s.grad.a.weight", "train.act.blocks.11"]
    table = compare.format_table(rows, [], compare.worst(rows))
    assert "blocks.11" in table
    assert "blocks.0" not in table
    assert "4 arrays compared, 4 past" in table


def test_half_types_are_measured_and_not_judged():
    rows, missing = replay.check([GOLDEN / "phi"], dtype="bfloat16")
    assert not missing
    assert all(row.verdict == "ok" and row.relative_error > 1e-4 for row in rows)


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "case"
    shutil.copytree(GOLDEN / "t2i_ddpm", copy)
    return copy


def test_weights_that_do_not_fit_are_listed_at_once(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    del tensors["mask_embed.bos_token"]
    tensors["mask_embed.mask_token"] = np.zeros((1, 32), np.float16)
    tensors["extra.weight"] = np.zeros(3, np.float16)
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(NovaError) as error:
        replay.check_folder(folder)
    for part in ("missing mask_embed.bos_token", "unknown extra.weight", "mask_token has shape"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("case.json", "case.json is missing"),
        ("golden.safetensors", "golden.safetensors is missing"),
        ("transformer/config.json", "config.json is missing"),
        ("transformer/diffusion_pytorch_model.safetensors", "holds no weights"),
    ],
)
def test_missing_files_are_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(NovaError, match=message):
        replay.check_folder(folder)


def test_truncated_weights_are_named(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(NovaError, match="is damaged"):
        replay.check_folder(folder)


def test_unknown_argument_is_named(folder):
    case = json.loads((folder / "case.json").read_text())
    case["generate"]["gen_t2i"]["guidance_scael"] = 3
    (folder / "case.json").write_text(json.dumps(case))
    with pytest.raises(NovaError, match="'guidance_scael'"):
        replay.check_folder(folder)
