"""The released layout: a directory with diffusers' ``transformer/`` and ``scheduler/``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError

from nova_jax.checkpoints import rules
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.sampling.schedules import DDPMSchedule, FlowMatchingSchedule, Schedule

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


def read_tensors(directory: Path, stem: str = "diffusion_pytorch_model") -> dict[str, np.ndarray]:
    """Reads ``{stem}.safetensors``.

    Raises:
        NovaError: if the file is missing or damaged.
    """
    path = directory / f"{stem}.safetensors"
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise NovaError(f"{path} is missing; is this a model in the released layout?") from None
    except SafetensorError as error:
        raise NovaError(f"{path} is damaged ({error}); fetch it again") from None


def config_from_released(released: Mapping[str, Any]) -> NovaConfig:
    """Our configuration from the release's ``transformer/config.json``.

    Raises:
        NovaError: if the sizes contradict each other or are missing.
    """
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


def load_transformer(
    directory: str | Path, *, dtype: DTypeLike = jnp.float32
) -> tuple[Nova, Schedule]:
    """Loads ``transformer/`` and ``scheduler/`` of a directory in the released layout.

    Args:
        directory: the model's directory.
        dtype: compute type; parameters are float32.

    Raises:
        NovaError: naming what is missing, unknown, damaged or of another shape.
    """
    directory = Path(directory)
    config = config_from_released(read_json(directory / "transformer" / "config.json"))
    schedule = schedule_from_released(read_json(directory / "scheduler" / "scheduler_config.json"))
    model = nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0), dtype=dtype))
    rules.to_native(config, model, read_tensors(directory / "transformer"))
    return model, schedule
