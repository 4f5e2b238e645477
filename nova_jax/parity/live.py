"""Records what the PyTorch release computes on a user's own checkpoint, in the golden layout.

Needs torch and the release's package (diffnext); `python -m nova_jax.parity --live DIR` calls it.
The recorded call is small: few steps, at most three latent frames, one prompt.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Literal

from nova_jax.errors import NovaError
from nova_jax.models.config import StageSize
from nova_jax.parity.compare import Arrays

PROMPT = "many spotted jellyfish pulsating under water"
MODULES = ("video_encoder", "image_encoder", "image_decoder")


def record(directory: Path) -> tuple[dict[str, Any], Arrays]:
    """Runs the release on a checkpoint, in float32 on the CPU.

    Returns:
        Arguments of the call, and arrays as in ``golden.safetensors``, of the call ("live") and of
        the parts.

    Raises:
        NovaError: the release's package or torch is not installed, or it cannot load the model.
    """
    try:
        import torch
        from diffnext.pipelines.nova.pipeline_nova import NOVAPipeline
        from diffnext.pipelines.nova.pipeline_nova_c2i import NOVAC2IPipeline
    except ImportError as error:
        raise NovaError(
            f"--live runs the PyTorch release, and {error.name or error} is not installed; "
            "pip install torch diffusers transformers git+https://github.com/baaivision/NOVA"
        ) from error
    labels = not (directory / "text_encoder").is_dir()
    torch.manual_seed(0)
    try:
        parts = _load_parts(torch, directory)
        pipe = (NOVAC2IPipeline if labels else NOVAPipeline)(**parts)
    except Exception as error:  # whatever its loaders raise
        raise NovaError(f"the PyTorch release cannot load {directory}: {error}") from error
    with torch.no_grad():
        arguments, recorded = _record_call(torch, pipe, labels)
        recorded |= _record_autoencoder(torch, pipe.vae)
        return arguments, recorded if labels else recorded | _record_text_encoder(torch, pipe)


def _load_parts(torch: Any, directory: Path) -> dict[str, Any]:
    """The parts that model_index.json names, by the classes it names, in float32."""
    index = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
    _register_sizes(directory)
    parts = {}
    for name, value in index.items():
        if name.startswith("_"):
            continue
        module, kind = value
        if module.split(".")[0] not in ("diffnext", "diffusers", "transformers"):
            raise NovaError(f"model_index.json names {module}.{kind}, which is not the release's")
        loader = getattr(importlib.import_module(module), kind)
        part = loader.from_pretrained(str(directory / name))
        parts[name] = part.float().eval() if isinstance(part, torch.nn.Module) else part
        # The release reads what transformers 5 has moved into a section of its own.
        if name == "text_encoder":
            for key, value in (getattr(part.config, "rope_parameters", None) or {}).items():
                if not hasattr(part.config, key):
                    setattr(part.config, key, value)
    return parts


def _register_sizes(directory: Path) -> None:
    """Tells the release of sizes that it has no name for: it knows the published ones only."""
    from diffnext.models.transformers import transformer_nova as release

    config = json.loads((directory / "transformer" / "config.json").read_text(encoding="utf-8"))
    kinds: tuple[tuple[Literal["vit", "mlp"], Any, Any], ...] = (
        ("vit", release.VIDEO_ENCODERS, release.video_encoder),
        ("vit", release.IMAGE_ENCODERS, release.image_encoder),
        ("mlp", release.IMAGE_DECODERS, release.image_decoder),
    )
    for name, (family, registry, builder) in zip(config["arch"], kinds, strict=True):
        size = StageSize.parse(name, family)
        options = {"depth": size.depth, "embed_dim": size.width}
        if family == "vit":
            options["num_heads"] = size.heads
        if not registry.has(name):
            registry.register(name, **options)(builder)


def _record_call(torch: Any, pipe: Any, labels: bool) -> tuple[dict[str, Any], Arrays]:
    model = pipe.transformer
    frames = model.config.video_base_size[0]
    arguments: dict[str, Any] = {
        "prompt": [7] if labels else [PROMPT],
        "num_inference_steps": 4,
        "num_diffusion_steps": 4,
        "guidance_scale": 5.0,
    }
    if not labels:
        arguments["max_latent_length"] = min(frames, 3)
    noise, orders = [], []
    firsts: Arrays = {}
    denoise, get_pred_mask = model.denoise, model.mask_embed.get_pred_mask

    def denoise_recorded(z: Any, x: Any, *rest: Any, **options: Any) -> Any:
        noise.append(x.clone())
        return denoise(z, x, *rest, **options)

    def mask_recorded(count: int) -> Any:
        mask, ids = get_pred_mask(count)
        orders.append(ids.clone())
        return mask, ids

    def keep_first(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            firsts.setdefault(name, output.float().numpy().copy())

        return hook

    hooks = [getattr(model, name).register_forward_hook(keep_first(name)) for name in MODULES]
    model.denoise, model.mask_embed.get_pred_mask = denoise_recorded, mask_recorded
    try:
        output = pipe(**arguments, output_type="latent", disable_progress_bar=True)
    finally:
        del model.denoise, model.mask_embed.get_pred_mask
        for hook in hooks:
            hook.remove()
    images = output.frames if "frames" in output else output.images
    images = images[:, :, None] if images.ndim == 4 else images
    # All frames of a sample are revealed in the same order.
    order = torch.cat(orders[: len(orders) // images.shape[2]], dim=1)[..., 0]
    call = {f"live.first.{name}": value for name, value in firsts.items()}
    call |= {
        "live.in.order": order.numpy(),
        "live.in.noise": torch.stack(noise).float().numpy(),
        "live.latents": images.float().numpy(),
    }
    return arguments, call


def _record_autoencoder(torch: Any, vae: Any) -> Arrays:
    temporal = "KL" in type(vae).__name__ and type(vae).__name__ != "AutoencoderKL"
    shape = (1, 3, 9, 64, 96) if temporal else (1, 3, 64, 96)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments = vae.encode(pixels.clone()).latent_dist.parameters
    mean = moments[:, : moments.shape[1] // 2]
    latents = vae.scale_(mean.clone())
    decoded = vae.decode(vae.unscale_(latents.clone())).sample
    results = {"in.pixels": pixels, "moments": moments, "latents": latents, "decoded": decoded}
    return {f"vae.{name}": value.float().numpy() for name, value in results.items()}


def _record_text_encoder(torch: Any, pipe: Any) -> Arrays:
    tokens = torch.as_tensor([pipe.tokenizer(PROMPT).input_ids])
    states = pipe.text_encoder(tokens).last_hidden_state
    return {"in.input_ids": tokens.numpy(), "last_hidden_state": states.float().numpy()}
