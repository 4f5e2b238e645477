"""Transformers in 8 bits: what rounding costs, and that nothing else does."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nova_jax.distributed.memory import device_bytes
from nova_jax.distributed.mesh import MeshConfig, make_mesh
from nova_jax.errors import NovaError
from nova_jax.models.quantization import quantize
from nova_jax.pipeline import NovaPipeline

RELEASED = Path(__file__).parents[1] / "golden" / "pipeline_t2v"
CALL = dict(seed=3, num_inference_steps=2, num_diffusion_steps=4, max_latent_length=2)
PROMPTS = ["a red seven", "a blue three"]


@pytest.fixture(scope="module")
def whole() -> NovaPipeline:
    return NovaPipeline.from_pretrained(RELEASED, devices=jax.devices()[:1])


def values(model: nnx.Module) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.asarray(value.get_value()) for path, value in flat}


def test_matrices_of_blocks_are_rounded_by_channel(whole):
    before, after = values(whole.model), values(quantize(whole.model))
    small = {name for name, value in after.items() if value.dtype == np.int8}
    assert {name.split(".")[0] for name in small} == {"temporal_encoder", "spatial_decoder"}
    assert all("blocks" in name and name.endswith(".kernel") for name in small)
    assert len(small) == 3 * 4  # stacks of blocks, and each block's matrices
    for name in small:
        scale = after[name.removesuffix("kernel") + "scale"][:, None]
        assert np.abs(after[name]).max(axis=1).min() == 127  # every channel uses the whole range
        assert np.abs(after[name] * scale - before[name]).max() <= 0.501 * scale.max()
    others = before.keys() - small
    assert all(np.array_equal(before[name], after[name]) for name in others)


def test_a_channel_of_zeros_stays_one(whole):
    model = nnx.clone(whole.model)
    kernel = model.spatial_decoder.encoder_blocks.block.mlp.fc1.kernel
    kernel.set_value(kernel.get_value().at[:, :, 0].set(0))
    made = quantize(model).spatial_decoder.encoder_blocks.block.mlp.fc1
    assert not made.kernel.get_value()[:, :, 0].any() and jnp.isfinite(made.scale[...]).all()


def test_it_computes_what_the_rounded_matrices_say(whole):
    quantized = quantize(whole.model)
    rounded = nnx.clone(whole.model)
    layers = dict(nnx.iter_modules(quantized))
    for path, layer in nnx.iter_modules(rounded):
        if getattr(layers[path], "scale", None) is not None and hasattr(layer, "kernel"):
            q, scale = layers[path].kernel.get_value(), layers[path].scale.get_value()
            layer.kernel.set_value(q * scale[:, None])
    x = jax.random.normal(jax.random.key(0), (2, 5, whole.config.width))
    for stack in ("encoder_blocks", "decoder_blocks"):
        one, other = (getattr(m.spatial_decoder, stack) for m in (quantized, rounded))
        a, b = one(x, None, None), other(x, None, None)
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_videos_are_nearly_the_same_for_half_the_memory(whole):
    small = NovaPipeline.from_pretrained(
        RELEASED, devices=jax.devices()[:1], param_dtype="int8", offload=True
    )
    latents, exact = (p(PROMPTS, output_type="latent", **CALL).latents for p in (small, whole))
    error = np.abs(latents - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 5e-2
    kernels = [v for v in values(small.model).values() if v.dtype == np.int8]
    saved = device_bytes(nnx.state(whole.model)) - device_bytes(nnx.state(small.model))
    assert saved > 2.9 * sum(kernel.nbytes for kernel in kernels)  # of float32


def test_it_lies_on_a_mesh_as_its_kernels_do(whole):
    mesh = make_mesh(jax.devices()[:2], MeshConfig(fsdp=2))
    spread = NovaPipeline.from_pretrained(RELEASED, mesh=mesh, param_dtype="int8")
    alone = NovaPipeline.from_pretrained(RELEASED, devices=jax.devices()[:1], param_dtype="int8")
    kernel = spread.model.spatial_decoder.encoder_blocks.block.mlp.fc1.kernel.get_value()
    assert not kernel.sharding.is_fully_replicated
    a, b = (p(PROMPTS, output_type="latent", **CALL).latents for p in (spread, alone))
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_what_is_in_8_bits_is_not_saved(tmp_path):
    pipeline = NovaPipeline.from_checkpoint(param_dtype="int8")
    with pytest.raises(NovaError, match="load it without param_dtype='int8'"):
        pipeline.save_pretrained(tmp_path / "saved")
    with pytest.raises(NovaError, match="param_dtype is 'int4'; .*int8"):
        NovaPipeline.from_checkpoint(param_dtype="int4")
