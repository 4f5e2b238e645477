"""Files of named tensors: safetensors, in one file or several, and what torch.save wrote.

Tensors are read one at a time, so that a file larger than memory can be loaded onto devices. A
torch file is a pickle, which can run code as it loads; here only the few functions that rebuild
tensors are called, and a pickle that asks for any other is refused by name. torch is not needed.
"""

from __future__ import annotations

import functools
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from nova_jax.errors import NovaError
from nova_jax.files import read_json

#: Bytes of a file above which tensors go on in another one, as the ecosystem has it.
SHARD_BYTES = 5 * 10**9


# Of a tensor: its shape, and what reads it.
_Opened = dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name, each read from its file when it is asked for.

    Args:
        opened: shape of each, and what reads it.
        source: what to call the whole in messages.
    """

    def __init__(self, opened: _Opened, source: str):
        self._readers = {name: read for name, (_, read) in opened.items()}
        self.shapes = {name: shape for name, (shape, _) in opened.items()}
        self.source = source

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers


def open_tensors(directory: Path, stems: Iterable[str]) -> Tensors:
    """Opens the weights of one component.

    Looked for are, in this order and for each stem: ``STEM.safetensors``, its shards by
    ``STEM.safetensors.index.json``, then ``STEM.bin`` and ``STEM.bin.index.json``.

    Args:
        directory: the component's.
        stems: such as ``diffusion_pytorch_model``.

    Raises:
        NovaError: there is no such file, one is damaged, or one wants to run code.
    """
    stems = list(stems)
    for suffix in ("safetensors", "bin"):
        for stem in stems:
            file = directory / f"{stem}.{suffix}"
            listing = file.with_name(f"{file.name}.index.json")
            if file.is_file():
                return _join([file], str(file))
            if listing.is_file():
                return _open_sharded(listing)
    looked_for = ", ".join(f"{stem}.safetensors, {stem}.bin" for stem in stems)
    raise NovaError(f"{directory} holds no weights; looked for {looked_for} and their shards")


def _open_sharded(listing: Path) -> Tensors:
    weight_map = read_json(listing, "fetch it again").get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in weight_map.values()
    ):
        raise NovaError(f"{listing} is damaged (weight_map names no files); fetch it again")
    files = sorted({listing.parent / name for name in weight_map.values()})
    if missing := [file.name for file in files if not file.is_file()]:
        raise NovaError(f"{listing} names {', '.join(missing)}, which are missing; fetch them")
    tensors = _join(files, str(listing))
    if absent := sorted(set(weight_map) ^ set(tensors)):
        raise NovaError(f"{listing} and its files differ in {', '.join(absent[:5])}; fetch again")
    return tensors


def _join(files: Iterable[Path], source: str) -> Tensors:
    opened: _Opened = {}
    for file in files:
        found = (_open_safetensors if file.suffix == ".safetensors" else _open_torch)(file)
        if twice := opened.keys() & found.keys():
            raise NovaError(f"{file}: {min(twice)} is in another file too; fetch the files again")
        opened |= found
    return Tensors(opened, source)


def _open_safetensors(file: Path) -> _Opened:
    def read(name: str) -> np.ndarray:
        with safe_open(file, framework="np") as opened:
            return opened.get_tensor(name)

    try:
        with safe_open(file, framework="np") as opened:
            return {
                name: (tuple(opened.get_slice(name).get_shape()), functools.partial(read, name))
                for name in list(opened.keys())
            }
    except SafetensorError as error:
        raise NovaError(f"{file} is damaged ({error}); fetch it again") from None


def write_safetensors(
    directory: Path,
    stem: str,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes ``STEM.safetensors``, or shards and their index where it would be too large.

    Args:
        directory: made if it is missing.
        stem: such as ``diffusion_pytorch_model``.
        tensors: names and values; one shard of them is held at a time.
        shard_bytes: most bytes of a file; a single larger tensor has a file of its own.
    """
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}  # what loaders in the PyTorch ecosystem insist on
    written: list[list[str]] = []
    total = 0

    def flush(shard: dict[str, np.ndarray]) -> None:
        file = directory / f".{stem}-{len(written) + 1:05d}.safetensors"
        safetensors.numpy.save_file(shard, file, metadata)
        written.append(list(shard))

    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, value in tensors:
        if shard and size + value.nbytes > shard_bytes:
            flush(shard)
            shard, size = {}, 0
        shard[name] = np.asarray(value, order="C")
        size, total = size + value.nbytes, total + value.nbytes
    flush(shard)

    weight_map: dict[str, str] = {}
    for index, names in enumerate(written, 1):
        name = f"{stem}.safetensors"
        if len(written) > 1:
            name = f"{stem}-{index:05d}-of-{len(written):05d}.safetensors"
        (directory / f".{stem}-{index:05d}.safetensors").replace(directory / name)
        weight_map |= dict.fromkeys(names, name)
    if len(written) > 1:
        listing = {"metadata": {"total_size": total}, "weight_map": weight_map}
        path = directory / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")


# --- what torch.save writes -------------------------------------------------------------------

_STORAGE_TYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage(NamedTuple):
    """A run of numbers in the archive that tensors are views of."""

    key: str
    dtype: np.dtype


class _View(NamedTuple):
    """A tensor: where in its storage it lies."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles dictionaries of tensors and numbers, and nothing that runs code."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *rest: (
            _View(storage, offset, tuple(shape), tuple(strides))
        ),
        ("torch._utils", "_rebuild_parameter"): lambda view, *rest: view,
        **{
            (module, name): np.dtype(dtype)
            for module in ("torch", "torch.storage")
            for name, dtype in _STORAGE_TYPES.items()
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise NovaError(
                f"refused: the pickle calls {module}.{name}, which tensors do not need and which "
                "may run any code; get the weights as safetensors"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r}")
        return _Storage(key, dtype)


def _open_torch(file: Path) -> _Opened:
    remedy = "fetch it again, or save the weights as safetensors"
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise NovaError(f"{file} is not what torch.save writes; {remedy}")
            prefix = pickles[0].removesuffix("data.pkl")
            with archive.open(pickles[0]) as stream:
                tree = _TensorUnpickler(stream).load()
    except zipfile.BadZipFile:
        raise NovaError(
            f"{file} is damaged, or was written by a torch older than 1.6; {remedy}"
        ) from None
    except NovaError as error:
        raise NovaError(f"{file}: {error}") from None
    except Exception as error:  # a damaged pickle fails in many ways
        raise NovaError(f"{file} is damaged ({error!r}); {remedy}") from None
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        tree = tree["state_dict"]
    if not isinstance(tree, dict) or not all(isinstance(view, _View) for view in tree.values()):
        raise NovaError(f"{file} holds more than named tensors; {remedy}")

    def read(view: _View) -> np.ndarray:
        try:
            with zipfile.ZipFile(file) as archive:
                data = archive.read(f"{prefix}data/{view.storage.key}")
            values = np.frombuffer(data, view.storage.dtype)
            sizes = (view.offset, *view.shape, *view.strides)
            last = view.offset + sum(
                (n - 1) * s for n, s in zip(view.shape, view.strides, strict=True)
            )
            if min(sizes) < 0 or (0 not in view.shape and last >= len(values)):
                raise ValueError("a tensor reaches past its storage")
            strides = [s * values.itemsize for s in view.strides]
            return np.lib.stride_tricks.as_strided(values[view.offset :], view.shape, strides)
        except Exception as error:  # a damaged archive fails in many ways
            raise NovaError(f"{file} is damaged ({error}); {remedy}") from None

    return {name: (view.shape, functools.partial(read, view)) for name, view in tree.items()}
