"""Whatever is read from disk, with something wrong in it: refused in one line, or read as it was.

A mutated file may be read with other contents only where its format cannot tell, which is counted
apart: released safetensors have no checksum, and another number in a config.json is as good a
number. `python -m pytest --slow -s -k two_thousand` prints the counts.
"""

import dataclasses
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
from flax import nnx
from prepared import make_records

from nova_jax.checkpoints import diffusers
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.checkpoints.run import RunCheckpoints, claim_workdir
from nova_jax.checkpoints.tensors import open_tensors, write_safetensors
from nova_jax.data.records import Records
from nova_jax.errors import NovaError
from nova_jax.pipeline import SHIPPED

# Values that a JSON file may have in place of any other. The last two are written as they are.
HOSTILE = (
    None, True, "text", "", "3", [], {}, [[1, 2], 3], {"type": "?"}, 0, -1, 1.5, -0.5, 10**30,
    float("nan"), float("inf"),
)  # fmt: skip
RAW = ("1e999", "9" * 5000, "[" * 100_000, "")
TENSORS = {
    "a.weight": np.arange(12, dtype=np.float16).reshape(3, 4),
    "b": np.ones(5, np.float32),
    "c": np.zeros((), np.float32),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """Something on disk.

    Attributes:
        make: writes it to a folder.
        read: all of what is read of it, arrays and plain values.
        files: patterns of the files to mutate.
        unseen: patterns of files in which the format cannot tell some changes.
        share: how many of a thousand mutations are of it.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    files: tuple[str, ...]
    unseen: tuple[str, ...]
    share: int


# --- what there is ----------------------------------------------------------------------------


def _write_tensors(folder: Path) -> None:
    write_safetensors(folder, "model", iter(TENSORS.items()))


def _write_shards(folder: Path) -> None:
    write_safetensors(folder, "model", iter(TENSORS.items()), shard_bytes=20)


def _tensors(folder: Path) -> object:
    tensors = open_tensors(folder, ["model"])
    if tensors.keys() != TENSORS.keys():  # as whatever loads a model says, see rules.fill
        raise NovaError("tensors are missing or unknown")
    return dict(tensors)


def _released(folder: Path) -> object:
    """What the transformer and its schedule are."""
    schedule = diffusers.read_json(folder / "scheduler" / "scheduler_config.json")
    return [open_checkpoint(folder).model_config(), diffusers.schedule_from_released(schedule)]


def _frozen(folder: Path) -> object:
    """The other parts of a release, with their numbers."""
    checkpoint = open_checkpoint(folder)
    codec, encoder = checkpoint.load_autoencoder(), checkpoint.load_text_encoder()
    scales = [np.asarray(value) for value in (codec._scale, codec._shift)]
    states = [nnx.state(part.network) for part in (codec, encoder)]
    return [*scales, *states, str(encoder.tokens.tokenizer)]


def _copy(source: Path) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True)


def _config(folder: Path) -> object:
    """What a model directory says of itself."""
    checkpoint = open_checkpoint(folder)
    frozen = checkpoint.load_autoencoder(), checkpoint.load_text_encoder()
    return [checkpoint.step, checkpoint.model_config(), checkpoint.defaults(), repr(frozen)]


def _model(folder: Path) -> object:
    model, schedule = open_checkpoint(folder).load_transformer()
    return [_config(folder), schedule, nnx.state(model)]


def _stream() -> grain.DatasetIterator:
    return iter(grain.MapDataset.range(9).to_iter_dataset())


def _trees(step: int) -> dict[str, dict[str, np.ndarray]]:
    return {"params": {"w": np.arange(9.0) + step}, "optimizer": {"step": np.asarray(step)}}


def _write_run(folder: Path) -> None:
    claim_workdir(folder, {"steps": 3})
    with RunCheckpoints(folder, keep_latest=5, keep_best=1) as checkpoints:
        for step in (2, 3):
            checkpoints.save(step, _trees(step), _stream(), 1.0)


def _run(folder: Path) -> object:
    """The newest checkpoint by name; another one in its place would be an answer, too."""
    with RunCheckpoints(folder, keep_latest=5, keep_best=1) as checkpoints:
        data = _stream()
        return [checkpoints.restore(3, _trees(0), data), data.get_state()]


def _write_records(folder: Path) -> None:
    folder.rmdir()
    make_records(folder, [((1, 2, 2), 3), ((3, 2, 2), 2)])


def _records(folder: Path) -> object:
    records = Records(folder)
    metadata = dataclasses.replace(records.metadata, shards=())
    return [metadata, records.read(range(len(records)))]


GOLDEN = Path(__file__).parents[1] / "golden"
SAFETENSORS = "*.safetensors"
KINDS = {
    "safetensors": Kind(_write_tensors, _tensors, (SAFETENSORS,), (SAFETENSORS,), 200),
    "safetensors in shards": Kind(
        _write_shards, _tensors, ("*.json", SAFETENSORS), (SAFETENSORS,), 150
    ),
    "released configs": Kind(
        _copy(GOLDEN / "pipeline_t2v"),
        _released,
        ("model_index.json", "transformer/*.json", "scheduler/*.json"),
        ("*/*config.json",),
        80,
    ),
    "released frozen parts": Kind(
        _copy(GOLDEN / "pipeline_t2i"),
        _frozen,
        ("vae/*", "text_encoder/*", "tokenizer/*"),
        ("*/*config.json", SAFETENSORS, "tokenizer/*"),
        20,
    ),
    "prepared data": Kind(
        _write_records, _records, ("metadata.json", "*array_record*"), ("metadata.json",), 200
    ),
    "checkpoint of a run": Kind(_write_run, _run, ("checkpoints/3/**/*",), (), 150),
    "config of a model": Kind(_copy(SHIPPED), _config, ("config.json",), ("config.json",), 120),
    "shipped model": Kind(_copy(SHIPPED), _model, ("*.json", "params/**/*"), ("config.json",), 80),
}


# --- mutations --------------------------------------------------------------------------------


def _places(value: object) -> list[tuple[object, object]]:
    """Every place in plain values, as (container, key)."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in list(pairs):
        found.append((value, key))
        found += _places(item) if isinstance(item, dict | list) else []
    return found


def _other_json(text: bytes, random: np.random.Generator) -> bytes:
    values = json.loads(text)
    container, key = (places := _places(values))[random.integers(len(places))]
    kind = random.integers(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}_"] = container[key]
    elif kind == 2:
        container[key] = "HERE"
        raw = RAW[random.integers(len(RAW))]
        return json.dumps(values).replace('"HERE"', raw).encode()
    else:
        container[key] = HOSTILE[random.integers(len(HOSTILE))]
    return json.dumps(values).encode()


def _other_bytes(data: bytes, random: np.random.Generator) -> bytes:
    data, at, few = bytearray(data), int(random.integers(len(data))), int(random.integers(1, 65))
    kind = random.integers(5)
    if kind == 0:
        data[at] ^= 1 << random.integers(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at : at + few] = bytes(len(data[at : at + few]))
    elif kind == 3:
        data[at:at] = random.bytes(few)
    else:
        del data[at : at + few]
    return bytes(data)


def _mutate(files: list[Path], random: np.random.Generator) -> Path:
    """Changes one file (or two, which change places); returns the first."""
    path = files[random.integers(len(files))]
    data, kind = path.read_bytes(), random.integers(12)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.mkdir()
    elif kind == 2 or not data:
        path.write_bytes(b"" if data else b"\0")
    elif kind == 3:
        other = files[random.integers(len(files))]
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif data.startswith(b"{") and kind < 10:
        path.write_bytes(_other_json(data, random))
    else:
        path.write_bytes(_other_bytes(data, random))
    return path


def _same(a: object, b: object) -> bool:
    """Whether all numbers, names and types are the same."""
    leaves = [jax.tree.flatten(x) for x in (a, b)]
    (one, structure), (other, like) = leaves
    return structure == like and all(
        np.shape(x) == np.shape(y) and np.array_equal(x, y) if hasattr(x, "shape") else x == y
        for x, y in zip(one, other, strict=True)
    )


def _count(name: str, number: int, folder: Path) -> Counter[str]:
    """Mutates a kind so many times, and counts what comes of it."""
    kind, counts = KINDS[name], Counter()
    folder.mkdir(parents=True)
    kind.make(folder)
    files = sorted({f for p in kind.files for f in folder.glob(p) if f.is_file()})
    whole, expected = {path: path.read_bytes() for path in files}, kind.read(folder)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    for case in range(number):
        path = _mutate(files, random)
        try:
            found = kind.read(folder)
        except NovaError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, (case, path)
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"mutation {case} of {path}: {error!r:.200}") from error
        else:
            if _same(found, expected):
                counts["unchanged"] += 1
            else:
                unseen = any(path.relative_to(folder).match(p) for p in kind.unseen)
                assert unseen, f"mutation {case} of {path} was read as something else"
                counts["not told by the format"] += 1
        for aside in folder.glob("checkpoints/*.damaged"):
            aside.rename(aside.with_suffix(""))
        for file, data in whole.items():
            if file.is_dir():
                file.rmdir()
            if not file.exists() or file.read_bytes() != data:
                file.write_bytes(data)
    return counts


@pytest.mark.parametrize("name", KINDS)
def test_mutated_files_are_refused_by_name_or_read_as_they_were(name, tmp_path):
    counts = _count(name, KINDS[name].share // 5, tmp_path / "folder")
    assert counts["refused"] > 0


@pytest.mark.slow
def test_two_thousand_mutated_files(tmp_path):
    print("\n| what | mutated | refused | unchanged | not told by the format |")
    print("|---|---:|---:|---:|---:|")
    for name, kind in KINDS.items():
        counts = _count(name, 2 * kind.share, tmp_path / name)
        columns = [counts[c] for c in ("refused", "unchanged", "not told by the format")]
        print("|", " | ".join(map(str, (name, counts.total(), *columns))), "|", flush=True)
