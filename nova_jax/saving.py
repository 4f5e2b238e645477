"""Giving a pipeline back: a directory that opens again, and the same on the Hugging Face hub.

A model with the frozen parts of one release is saved in the released layout, which the PyTorch
package reads, too; any other as a model directory of this project. Either has a model card.

    README.md            the card, with pictures/ and results/ that it shows
    nova_jax.json        of the released layout: how it generates, its data and training
    config.json, params/, checksums.json, released/
                         of a model directory, see `nova_jax.checkpoints.model`
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from flax import nnx
from flax.traverse_util import flatten_dict

from nova_jax import media
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.registry import CODECS
from nova_jax.card import PICTURES, RESULTS, SHOWN, Facts, model_card, read_results
from nova_jax.checkpoints.conversion import (
    copy_frozen,
    is_released,
    new_directory,
    write_transformer,
)
from nova_jax.checkpoints.diffusers import LAYOUT
from nova_jax.checkpoints.hub import KEPT, MODEL_FILES
from nova_jax.checkpoints.integrity import FORMAT, write_checksums, write_config
from nova_jax.checkpoints.model import MODEL_KEYS, save_model
from nova_jax.checkpoints.open import NOTES, Checkpoint
from nova_jax.checkpoints.parts import ReleasedPart
from nova_jax.config import convert, to_plain
from nova_jax.errors import NovaError
from nova_jax.files import read_json, unfinished
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import Schedule
from nova_jax.text.interface import TextEncoder
from nova_jax.text.registry import TEXT_ENCODERS

_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
_RELEASED = {name.rstrip("/") for name in LAYOUT} | {*_LICENCES}
#: What `save_pretrained` may write, as the hub matches patterns.
WRITTEN = (
    *("README.md", f"{PICTURES}/*", f"{RESULTS}/*", *MODEL_FILES, NOTES, *_LICENCES),
    *(f"{name}*" if name.endswith("/") else name for name in LAYOUT),
)


class Pipeline(Protocol):
    """What saving needs of a `nova_jax.pipeline.NovaPipeline`."""

    schedule: Schedule
    codec: VideoCodec
    text_encoder: TextEncoder | None
    config: NovaConfig
    frames: int
    sampling: SamplingConfig
    motion_flow: float
    fps: float
    origin: Checkpoint | None

    @property
    def model(self) -> Nova:
        """The transformer."""

    @property
    def size(self) -> tuple[int, int]:
        """Pixels."""

    @property
    def fingerprint(self) -> str:
        """What tells the model from others."""


def save_pretrained(
    self: Pipeline,
    directory: str | os.PathLike[str],
    *,
    license: str | None = None,
    results: Sequence[str | os.PathLike[str]] = (),
    pictures: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Saves all that `from_pretrained` needs to make the same pipeline, and a model card.

    Parameters keep the type that they have in memory, and frozen parts are copied as they were
    loaded. With the frozen parts of a release the directory has the released layout; else it is a
    model directory of this project.

    Args:
        directory: A new one.
        license: Of the parameters, as the hub calls it: "apache-2.0", "cc-by-4.0", ...
        results: What `nova_jax.evaluate` wrote, for the card: its folders, or evaluation.json and
            report.json in them.
        pictures: PNG, GIF, JPEG or MP4 files for the card, beside those of the results and the last
            ones that the run has drawn.

    Returns:
        The directory.

    Raises:
        NovaError: It exists or cannot be written, a part has files that it was not loaded from,
            results are damaged or of another model, or a picture is missing.
    """
    return _save(self, new_directory(directory), None, license, results, pictures)


def push_to_hub(
    self: Pipeline,
    name: str,
    *,
    license: str | None = None,
    results: Sequence[str | os.PathLike[str]] = (),
    pictures: Sequence[str | os.PathLike[str]] = (),
    private: bool | None = None,
    create_pr: bool = False,
    token: str | None = None,
    message: str = "Upload a NOVA model",
    dry_run: str | os.PathLike[str] | None = None,
) -> str:
    """Saves the pipeline as `save_pretrained` does, and uploads that to the Hugging Face hub.

    In one commit, which also deletes what an earlier one left of another model. Then
    `from_pretrained(name)` opens it anywhere.

    Args:
        name: OWNER/NAME, made if it is missing.
        license: See `save_pretrained`.
        results: See `save_pretrained`.
        pictures: See `save_pretrained`.
        private: Whether a new repository is seen by its owner alone; by default as the owner has
            set it.
        create_pr: Make a pull request in place of a commit.
        token: Of the hub; by default HF_TOKEN, or that of ``hf auth login``.
        message: Of the commit.
        dry_run: A new directory that what would be uploaded is written to; the hub is not asked.

    Returns:
        URL of the commit or pull request; the directory of a dry run.

    Raises:
        NovaError: The hub is out of reach or refuses; or as `save_pretrained`.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", convert(str, name, "name")):
        raise NovaError(f"{name!r} is no name on the Hugging Face hub; give OWNER/NAME")
    shown = (license, results, pictures)
    if dry_run is not None:
        return str(_save(self, new_directory(dry_run), name, *shown))
    # Slow to import.
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        # Before the hub is asked for anything: what is wrong here leaves no empty repository there.
        saved = _save(self, Path(folder) / "model", name, *shown)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name,
                folder_path=saved,
                commit_message=message,
                create_pr=create_pr,
                delete_patterns=list(WRITTEN),
            )
        except Exception as error:  # the hub's client has no one exception for it
            # What the threads of an upload raise says no more than that there is a cause.
            cause = error.__cause__ if isinstance(error, RuntimeError) else None
            reason = (str(cause or error).strip() or repr(error)).splitlines()[0]
            raise NovaError(
                f"{name} was not uploaded ({reason}); run `hf auth login` with a token that may "
                "write, look at the network, and call it again"
            ) from error
    return str(commit.pr_url or commit.commit_url)


def _save(
    pipeline: Pipeline,
    out: Path,
    name: str | None,
    license: str | None,
    results: Sequence[str | os.PathLike[str]],
    pictures: Sequence[str | os.PathLike[str]],
) -> Path:
    """Writes a new directory; the card calls it by its name on the hub, if it has one."""
    convert(str | None, license, "license")
    if jax.process_count() > 1:
        raise NovaError("one of several processes cannot save a pipeline; open it in a single one")
    leaves = jax.tree.leaves(nnx.state(pipeline.model))
    if any(leaf.dtype.name == "int8" for leaf in leaves):
        raise NovaError("parameters in 8 bits are not saved; load it without param_dtype='int8'")
    found = [one for place in results for one in read_results(place, pipeline.fingerprint)]
    shown = [*map(_picture, pictures), *_last_samples(pipeline.origin)]
    shown += [picture for one in found for picture in one.pictures]
    released, config = _released_parts(pipeline), _config(pipeline)
    with unfinished(out) as new:
        new.mkdir(parents=True)
        if released is not None:
            copy_frozen(released, new, only=_RELEASED)
            types = {leaf.dtype.name for leaf in leaves}
            dtype = types.pop() if len(types) == 1 else "float32"
            write_transformer(new, pipeline.model, pipeline.schedule, dtype)
            write_config(new, FORMAT | config, NOTES)
        else:
            _write_model(pipeline, new, config)
        for file in dict.fromkeys(one.file for one in found):
            values = _without_places(read_json(file, "evaluate again"))
            media.save(new / RESULTS / file.name, json.dumps(values, indent=1).encode())
        copies = [media.save(new / PICTURES / path.name, path.read_bytes()) for path in shown]
        facts = Facts(
            name=name or out.name,
            model=pipeline.config,
            size=pipeline.size,
            frames=pipeline.codec.pixel_frames(pipeline.frames),
            parameters=sum(leaf.size for leaf in leaves),
            parts=[type(p).__name__ for p in (pipeline.codec, pipeline.text_encoder) if p],
            released=released is not None,
            config=config | {"schedule": to_plain(pipeline.schedule)},
            license=license,
        )
        card = model_card(facts, found, [copy.relative_to(new).as_posix() for copy in copies])
        (new / "README.md").write_text(card.content, encoding="utf-8")
        new.rename(out)
    return out


def _config(pipeline: Pipeline) -> dict[str, Any]:
    """How it generates, and what is known of its data and training.

    Of paths that are absolute only the last part is told: the rest is of one machine, and nobody
    else's business.
    """
    origin = pipeline.origin
    known: Mapping[str, Any] = origin.config if origin else {}
    others = {*MODEL_KEYS, *FORMAT, "step"}
    training = known.get("training") or {k: v for k, v in known.items() if k not in others}
    if origin is not None and origin.kind == "run":
        training = {**training, "weights": getattr(origin, "weights", None)}
    told = {"dataset": known.get("dataset"), "training": training}
    return {
        "step": origin.step if origin else 0,
        "sampling": to_plain(pipeline.sampling),
        "motion_flow": pipeline.motion_flow,
        "frames": pipeline.frames,
        "fps": pipeline.fps,
        **{key: _without_places(value) for key, value in told.items() if value},
    }


def _without_places(value: Any) -> Any:
    """Plain values, with the last part alone of what is an absolute path."""
    if isinstance(value, Mapping):
        return {_without_places(key): _without_places(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(one) for one in value]
    absolute = isinstance(value, str) and value.startswith(("/", "~")) and len(value) > 1
    return Path(value).name if absolute else value


def _released_parts(pipeline: Pipeline) -> Path | None:
    """The released model that all frozen parts are of and whose layout fits; None if there is none.

    Raises:
        NovaError: a part has parameters and was not loaded from files.
    """
    parts = [_source(part) for part in (pipeline.codec, pipeline.text_encoder) if part is not None]
    source = parts[0]
    whole = source is not None and all(
        (source / name).exists()
        for name in ("model_index.json", "transformer/config.json", "scheduler", "vae")
    )
    if source is None or not whole or any(part != source for part in parts):
        return None
    return source if is_released(pipeline.config, source) else None


def _source(part: VideoCodec | TextEncoder) -> Path | None:
    """Directory of the released model that a frozen part is of; None if it needs no files."""
    if getattr(part, "type", None) in {**CODECS, **TEXT_ENCODERS}:
        return None
    source: Path | None = getattr(part, "source", None)
    if source is None:
        raise NovaError(
            f"the files of {type(part).__name__} are not known; open it with from_pretrained, or "
            "load it with nova_jax.checkpoints.diffusers"
        )
    return source


def _write_model(pipeline: Pipeline, directory: Path, config: Mapping[str, Any]) -> None:
    """Writes a model directory of this project, with the files of frozen parts that have some."""
    state = nnx.to_pure_dict(nnx.state(pipeline.model))
    named = {"codec": pipeline.codec, "text_encoder": pipeline.text_encoder}
    sources = {key: _source(part) for key, part in named.items() if part is not None}
    kept = to_plain(ReleasedPart(f"./{KEPT}"))
    model = {"model": pipeline.config.to_dict(), "schedule": to_plain(pipeline.schedule)}
    parts = {key: kept if sources.get(key) else to_plain(part) for key, part in named.items()}
    save_model(
        directory,
        variables=flatten_dict(state, sep="."),
        config={**model, **parts, **config},
        step=config["step"],
        dtype=None,
    )
    folders = {"codec": ("vae",), "text_encoder": ("text_encoder", "tokenizer")}
    for key, source in sources.items():
        if source is not None:
            copy_frozen(source, directory / KEPT, only={*folders[key], *_LICENCES})
    write_checksums(directory)


def _picture(place: str | os.PathLike[str]) -> Path:
    path = Path(place)
    if path.suffix.lower() not in SHOWN or not path.is_file():
        raise NovaError(f"picture {path} is missing or none of {', '.join(SHOWN)}; give another")
    return path


def _last_samples(origin: Checkpoint | None) -> list[Path]:
    """What a run has drawn last."""
    folder = Path(origin.directory) / "samples" if origin else Path()
    if origin is None or not folder.is_dir():
        return []
    drawn = sorted(folder.glob("step_*.png"))[-1:]
    return [file for last in drawn for file in (last, last.with_suffix(".gif")) if file.is_file()]
