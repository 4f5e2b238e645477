"""The released layout: a directory in diffusers' form, or its id on the Hugging Face hub.

    model_index.json   the parts and their classes
    transformer/  scheduler/  vae/  text_encoder/  tokenizer/

Every part has a config.json (or the like) that says what it is, and its weights.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from jax.typing import DTypeLike

from nova_jax.autoencoders.codec import AutoencoderCodec
from nova_jax.autoencoders.cogvideox import (
    AutoencoderCogVideoXConfig,
    AutoencoderKLCogVideoX,
)
from nova_jax.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from nova_jax.autoencoders.ltx import AutoencoderKLLTXVideo, AutoencoderLTXConfig
from nova_jax.checkpoints import rules
from nova_jax.checkpoints.tensors import open_tensors
from nova_jax.distributed.mesh import MeshLayout, parameter_shardings
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.sampling.schedules import DDPMSchedule, FlowMatchingSchedule, Schedule
from nova_jax.text.phi import Phi, PhiConfig
from nova_jax.text.phi_encoder import PhiTextEncoder

_TRANSFORMER_FIELDS = (
    "arch",
    "image_dim",
    "image_size",
    "image_stride",
    "image_base_size",
    "video_base_size",
    "video_mixer_rank",
    "rotary_pos_embed",
    "text_token_dim",
    "text_token_len",
)
NUM_CLASSES = 1000  # of every class-conditional release; config.json does not say


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        NovaError: if the file is missing or is not one.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NovaError(f"{path} is missing; is this a model in the released layout?") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise NovaError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(values, dict):
        raise NovaError(f"{path} is not a JSON object; fetch it again")
    return values


def config_from_released(released: Mapping[str, Any]) -> NovaConfig:
    """Our configuration from the release's ``transformer/config.json``.

    Raises:
        NovaError: if the sizes contradict each other, are missing or of another type, or a field is
            not known.
    """
    unknown = [key for key in released if key not in _TRANSFORMER_FIELDS and key[0] != "_"]
    if unknown:
        raise NovaError(
            f"transformer/config.json: unknown field {unknown[0]!r}; known are "
            f"{', '.join(_TRANSFORMER_FIELDS)}"
        )
    try:
        size, stride = released["image_size"], released["image_stride"]
        size = (size, size) if isinstance(size, int) else tuple(size)
        video_base, arch = released["video_base_size"], released["arch"]
        config = NovaConfig(
            latent_channels=released["image_dim"],
            latent_size=(size[0] // stride, size[1] // stride),
            patch_size=15 // stride + 1,
            temporal_encoder=arch[0],
            spatial_decoder=arch[1],
            diffusion_head=arch[2],
            frames=video_base[0],
            text_dim=released.get("text_token_dim"),
            text_length=released.get("text_token_len") if released.get("text_token_dim") else None,
            num_classes=None if released.get("text_token_dim") else NUM_CLASSES,
            mixer_rank=released.get("video_mixer_rank"),
            rotary=bool(released.get("rotary_pos_embed", False)),
        )
        base = (tuple(released["image_base_size"]), tuple(video_base[1:]))
    except KeyError as error:
        raise NovaError(f"transformer/config.json lacks {error}") from None
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise NovaError(f"transformer/config.json: a field is of another kind ({error})") from None
    if base != (config.grid, config.temporal_grid):
        raise NovaError(
            f"transformer/config.json: image_base_size {base[0]} and video_base_size {base[1]} do "
            f"not match the token grids {config.grid} and {config.temporal_grid} of image_size"
        )
    return config


def schedule_from_released(released: Mapping[str, Any]) -> Schedule:
    """Our schedule from the release's ``scheduler/scheduler_config.json``.

    Raises:
        NovaError: on a scheduler class or option that the model cannot be sampled with.
    """
    name = released.get("_class_name")
    options = {key: value for key, value in released.items() if not key.startswith("_")}
    try:
        return _schedule(name, options)
    except TypeError as error:
        raise NovaError(f"scheduler_config.json: an option is of another kind ({error})") from None


def _schedule(name: Any, options: Mapping[str, Any]) -> Schedule:
    if name == "FlowMatchEulerDiscreteScheduler":
        if options.get("use_dynamic_shifting"):
            raise NovaError("scheduler_config.json: use_dynamic_shifting is not part of NOVA")
        return FlowMatchingSchedule(
            shift=options.get("shift", 1.0),
            num_train_timesteps=options.get("num_train_timesteps", 1000),
        )
    if name == "DDPMScheduler":
        known = DDPMSchedule.__dataclass_fields__
        return DDPMSchedule(**{k: v for k, v in options.items() if k in known})
    raise NovaError(f"scheduler_config.json: unknown scheduler {name!r}")


def config_to_released(config: NovaConfig, base: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `config_from_released`; what it does not say is taken from another file."""
    stride = base["image_stride"]
    return {
        **base,
        "image_dim": config.latent_channels,
        "image_size": [side * stride for side in config.latent_size],
        "image_base_size": list(config.grid),
        "video_base_size": [config.frames, *config.temporal_grid],
        "video_mixer_rank": config.mixer_rank,
        "rotary_pos_embed": config.rotary,
        "text_token_dim": config.text_dim,
        "text_token_len": config.text_length,
        "arch": [config.temporal_encoder, config.spatial_decoder, config.diffusion_head],
    }


def schedule_to_released(schedule: Schedule) -> dict[str, Any]:
    """The inverse of `schedule_from_released`."""
    values = schedule.to_dict()
    del values["type"]
    name = "DDPMScheduler"
    if isinstance(schedule, FlowMatchingSchedule):
        name = "FlowMatchEulerDiscreteScheduler"
    return {"_class_name": name, **values}


WEIGHTS = "diffusion_pytorch_model"  # of transformers and autoencoders
TEXT_WEIGHTS = ("model", "pytorch_model")
_AUTOENCODERS: dict[str, tuple[Any, Any]] = {
    "AutoencoderKL": (AutoencoderKLConfig, AutoencoderKL),
    "AutoencoderKLOpenSora": (AutoencoderKLConfig, AutoencoderKL),
    "AutoencoderKLCogVideoX": (AutoencoderCogVideoXConfig, AutoencoderKLCogVideoX),
    "AutoencoderKLLTXVideo": (AutoencoderLTXConfig, AutoencoderKLLTXVideo),
}


def resolve(source: str | Path, part: str = "*") -> Path:
    """The local directory of a model: itself, or a download of what has this id on the hub.

    The hub's cache and its environment variables (HF_HOME, HF_HUB_OFFLINE, ...) hold.

    Args:
        source: the directory or the id.
        part: subdirectory whose weights are needed, such as "transformer"; by default all.

    Raises:
        NovaError: there is no such directory, or the id cannot be downloaded.
    """
    directory = Path(source)
    if directory.is_dir():
        return directory
    name = str(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise NovaError(f"{name} is not a directory, and not an id on the hub (OWNER/NAME)")
    files = ["*.json", "*/*.json", "tokenizer/*"]
    try:
        found = Path(snapshot_download(name, allow_patterns=[*files, f"{part}/*.safetensors"]))
        if not any(found.glob("transformer/*.safetensors")):
            found = Path(snapshot_download(name, allow_patterns=[*files, f"{part}/*.bin"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NovaError(
            f"{name} is neither a directory nor in the hub's cache, and cannot be downloaded "
            f"({reason}). Where there is a network, run: hf download {name} --local-dir DIR; "
            "then give DIR"
        ) from error
    return found


def read_model_config(directory: Path) -> NovaConfig:
    """What the transformer of a directory in the released layout is; see `config_from_released`."""
    return config_from_released(read_json(directory / "transformer" / "config.json"))


def load_transformer(
    directory: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    mesh: MeshLayout | None = None,
) -> tuple[Nova, Schedule]:
    """Loads ``transformer/`` and ``scheduler/`` of a directory in the released layout.

    Args:
        directory: the model's directory.
        dtype: type of the computation.
        param_dtype: type that parameters are kept in.
        mesh: devices that parameters are put on, as `nova_jax.distributed.mesh` says; by default
            all on the first.

    Raises:
        NovaError: naming what is missing, unknown, damaged or of another shape.
    """
    directory = Path(directory)
    config = read_model_config(directory)
    schedule = schedule_from_released(read_json(directory / "scheduler" / "scheduler_config.json"))
    model = nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0), dtype=dtype))
    _set_dtype(model, param_dtype)
    variables = dict(nnx.to_flat_state(nnx.state(model)))
    rules.fill(
        model,
        rules.transformer_table(config, variables),
        open_tensors(directory / "transformer", [WEIGHTS]),
        shardings=None if mesh is None else parameter_shardings(model, mesh),
    )
    return model, schedule


def load_autoencoder(
    directory: str | Path, *, dtype: DTypeLike = jnp.float32, mesh: MeshLayout | None = None
) -> AutoencoderCodec:
    """Loads an autoencoder (``vae/``) as a codec.

    Args:
        directory: the autoencoder's.
        dtype: type of its parameters and of the computation.
        mesh: every device of it has a copy; by default the first device alone.

    Raises:
        NovaError: naming what is missing, unknown, damaged or of another shape.
    """
    directory = Path(directory)
    released = read_json(directory / "config.json")
    name = str(released.get("_class_name")).split(".")[-1]
    if name not in _AUTOENCODERS:
        known = ", ".join(_AUTOENCODERS)
        raise NovaError(f"{directory}/config.json: unknown autoencoder {name!r}; known: {known}")
    config_type, network_type = _AUTOENCODERS[name]
    config = _config(config_type, released, directory / "config.json")
    network = _abstract(
        lambda: network_type(config, dtype=dtype, rngs=nnx.Rngs(0)), directory / "config.json"
    )
    variables = {p: v.get_value() for p, v in nnx.to_flat_state(nnx.state(network))}
    tensors = open_tensors(directory, [WEIGHTS])
    rules.fill(
        network,
        rules.autoencoder_table(variables),
        tensors,
        aliases=rules.AUTOENCODER_ALIASES,
        shardings=None if mesh is None else parameter_shardings(network, mesh),
    )
    scale, shift = config.scaling_factor, config.shift_factor or 0.0
    if "scaling_factors" in tensors:  # the release's LTX-Video: one for each channel
        shift, scale = (np.ravel(tensors[f"{kind}_factors"]) for kind in ("shift", "scaling"))
    elif "latents_std" in tensors:  # diffusers'
        shift, scale = np.ravel(tensors["latents_mean"]), scale / np.ravel(tensors["latents_std"])
    return AutoencoderCodec(network, scale=scale, shift=shift)


def load_text_encoder(
    directory: str | Path, *, dtype: DTypeLike = jnp.float32, mesh: MeshLayout | None = None
) -> PhiTextEncoder:
    """Loads ``text_encoder/`` (Phi) and ``tokenizer/`` of a directory in the released layout.

    Args:
        directory: the model's.
        dtype: type of its parameters and of the computation; norms and softmax stay float32.
        mesh: devices that parameters are put on; by default all on the first.

    Raises:
        NovaError: naming what is missing, unknown, damaged or of another shape.
    """
    directory = Path(directory)
    model = load_phi(directory / "text_encoder", dtype=dtype, mesh=mesh)
    return PhiTextEncoder(model, PhiTextEncoder.read_tokenizer(directory / "tokenizer"))


def load_phi(
    directory: str | Path, *, dtype: DTypeLike = jnp.float32, mesh: MeshLayout | None = None
) -> Phi:
    """Loads a Phi model in transformers' layout; see `load_text_encoder`."""
    directory = Path(directory)
    config = PhiConfig.from_released(read_json(directory / "config.json"))
    model = _abstract(lambda: Phi(config, dtype=dtype, rngs=nnx.Rngs(0)), directory / "config.json")
    rules.fill(
        model,
        rules.phi_table(config.num_hidden_layers),
        open_tensors(directory, TEXT_WEIGHTS),
        aliases=rules.PHI_ALIASES,
        shardings=None if mesh is None else parameter_shardings(model, mesh),
    )
    return model


def _config(kind: Callable[..., Any], released: Mapping[str, Any], path: Path) -> Any:
    """The fields of a config dataclass out of a config.json, which holds more."""
    if released.get("act_fn", "silu") not in ("silu", "swish"):
        raise NovaError(f"{path}: act_fn is {released['act_fn']!r}; only 'silu' is known")
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in released.items()
        if name in fields
    }
    try:
        return kind(**values)
    except TypeError as error:
        raise NovaError(f"{path} is incomplete: {error}") from None


def _abstract(make: Callable[[], Any], path: Path) -> Any:
    """What `make` builds of the sizes in a config.json, without its numbers."""
    try:
        return nnx.eval_shape(make)
    except (TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise NovaError(f"{path}: its sizes make no network ({reason})") from None


def _set_dtype(model: nnx.Module, dtype: DTypeLike) -> None:
    """Makes an abstract model's parameters of another type."""
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nnx.state(model))
    nnx.update(model, state)
