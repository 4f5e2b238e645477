"""The released layout: a directory in diffusers' form, or its id on the Hugging Face hub.

    model_index.json   the parts and their classes
    transformer/  scheduler/  vae/  text_encoder/  tokenizer/

Every part has a config.json (or the like) that says what it is, and its weights.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from nova_jax import files
from nova_jax.autoencoders.codec import AutoencoderCodec
from nova_jax.autoencoders.registry import AUTOENCODERS
from nova_jax.checkpoints import rules
from nova_jax.checkpoints.finite import check_finite
from nova_jax.checkpoints.tensors import open_tensors
from nova_jax.config import Checked, Count, from_dict, to_plain
from nova_jax.distributed.mesh import MeshLayout, parameter_shardings
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.sampling.schedules import DDPMSchedule, FlowMatchingSchedule, Schedule
from nova_jax.text.interface import TextEncoder
from nova_jax.text.registry import LANGUAGE_MODELS

LAYOUT = (
    "model_index.json", "transformer/", "scheduler/", "vae/", "text_encoder/", "tokenizer/",
)  # fmt: skip
NUM_CLASSES = 1000  # of every class-conditional release; config.json does not say
WEIGHTS = "diffusion_pytorch_model"  # of transformers and autoencoders
TEXT_WEIGHTS = ("model", "pytorch_model")
_SCHEDULERS: dict[str, type[Schedule]] = {
    "FlowMatchEulerDiscreteScheduler": FlowMatchingSchedule,
    "DDPMScheduler": DDPMSchedule,
}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a released model.

    Raises:
        NovaError: if the file is missing or is not one.
    """
    try:
        return files.read_json(path, "fetch it again")
    except (FileNotFoundError, NotADirectoryError):
        raise NovaError(
            f"{path} is missing; is this a model in the released layout? It has {', '.join(LAYOUT)}"
        ) from None


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """Says which file a problem is in."""
    try:
        yield
    except NovaError as error:
        raise NovaError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Transformer(Checked):
    """What ``transformer/config.json`` says, by its names there."""

    arch: tuple[str, str, str]
    image_dim: int
    image_size: int | tuple[int, int]
    image_stride: Count
    image_base_size: tuple[int, int]
    video_base_size: tuple[int, int, int]
    video_mixer_rank: int | None = None
    rotary_pos_embed: bool | None = None
    text_token_dim: int | None = None
    text_token_len: int | None = None


def config_from_released(released: Mapping[str, Any]) -> NovaConfig:
    """Our configuration from the release's ``transformer/config.json``.

    Raises:
        NovaError: if the sizes contradict each other, are missing or of another type, or a field is
            not known.
    """
    with _named("transformer/config.json"):
        given = from_dict(_Transformer, {k: v for k, v in released.items() if k[0] != "_"})
        size, stride = given.image_size, given.image_stride
        height, width = (size, size) if isinstance(size, int) else size
        temporal_encoder, spatial_decoder, diffusion_head = given.arch
        frames, *temporal_grid = given.video_base_size
        config = NovaConfig(
            latent_channels=given.image_dim,
            latent_size=(height // stride, width // stride),
            patch_size=15 // stride + 1,
            temporal_encoder=temporal_encoder,
            spatial_decoder=spatial_decoder,
            diffusion_head=diffusion_head,
            frames=frames,
            text_dim=given.text_token_dim,
            text_length=given.text_token_len if given.text_token_dim else None,
            num_classes=None if given.text_token_dim else NUM_CLASSES,
            mixer_rank=given.video_mixer_rank,
            rotary=bool(given.rotary_pos_embed),
        )
        base = (given.image_base_size, tuple(temporal_grid))
        if base != (config.grid, config.temporal_grid):
            raise NovaError(
                f"image_base_size {base[0]} and video_base_size {base[1]} do not match the token "
                f"grids {config.grid} and {config.temporal_grid} of image_size"
            )
    return config


def schedule_from_released(released: Mapping[str, Any]) -> Schedule:
    """Our schedule from the release's ``scheduler/scheduler_config.json``.

    Raises:
        NovaError: on a scheduler class or option that the model cannot be sampled with.
    """
    with _named("scheduler_config.json"):
        name = str(released.get("_class_name"))
        if name not in _SCHEDULERS:
            raise NovaError(f"unknown scheduler {name!r}; known: {', '.join(_SCHEDULERS)}")
        if released.get("use_dynamic_shifting"):
            raise NovaError("use_dynamic_shifting is not part of NOVA")
        kind: type[Any] = _SCHEDULERS[name]
        return from_dict(kind, released, ignore_unknown=True)


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
    values = to_plain(schedule)
    del values["type"]
    names = {kind: name for name, kind in _SCHEDULERS.items()}
    return {"_class_name": names[type(schedule)], **values}


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
    _, config, network = _abstract(AUTOENCODERS, "_class_name", directory, dtype)
    variables = {p: v.get_value() for p, v in nnx.to_flat_state(nnx.state(network))}
    tensors = open_tensors(directory, [WEIGHTS])
    rules.fill(
        network,
        rules.autoencoder_table(variables),
        tensors,
        aliases=rules.AUTOENCODER_ALIASES,
        shardings=None if mesh is None else parameter_shardings(network, mesh),
    )
    scale: Any = config.scaling_factor
    shift: Any = config.shift_factor or 0.0
    if "scaling_factors" in tensors:  # the release's LTX-Video: one for each channel
        shift, scale = (np.ravel(tensors[f"{kind}_factors"]) for kind in ("shift", "scaling"))
    elif "latents_std" in tensors:  # diffusers'
        with np.errstate(divide="ignore"):
            scale = scale / np.ravel(tensors["latents_std"])
        shift = np.ravel(tensors["latents_mean"])
    latents = {"scale": np.asarray(scale), "shift": np.asarray(shift)}
    check_finite(latents, f"{directory}, what latents are brought to", "fetch it again")
    source = directory.parent if directory.name == "vae" else None
    return AutoencoderCodec(network, scale=scale, shift=shift, source=source)


def load_text_encoder(
    directory: str | Path, *, dtype: DTypeLike = jnp.float32, mesh: MeshLayout | None = None
) -> TextEncoder:
    """Loads ``text_encoder/`` and ``tokenizer/`` of a directory in the released layout.

    Args:
        directory: the model's.
        dtype: type of its parameters and of the computation; norms and softmax stay float32.
        mesh: devices that parameters are put on; by default all on the first.

    Raises:
        NovaError: naming what is missing, unknown, damaged or of another shape.
    """
    directory = Path(directory)
    network = load_language_model(directory / "text_encoder", dtype=dtype, mesh=mesh)
    kind = read_json(directory / "text_encoder" / "config.json")["model_type"]
    return LANGUAGE_MODELS[kind].load(network, directory / "tokenizer")


def load_language_model(
    directory: str | Path, *, dtype: DTypeLike = jnp.float32, mesh: MeshLayout | None = None
) -> Any:
    """Loads the network of a text encoder, in transformers' layout; see `load_text_encoder`."""
    kind, config, network = _abstract(LANGUAGE_MODELS, "model_type", Path(directory), dtype)
    table, aliases = rules.TEXT_ENCODERS[kind]
    rules.fill(
        network,
        table(config.num_hidden_layers),
        open_tensors(Path(directory), TEXT_WEIGHTS),
        aliases=aliases,
        shardings=None if mesh is None else parameter_shardings(network, mesh),
    )
    return network


def _abstract(
    table: Mapping[str, Any], key: str, directory: Path, dtype: DTypeLike
) -> tuple[str, Any, Any]:
    """The kind and the sizes in a config.json, and their network without its numbers.

    The kind is the value of `key`, of which the last part counts; `table` is a registry of kinds.
    """
    path = directory / "config.json"
    released = read_json(path)
    name = str(released.get(key)).split(".")[-1]
    if name not in table:
        raise NovaError(f"{path}: unknown {key} {name!r}; known: {', '.join(table)}")
    # Newer versions of transformers keep what concerns positions in a section of its own.
    released |= released.get("rope_parameters") or {}
    with _named(path):
        config = from_dict(table[name].config, released, ignore_unknown=True)
    try:
        network = nnx.eval_shape(lambda: table[name].network(config, dtype=dtype, rngs=nnx.Rngs(0)))
        return name, config, network
    except (TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise NovaError(f"{path}: its sizes make no network ({reason})") from None


def _set_dtype(model: nnx.Module, dtype: DTypeLike) -> None:
    """Makes an abstract model's parameters of another type."""
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nnx.state(model))
    nnx.update(model, state)
