"""Low-rank adapters as files of their own, by the names that PyTorch's peft library gives them.

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

import numpy as np
from flax import nnx

from nova_jax.checkpoints import rules
from nova_jax.checkpoints.tensors import write_safetensors
from nova_jax.models.config import NovaConfig
from nova_jax.models.lora import LoraConfig
from nova_jax.models.nova import Nova


def save_adapters(
    directory: str | os.PathLike[str],
    *,
    adapters: Mapping[str, np.ndarray],
    config: LoraConfig,
    model: NovaConfig,
    base: str,
) -> None:
    """Writes adapters, replacing earlier ones.

    Args:
        directory: where to.
        adapters: by path, as `nova_jax.models.lora` names them.
        config: what they are.
        model: the model that they adapt.
        base: where that is found.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    abstract = nnx.eval_shape(lambda: Nova(model, rngs=nnx.Rngs(0)))
    variables = dict(nnx.to_flat_state(nnx.state(abstract)))
    modules = []

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for entry in rules.transformer_table(model, variables):
            path = ".".join(map(str, entry.path))
            if f"{path}.a" not in adapters:
                continue
            pair = (adapters[f"{path}.{kind}"] for kind in ("a", "b"))
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
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
    }
    (directory / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")
