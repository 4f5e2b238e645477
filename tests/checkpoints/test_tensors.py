"""Files of tensors: whole, sharded, torch's; damaged ones and those that would run code."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from nova_jax.checkpoints.tensors import open_tensors, write_safetensors
from nova_jax.errors import NovaError

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.arange(4).astype(ml_dtypes.bfloat16),
    "b": np.full((2, 2), 0.5, np.float16),
    "count": np.array(7, np.int64),
}


def assert_equal(tensors, expected=TENSORS):
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        assert tensors.shapes[name] == value.shape
        assert tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(tensors[name], value)


def test_one_file(tmp_path):
    write_safetensors(tmp_path, "model", TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_equal(open_tensors(tmp_path, ["other", "model"]))


def test_shards_and_their_index(tmp_path):
    write_safetensors(tmp_path, "model", TENSORS.items(), shard_bytes=40)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / names[2]).read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in TENSORS.values())
    assert_equal(open_tensors(tmp_path, ["model"]))
    (tmp_path / names[1]).unlink()
    with pytest.raises(NovaError, match="model-00002-of-00002.safetensors, which are missing"):
        open_tensors(tmp_path, ["model"])


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(NovaError, match=r"holds no weights; looked for model.safetensors"):
        open_tensors(tmp_path, ["model"])
    write_safetensors(tmp_path, "model", TENSORS.items())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(NovaError, match=r"model.safetensors is damaged"):
        open_tensors(tmp_path, ["model"])
    file.unlink()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(NovaError, match=r"index.json is damaged"):
        open_tensors(tmp_path, ["model"])


@pytest.mark.torch
def test_what_torch_saves(tmp_path):
    torch = pytest.importorskip("torch")
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = OrderedDict(
        view=whole[1:3, ::2],
        turned=whole.T,
        half=whole.to(torch.bfloat16),
        parameter=torch.nn.Parameter(whole.half()),
        empty=whole[:0],
    )
    torch.save(state, tmp_path / "model.bin")
    values = {name: value.detach().float().numpy() for name, value in state.items()}
    types = {"half": ml_dtypes.bfloat16, "parameter": np.float16}
    expected = {name: v.astype(types.get(name, np.float32)) for name, v in values.items()}
    assert_equal(open_tensors(tmp_path, ["model"]), expected)


class Evil:
    def __reduce__(self):
        return os.system, ("echo this ran > ran",)


@pytest.mark.parametrize("value", [Evil(), {"weights": [Evil()]}], ids=["bare", "nested"])
def test_a_pickle_that_runs_code_is_refused_by_name(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value))
    with pytest.raises(NovaError, match=r"model.bin: refused: the pickle calls (posix|nt).system"):
        open_tensors(tmp_path, ["model"])
    assert not (tmp_path / "ran").exists()


def test_other_torch_files_are_refused(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(NovaError, match=r"written by a torch older than 1.6"):
        open_tensors(tmp_path, ["model"])
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"step": 3}))
    with pytest.raises(NovaError, match="more than named tensors"):
        open_tensors(tmp_path, ["model"])
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({})[:-3])
    with pytest.raises(NovaError, match="damaged"):
        open_tensors(tmp_path, ["model"])


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for part in (1, 2):
        safetensors.numpy.save_file(
            {"a": TENSORS["b"]}, tmp_path / f"model-0000{part}-of-00002.safetensors"
        )
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(NovaError, match="a is in another file too"):
        open_tensors(tmp_path, ["model"])
