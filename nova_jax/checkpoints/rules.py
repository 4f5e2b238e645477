"""The one table between the released parameter names and ours, and its audit.

Everything that knows a released name is in this file. A rule maps one released module or tensor
to one of ours. Tensors are transposed as their layout says:

    linear  weight [out, in] ↔ kernel [in, out], bias
    conv    weight [out, in, ...] ↔ kernel [..., in, out], bias
    patch   weight [out, C, p, p] ↔ kernel [p·p·C, out] for tokens in (row, column, channel), bias
    norm    weight ↔ scale, bias
    row     [1, D] ↔ [D]
    same    as it is
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from nova_jax.checkpoints.finite import not_finite, refuse
from nova_jax.checkpoints.tensors import Tensors
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig

Layout = Literal["linear", "conv", "patch", "norm", "row", "same"]
Path = tuple[Any, ...]
Rules = tuple[tuple[str, str, Layout], ...]

_TRANSFORMER_BLOCK: Rules = (
    ("attn.qkv", "attention.qkv", "linear"),
    ("attn.proj", "attention.out", "linear"),
    ("norm1", "norm1", "norm"),
    ("mlp.fc1", "mlp.fc1", "linear"),
    ("mlp.fc2", "mlp.fc2", "linear"),
    ("norm2", "norm2", "norm"),
)
_HEAD_BLOCK: Rules = (
    ("norm1.proj", "modulation", "linear"),
    ("proj.fc1", "mlp.fc1", "linear"),
    ("proj.fc2", "mlp.fc2", "linear"),
    ("norm2", "norm", "norm"),
)
_CONDITION = "image_decoder.time_cond_embed"
_MODULES: Rules = (
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
    ("video_encoder.patch_embed.proj", "temporal_encoder.patch_embed", "patch"),
    ("video_pos_embed.time_proj.0", "temporal_encoder.time_embed.projector.fc1", "linear"),
    ("video_pos_embed.time_proj.2", "temporal_encoder.time_embed.projector.fc2", "linear"),
    ("video_pos_embed.norm", "temporal_encoder.time_embed.norm", "norm"),
    ("video_encoder.norm", "temporal_encoder.norm", "norm"),
    ("video_encoder.mixer.lora", "temporal_encoder.mixer.lowrank", "linear"),
    ("video_encoder.mixer.proj", "temporal_encoder.mixer.projection", "linear"),
    ("image_encoder.patch_embed.proj", "spatial_decoder.patch_embed", "patch"),
    ("image_encoder.norm", "spatial_decoder.norm", "norm"),
    ("image_decoder.patch_embed.proj", "diffusion_head.patch_embed", "patch"),
    (f"{_CONDITION}.timestep_proj.fc1", "diffusion_head.step_embed.fc1", "linear"),
    (f"{_CONDITION}.timestep_proj.fc2", "diffusion_head.step_embed.fc2", "linear"),
    (f"{_CONDITION}.condition_proj.fc1", "diffusion_head.feature_embed.fc1", "linear"),
    (f"{_CONDITION}.condition_proj.fc2", "diffusion_head.feature_embed.fc2", "linear"),
    ("image_decoder.norm.proj", "diffusion_head.final_modulation", "linear"),
    ("image_decoder.head", "diffusion_head.out", "linear"),
)


# Phi's, by the names of transformers; the language head is not part of a text encoder.
_PHI_BLOCK: Rules = (
    ("input_layernorm", "norm", "norm"),
    ("self_attn.q_proj", "query", "linear"),
    ("self_attn.k_proj", "key", "linear"),
    ("self_attn.v_proj", "value", "linear"),
    ("self_attn.dense", "out", "linear"),
    ("mlp.fc1", "fc1", "linear"),
    ("mlp.fc2", "fc2", "linear"),
)
_PHI_MODULES: Rules = (
    ("embed_tokens.weight", "embed.embedding", "same"),
    ("final_layernorm", "norm", "norm"),
)

Alias = tuple[str, str]
# Other spellings of a key, as (regular expression, replacement), applied one after the other.
PHI_ALIASES: tuple[Alias, ...] = ((r"^model\.", ""),)
AUTOENCODER_ALIASES: tuple[Alias, ...] = (
    # Before diffusers 0.18.
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
    # Wrappers around a single layer.
    (r"(\w*conv\w*)\.conv\.(weight|bias)$", r"\1.\2"),
    (r"\.norm_layer\.", "."),
    (r"\.timestep_embedder\.", "."),
    # The release's own spellings, of CogVideoX's and LTX-Video's.
    (r"(norm\w*)\.scale\.", r"\1.conv_y."),
    (r"(norm\w*)\.shift\.", r"\1.conv_b."),
    (r"time_embed\.timestep_proj\.fc(\d)", r"time_embedder.linear_\1"),
    (r"\.timestep_scale$", ".timestep_scale_multiplier"),
)
# Keys that are read over, by name: what a component's file may hold besides it.
DROPPED = r"^lm_head\.|\.rotary_emb\.inv_freq$|^latents_(mean|std)$|^(shift|scaling)_factors$"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One released tensor and its place among ours.

    Attributes:
        released: its name in the release.
        path: path of our variable.
        layout: how the two are transposed.
        block: index on the leading depth axis of ours, None where it has none.
        patch: (side, channels) of a "patch" layout.
    """

    released: str
    path: Path
    layout: Layout
    block: int | None = None
    patch: tuple[int, int] = (1, 1)

    def to_native(self, tensor: np.ndarray) -> np.ndarray:
        """The released tensor in our layout."""
        if self.layout == "linear" and tensor.ndim >= 2 and set(tensor.shape[2:]) <= {1}:
            return tensor.reshape(tensor.shape[:2]).T
        if self.layout == "conv" and tensor.ndim > 2:
            return np.moveaxis(tensor, (0, 1), (-1, -2))
        if self.layout == "patch" and tensor.ndim == 4:
            return rearrange(tensor, "d c p q -> (p q c) d")
        if self.layout == "row" and tensor.ndim == 2 and tensor.shape[0] == 1:
            return tensor[0]
        return tensor

    def to_released(self, tensor: np.ndarray) -> np.ndarray:
        """The inverse of `to_native`."""
        if self.layout == "linear" and tensor.ndim == 2:
            return tensor.T
        if self.layout == "conv" and tensor.ndim > 2:
            return np.moveaxis(tensor, (-1, -2), (0, 1))
        if self.layout == "patch" and tensor.ndim == 2:
            side, channels = self.patch
            return rearrange(tensor, "(p q c) d -> d c p q", p=side, q=side, c=channels)
        return tensor[None] if self.layout == "row" else tensor


def transformer_table(config: NovaConfig, variables: Mapping[Path, Any]) -> list[Entry]:
    """Every released tensor of a transformer of this size.

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
    entries: list[Entry] = []
    for source, target, layout in _MODULES:
        side = config.patch_size * (2 if target.startswith("temporal_encoder") else 1)
        entries += _tensors(source, target, layout, patch=(side, config.latent_channels))
    for source, offset, depth, target, rules in stacks:
        for i in range(depth):
            for block_source, block_target, layout in rules:
                released = f"{source}.blocks.{offset + i}.{block_source}"
                entries += _tensors(released, f"{target}.block.{block_target}", layout, i)
    return [entry for entry in entries if entry.path in variables]


def phi_table(depth: int) -> list[Entry]:
    """Every tensor of a Phi text encoder."""
    entries = [entry for rule in _PHI_MODULES for entry in _tensors(*rule)]
    for i in range(depth):
        for source, target, layout in _PHI_BLOCK:
            entries += _tensors(f"layers.{i}.{source}", f"blocks.block.{target}", layout, i)
    return entries


#: Of a text encoder by its ``model_type``: the table for a depth, and other spellings.
TEXT_ENCODERS: dict[str, tuple[Callable[[int], list[Entry]], Sequence[Alias]]] = {
    "phi": (phi_table, PHI_ALIASES)
}


def autoencoder_table(variables: Mapping[Path, Any]) -> list[Entry]:
    """Every tensor of an autoencoder, whose modules are named as the released ones."""
    entries = []
    for path, variable in variables.items():
        *modules, leaf = path
        layout: Layout = "norm" if leaf == "scale" else "same"
        if leaf == "kernel":
            layout = "linear" if len(variable.shape) == 2 else "conv"
        released = leaf if layout == "same" else "weight"
        entries.append(Entry(".".join(map(str, [*modules, released])), path, layout))
    return entries


def _tensors(
    released: str,
    target: str,
    layout: Layout,
    block: int | None = None,
    patch: tuple[int, int] = (1, 1),
) -> Iterator[Entry]:
    """The tensors of one rule: weight and bias of a module, or a tensor by itself."""
    if layout in ("same", "row"):
        yield Entry(released, tuple(target.split(".")), layout, block, patch)
        return
    weight = "scale" if layout == "norm" else "kernel"
    for suffix, name in (("weight", weight), ("bias", "bias")):
        yield Entry(f"{released}.{suffix}", (*target.split("."), name), layout, block, patch)


def fill(
    model: nnx.Module,
    entries: Sequence[Entry],
    tensors: Tensors,
    *,
    aliases: Sequence[Alias] = (),
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> None:
    """Fills a model's variables, which may be abstract, from released tensors.

    Each goes to its devices as it is read, in the type of the variable: on the host there is never
    more than one.

    Args:
        model: is changed in place.
        entries: its table.
        tensors: the released ones.
        aliases: other spellings of the released names.
        shardings: where variables live, by dotted path; by default on the first device.

    Raises:
        NovaError: naming every tensor that is missing, unknown, there twice or of another shape,
            and nothing is read then; or those that are not finite in the type of the variable.
    """
    variables = dict(nnx.to_flat_state(nnx.state(model)))
    if unfilled := set(variables) - {entry.path for entry in entries}:
        raise AssertionError(f"no rule fills {sorted(map(str, unfilled))}")
    names: dict[str, str] = {}
    problems = []
    for name in tensors:
        known = name
        for pattern, spelling in aliases:
            known = re.sub(pattern, spelling, known)
        if known in names:
            problems.append(f"{name} and {names[known]} are the same tensor")
        names[known] = name
    wanted = {entry.released for entry in entries}
    problems += [f"missing {name}" for name in sorted(wanted - set(names))]
    unknown = [names[name] for name in sorted(set(names) - wanted)]
    problems += [f"unknown {name}" for name in unknown if not re.search(DROPPED, name)]
    for entry in entries:
        if entry.released not in names:
            continue
        name, shape = names[entry.released], variables[entry.path].get_value().shape
        shape = shape if entry.block is None else shape[1:]
        given = entry.to_native(np.broadcast_to(np.empty((), np.int8), tensors.shapes[name])).shape
        if given != shape:
            problems.append(f"{name} has shape {list(given)}, the model needs {list(shape)}")
    if problems:
        raise NovaError(f"{tensors.source} does not fit its config.json: {'; '.join(problems)}")

    filled: dict[Path, jax.Array] = {}
    for entry in entries:
        variable = variables[entry.path].get_value()
        sharding = None if shardings is None else shardings[".".join(map(str, entry.path))]
        value = entry.to_native(tensors[names[entry.released]]).astype(variable.dtype)
        if entry.block is None:
            filled[entry.path] = jax.device_put(value, sharding)
            continue
        if entry.path not in filled:
            filled[entry.path] = jnp.zeros(variable.shape, variable.dtype, device=sharding)
        filled[entry.path] = _insert(filled[entry.path], value, entry.block)
    _check_finite(filled, entries, names, tensors.source)
    flat = [(path, variable.replace(filled[path])) for path, variable in variables.items()]
    nnx.update(model, nnx.from_flat_state(flat))


def _check_finite(
    filled: Mapping[Path, jax.Array],
    entries: Sequence[Entry],
    names: Mapping[str, str],
    source: str,
) -> None:
    """Raises a `NovaError` with the names that tensors have in their file."""
    flagged = not_finite({".".join(map(str, path)): array for path, array in filled.items()})
    found: dict[str, str] = {}
    for entry in entries:
        if ".".join(map(str, entry.path)) in flagged:
            array = filled[entry.path]
            value = array if entry.block is None else array[entry.block]
            found |= not_finite({names[entry.released]: value})
    refuse(found, source, "fetch it again, or use a wider dtype")


@functools.partial(jax.jit, donate_argnums=0)
def _insert(stack: jax.Array, value: jax.Array, index: int) -> jax.Array:
    """Writes one block's values into the stack of all blocks', in place."""
    return jax.lax.dynamic_update_index_in_dim(stack, value, index, axis=0)


def to_released(
    config: NovaConfig, variables: Mapping[Path, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Our transformer's variables (arrays by path) under released names, in released layouts."""
    for entry in transformer_table(config, variables):
        value = np.asarray(
            variables[entry.path]
            if entry.block is None
            else jax.lax.index_in_dim(variables[entry.path], entry.block, keepdims=False)
        )
        yield entry.released, entry.to_released(value)
