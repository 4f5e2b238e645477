"""Where a name leads: to a directory here, or to a model on the Hugging Face hub.

A name of the form OWNER/NAME is one on the hub, unless there is a local folder OWNER; behind it may
stand @REVISION, a commit, tag or branch. Every other name is a path and never reaches the network:
an absolute one, one that starts with a dot or ``~``, one with no slash or with several, and one
whose first folder is there. Where there is no such folder, a model that comes with the package has
its name: digits_t2v, digits_t2i.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath
from tqdm import tqdm

from nova_jax.checkpoints.integrity import CHECKSUMS, CONFIG, PARAMS
from nova_jax.config import shown
from nova_jax.errors import NovaError

#: The models that come with the package, each in the folder of its name.
ASSETS = Path(__file__).parents[1] / "assets"
# Frozen parts of a model directory, where they have files.
KEPT = "released"
#: What a model directory needs, as the hub matches patterns: a star also stands for slashes.
MODEL_FILES = (CONFIG, CHECKSUMS, f"{PARAMS}/*", f"{KEPT}/*")


def locate(
    source: str | os.PathLike[str], part: str | None = "*", *, files: Sequence[str] | None = None
) -> epath.Path:
    """The directory that a name leads to, downloaded if it is on the hub.

    The hub's cache and its environment variables (HF_HOME, HF_HUB_OFFLINE, ...) hold. A model
    directory of this project comes whole.

    Args:
        source: the name.
        part: of a released model on the hub, the subdirectory whose weights are needed, such as
            "transformer"; by default all, None for none.
        files: of any other model on the hub, patterns of the files that are needed.

    Raises:
        NovaError: it is no name; there is no such directory, with the names of those most like it;
            or the model cannot be downloaded.
    """
    if not (isinstance(source, str | os.PathLike) and os.fspath(source)):
        raise NovaError(f"{shown(source)} names no checkpoint; give a directory, or OWNER/NAME")
    name = os.fspath(source)
    if is_on_hub(name):
        tqdm.write(f"{name} is no folder here; looking on the Hugging Face hub", file=sys.stderr)
        return epath.Path(_model(name, part) if files is None else _download(name, files))
    path = epath.Path(name).expanduser()
    if path.is_dir():
        return path
    if name in {folder.name for folder in ASSETS.iterdir()}:
        return epath.Path(ASSETS / name)
    if path.exists():
        raise NovaError(f"{name} is a file; give the directory that it is in")
    nearest = " or ".join(map(str, _nearest(path)))
    remedy = f"did you mean {nearest}?" if nearest else "nor one with a name like it"
    raise NovaError(
        f"there is no directory {name}; {remedy} (a model on the Hugging Face hub is OWNER/NAME)"
    )


def is_on_hub(name: str) -> bool:
    """Whether a name is one on the hub, by its form and by the folders that are here."""
    named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w.-]+)?", name)
    return named is not None and not epath.Path(name).parent.is_dir()


def _nearest(path: epath.Path) -> list[epath.Path]:
    """Folders named like the first one of a path that is not there, beside it."""
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    names = [folder.name for folder in beside if folder.is_dir()]
    return [path.parent / name for name in difflib.get_close_matches(path.name, names)]


def _model(name: str, part: str | None) -> str:
    """A model directory of this project; or a model in the released layout, whose weights are
    safetensors or, if there are none, .bin."""
    described = ["*.json", "*/*.json", "tokenizer/*"]
    weights = [f"{part}/*.safetensors", f"{part}/*.bin"] if part else []
    found = _download(name, [*described, *weights[:1]])
    if (Path(found) / CHECKSUMS).is_file():
        return _download(name, MODEL_FILES)
    one = "transformer" if part == "*" else part
    if part and not any(Path(found).glob(f"{one}/*.safetensors")):
        found = _download(name, [*described, *weights[1:]])
    return found


def _download(name: str, files: Sequence[str]) -> str:
    # Slow to import, and most names are directories.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        return snapshot_download(repository, revision=revision or None, allow_patterns=list(files))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NovaError(
            f"{name} is neither a directory nor in the hub's cache, and cannot be downloaded "
            f"({reason}). Where there is a network, run: hf download {repository} --local-dir DIR; "
            "then give DIR"
        ) from error
