"""Mutated checkpoint files: an error that names the file, or numbers; nothing else, and no code."""

import json
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from nova_jax.checkpoints.tensors import open_tensors
from nova_jax.errors import NovaError

MUTATIONS = 750  # of each kind of file
TENSORS = {
    "a.weight": np.arange(12, dtype=np.float16).reshape(3, 4),
    "b": np.ones(5, np.float32),
    "c": np.zeros((), np.float32),
}


def write_safetensors(directory):
    safetensors.numpy.save_file(TENSORS, directory / "model.safetensors", {"format": "pt"})
    return directory / "model.safetensors"


def write_shards(directory):
    names = sorted(TENSORS)
    for i, part in enumerate((names[:1], names[1:])):
        safetensors.numpy.save_file({n: TENSORS[n] for n in part}, directory / f"{i}.safetensors")
    where = {name: f"{int(name not in names[:1])}.safetensors" for name in names}
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": where}))
    return path


def write_torch(directory):
    # The pickle by hand: a dictionary of {name: rebuild(storage, offset, shape, strides, ...)}.
    lines = [b"\x80\x02}q\x00("]
    for i, (name, value) in enumerate(TENSORS.items()):
        shape = b"(" + b"".join(b"K" + bytes([n]) for n in value.shape) + b"t"
        kind = b"HalfStorage" if value.dtype == np.float16 else b"FloatStorage"
        strides = [s // value.itemsize for s in value.strides]
        lines += [
            b"X" + len(name).to_bytes(4, "little") + name.encode(),
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"\n",
            b"X\x01\x00\x00\x00" + str(i).encode() + b"X\x03\x00\x00\x00cpuK",
            bytes([value.size]) + b"tQK\x00" + shape + b"(",
            b"".join(b"K" + bytes([s]) for s in strides) + b"t\x89}tR",
        ]
    lines.append(b"u.")
    path = directory / "model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"".join(lines))
        for i, value in enumerate(TENSORS.values()):
            archive.writestr(f"archive/data/{i}", value.tobytes())
    return path


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Bytes changed, cut off, left out or put in, a few at a time."""
    data = bytearray(data)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(data)))
        kind = random.integers(5)
        if kind < 2:
            data[at] = random.integers(256)
        elif kind == 2:
            del data[at:]
            if not data:
                break
        elif kind == 3:
            del data[at : at + int(random.integers(1, 9))]
        else:
            data[at:at] = random.bytes(int(random.integers(1, 9)))
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("write", [write_safetensors, write_shards, write_torch])
def test_mutated_files_are_refused_or_read(write, tmp_path):
    path = write(tmp_path)
    tensors = open_tensors(tmp_path, ["model"])
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], value)
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(whole, random))
        try:
            tensors = open_tensors(tmp_path, ["model"])
            for name in tensors:
                assert tensors[name].shape == tensors.shapes[name]
        except NovaError as error:
            assert str(tmp_path) in str(error)
            refused += 1
    assert refused > MUTATIONS / 4
