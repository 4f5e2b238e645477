"""The one table between the released parameter names and ours, and its audit.

Everything that knows a released name is in this file. A rule maps one released module or tensor
to one of ours; `{i}` stands for a block. Tensors are transposed as their layout says:

    linear  weight [out, in] ↔ kernel [in, out], bias
    conv    weight [out, C, p, p] ↔ kernel [p·p·C, out] for tokens in (row, column, channel), bias
    norm    weight ↔ scale, bias
    row     [1, D] ↔ [D]
    same    as it is
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from einops import rearrange
from flax import nnx

from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig

Layout = Literal["linear", "conv", "norm", "row", "same"]

_TRANSFORMER_BLOCK: tuple[tuple[str, str, Layout], ...] = (
    ("attn.qkv", "attention.qkv", "linear"),
    ("attn.proj", "attention.out", "linear"),
    ("norm1", "norm1", "norm"),
    ("mlp.fc1", "mlp.fc1", "linear"),
    ("mlp.fc2", "mlp.fc2", "linear"),
    ("norm2", "norm2", "norm"),
)
_HEAD_BLOCK: tuple[tuple[str, str, Layout], ...] = (
    ("norm1.proj", "modulation", "linear"),
    ("proj.fc1", "mlp.fc1", "linear"),
    ("proj.fc2", "mlp.fc2", "linear"),
    ("norm2", "norm", "norm"),
)
_MODULES: tuple[tuple[str, str, Layout], ...] = (
    ("text_embed.weight", "text_embed.buffer", "same"),
    ("text_embed.proj", "text_embed.projection", "linear"),
    ("text_embed.norm", "text_embed.norm", "norm"),
    ("label_embed.weight", "label_embed.table", "same"),
    ("label_embed.norm", "label_embed.norm", "norm"),
    ("motion_embed.flow_proj.0", "motion_embed.flow.fc1", "linear"),
    ("motion_embed.flow_proj.2", "motion_embed.flow.fc2", "linear"),
    ("motion_embed.fps_proj.0", "motion_embed.fps.fc1", "linear"),
    ("motion_embed.fps_proj.2", "motion_embed.fps.fc2", "linear"),
    ("mask_embed.bos_token", "temporal_encoder.bos_token", "row"),
    ("mask_embed.mask_token", "spatial_decoder.mask_token", "row"),
    ("video_encoder.patch_embed.proj", "temporal_encoder.patch_embed", "conv"),
    ("video_pos_embed.time_proj.0", "temporal_encoder.time_embed.projector.fc1", "linear"),
    ("video_pos_embed.time_proj.2", "temporal_encoder.time_embed.projector.fc2", "linear"),
    ("video_pos_embed.norm", "temporal_encoder.time_embed.norm", "norm"),
    ("video_encoder.norm", "temporal_encoder.norm", "norm"),
    ("video_encoder.mixer.lora", "temporal_encoder.mixer.lowrank", "linear"),
    ("video_encoder.mixer.proj", "temporal_encoder.mixer.projection", "linear"),
    ("image_encoder.patch_embed.proj", "spatial_decoder.patch_embed", "conv"),
    ("image_encoder.norm", "spatial_decoder.norm", "norm"),
    ("image_decoder.patch_embed.proj", "diffusion_head.patch_embed", "conv"),
    ("image_decoder.time_cond_embed.timestep_proj.fc1", "diffusion_head.step_embed.fc1", "linear"),
    ("image_decoder.time_cond_embed.timestep_proj.fc2", "diffusion_head.step_embed.fc2", "linear"),
    (
        "image_decoder.time_cond_embed.condition_proj.fc1",
        "diffusion_head.feature_embed.fc1",
        "linear",
    ),
    (
        "image_decoder.time_cond_embed.condition_proj.fc2",
        "diffusion_head.feature_embed.fc2",
        "linear",
    ),
    ("image_decoder.norm.proj", "diffusion_head.final_modulation", "linear"),
    ("image_decoder.head", "diffusion_head.out", "linear"),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One released tensor and its place among ours.

    Attributes:
        released: its name in the release.
        path: path of our variable.
        block: index on the leading depth axis of ours, None where it has none.
        layout: how the two are transposed.
        patch: (side, channels) of a "conv" layout.
    """

    released: str
    path: tuple[str, ...]
    block: int | None
    layout: Layout
    patch: tuple[int, int]

    def to_native(self, tensor: np.ndarray) -> np.ndarray:
        """The released tensor in our layout."""
        if self.layout == "linear" and tensor.ndim == 2:
            return tensor.T
        if self.layout == "conv" and tensor.ndim == 4:
            return rearrange(tensor, "d c p q -> (p q c) d")
        if self.layout == "row" and tensor.ndim == 2 and tensor.shape[0] == 1:
            return tensor[0]
        return tensor

    def to_released(self, tensor: np.ndarray) -> np.ndarray:
        """The inverse of `to_native`."""
        if self.layout == "linear" and tensor.ndim == 2:
            return tensor.T
        if self.layout == "conv" and tensor.ndim == 2:
            side, channels = self.patch
            return rearrange(tensor, "(p q c) d -> d c p q", p=side, q=side, c=channels)
        return tensor[None] if self.layout == "row" else tensor


def table(config: NovaConfig, variables: Mapping[tuple[Any, ...], Any]) -> list[Entry]:
    """Every released tensor of a model of this size.

    Args:
        config: the model's configuration.
        variables: our variables by path; rules for parts the model lacks are left out.
    """
    temporal, spatial = config.temporal_encoder_size.depth, config.spatial_decoder_size.depth
    half, head = spatial // 2, config.diffusion_head_size.depth
    rest = spatial - half
    stacks = (
        ("video_encoder", 0, temporal, "temporal_encoder.blocks", _TRANSFORMER_BLOCK),
        ("image_encoder", 0, half, "spatial_decoder.encoder_blocks", _TRANSFORMER_BLOCK),
        ("image_encoder", half, rest, "spatial_decoder.decoder_blocks", _TRANSFORMER_BLOCK),
        ("image_decoder", 0, head, "diffusion_head.blocks", _HEAD_BLOCK),
    )
    entries = []
    for source, target, layout in _MODULES:
        entries += list(_tensors(config, source, target, layout, None))
    for source, offset, depth, target, rules in stacks:
        for i in range(depth):
            for block_source, block_target, layout in rules:
                released = f"{source}.blocks.{offset + i}.{block_source}"
                entries += _tensors(config, released, f"{target}.block.{block_target}", layout, i)
    return [entry for entry in entries if entry.path in variables]


def _tensors(
    config: NovaConfig, released: str, target: str, layout: Layout, block: int | None
) -> Iterator[Entry]:
    """The tensors of one rule: weight and bias of a module, or a tensor by itself."""
    side = config.patch_size * (2 if target.startswith("temporal_encoder") else 1)
    patch = (side, config.latent_channels)
    if layout in ("same", "row"):
        yield Entry(released, tuple(target.split(".")), block, layout, patch)
        return
    weight = "scale" if layout == "norm" else "kernel"
    for suffix, name in (("weight", weight), ("bias", "bias")):
        yield Entry(f"{released}.{suffix}", (*target.split("."), name), block, layout, patch)


def to_native(config: NovaConfig, model: nnx.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Fills a model's variables from released tensors, widened to float32.

    Raises:
        NovaError: naming every tensor that is missing, unknown or of another shape.
    """
    variables = dict(nnx.to_flat_state(nnx.state(model)))
    entries = table(config, variables)
    problems = [f"missing {e.released}" for e in entries if e.released not in tensors]
    problems += [f"unknown {name}" for name in sorted(set(tensors) - {e.released for e in entries})]
    if unfilled := set(variables) - {entry.path for entry in entries}:
        raise AssertionError(f"no rule fills {sorted(unfilled)}")
    filled: dict[tuple[Any, ...], np.ndarray] = {}
    for entry in entries:
        if entry.released not in tensors:
            continue
        value = entry.to_native(np.asarray(tensors[entry.released]))
        shape = variables[entry.path].get_value().shape
        wanted = shape if entry.block is None else shape[1:]
        if value.shape != wanted:
            problems.append(f"{entry.released} has shape {value.shape}, the model needs {wanted}")
            continue
        target = filled.setdefault(entry.path, np.zeros(shape, np.float32))
        target[... if entry.block is None else entry.block] = value
    if problems:
        raise NovaError(f"the weights do not fit the model's config.json: {'; '.join(problems)}")
    state = nnx.state(model)
    flat = nnx.to_flat_state(state)
    nnx.update(model, nnx.from_flat_state([(p, v.replace(filled[p])) for p, v in flat]))


def to_released(
    config: NovaConfig, variables: Mapping[tuple[Any, ...], Any]
) -> dict[str, np.ndarray]:
    """Our variables (arrays by path) under their released names and layouts."""
    tensors = {}
    for entry in table(config, variables):
        value = np.asarray(variables[entry.path])
        value = value if entry.block is None else value[entry.block]
        tensors[entry.released] = entry.to_released(value)
    return tensors
