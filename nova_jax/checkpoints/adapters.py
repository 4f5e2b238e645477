"""Low-rank adapters: added to a model's kernels, and as files of their own in peft's form.

    adapter_config.json          rank, alpha, the modules that have adapters
    adapter_model.safetensors    base_model.model.MODULE.lora_A.weight [rank, in]
                                 base_model.model.MODULE.lora_B.weight [out, rank]

Modules have their released names, so that ``peft.PeftModel.from_pretrained`` puts the adapters on
the released transformer.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nova_jax.checkpoints import rules
from nova_jax.checkpoints.finite import check_finite
from nova_jax.checkpoints.tensors import write_safetensors
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova

# What an adapter's two matrices are called, after the path of its kernel.
A, B = ".a", ".b"


def adapter_scale(rank: int, alpha: float) -> float:
    """What the product of A and B is multiplied with."""
    return alpha / rank


def apply_adapters(
    variables: Mapping[str, jax.Array], adapters: Mapping[str, jax.Array], scale: float
) -> dict[str, jax.Array]:
    """A model's variables by path, with every adapter added to its kernel."""
    merged = dict(variables)
    for path, a in adapters.items():
        if path.endswith(A):
            name = path.removesuffix(A)
            merged[name] = merged[name] + scale * jnp.matmul(a, adapters[name + B])
    return merged


def save_adapters(
    directory: str | os.PathLike[str],
    *,
    adapters: Mapping[str, np.ndarray],
    rank: int,
    alpha: float,
    model: NovaConfig,
    base: str,
) -> None:
    """Writes adapters of `model`, which is found at `base`, replacing earlier ones.

    They are by path, as `nova_jax.training.lora` names them; there is what rank and alpha are.

    Raises:
        NovaError: one is not finite; earlier ones stay then.
    """
    directory = Path(directory)
    check_finite(adapters, f"{directory} was not written", "use an earlier checkpoint")
    directory.mkdir(parents=True, exist_ok=True)
    abstract = nnx.eval_shape(lambda: Nova(model, rngs=nnx.Rngs(0)))
    variables = dict(nnx.to_flat_state(nnx.state(abstract)))
    modules = []

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for entry in rules.transformer_table(model, variables):
            path = ".".join(map(str, entry.path))
            if path + A not in adapters:
                continue
            pair = (adapters[path + kind] for kind in (A, B))
            a, b = (value if entry.block is None else value[entry.block] for value in pair)
            module = entry.released.removesuffix(".weight")
            modules.append(module)
            yield f"base_model.model.{module}.lora_A.weight", entry.to_released(a)
            # Of a convolution, B is one of a single pixel.
            b = b.T[..., None, None] if entry.layout == "patch" else b.T
            yield f"base_model.model.{module}.lora_B.weight", b

    write_safetensors(directory, "adapter_model", tensors())
    described = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
    }
    (directory / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")
