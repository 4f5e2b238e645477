"""The frozen parts, against diffusers and transformers where those and torch are installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nova_jax.autoencoders import convolution
from nova_jax.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from nova_jax.checkpoints.diffusers import load_autoencoder, load_language_model

SMALL = {"norm_num_groups": 4, "latent_channels": 3}
LTX = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 6,
    "block_out_channels": (8, 8, 16, 16, 32),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "decoder_block_out_channels": (16, 32, 64),
    "layers_per_block": (1, 2, 1, 1, 2),
    "decoder_layers_per_block": (1, 2, 1, 2),
    "spatio_temporal_scaling": (True, True, True, True),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "decoder_inject_noise": (False, False, False, False),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
    "patch_size": 4,
    "encoder_causal": True,
    "decoder_causal": False,
}


def randomize(model):
    """Seeded weights away from special values: zeros, and ones in norms."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.1 if parameter.ndim < 2 else 0.02))
    return model.eval()


def relative(ours, theirs) -> float:
    ours, theirs = np.asarray(ours), theirs.numpy()
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def first(x):
    """[B, T, H, W, C] as torch has it."""
    return np.moveaxis(np.asarray(x), -1, 1)


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        {"block_out_channels": (8, 16), "layers_per_block": 2},
        {"block_out_channels": (8, 8, 16), "shift_factor": 0.1, "use_quant_conv": False,
         "use_post_quant_conv": False},
        {"block_out_channels": (8, 16), "mid_block_add_attention": False},
    ],
)  # fmt: skip
def test_autoencoder_kl(options, tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    blocks = len(options["block_out_channels"])
    types = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }
    theirs = randomize(diffusers.AutoencoderKL(**SMALL, **types, **options))
    theirs.save_pretrained(tmp_path)
    ours = load_autoencoder(tmp_path)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 24)).astype(np.float32)
    x = np.moveaxis(pixels[:, :, None], 1, -1)
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        latent = theirs.encode(torch.as_tensor(pixels)).latent_dist
        assert relative(first(ours.moments(x))[:, :, 0], latent.parameters) < 1e-5
        mean, deviation = ours.posterior(x)
        scale, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0.0
        assert relative(first(mean)[:, :, 0], (latent.mean - shift) * scale) < 1e-5
        assert relative(first(deviation)[:, :, 0], latent.std * scale) < 1e-5
        decoded = theirs.decode(latent.mean).sample
        assert relative(first(ours.decode(ours.encode(x)))[:, :, 0], decoded) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize("frames", [1, 9])
def test_cogvideox(frames, tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    theirs = randomize(
        diffusers.AutoencoderKLCogVideoX(
            **SMALL, block_out_channels=(8, 8, 16, 16), layers_per_block=1
        )
    )
    theirs.save_pretrained(tmp_path)
    ours = load_autoencoder(tmp_path)
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, frames, 16, 24)).astype(np.float32)
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        # Their encode and decode take frames in other windows; the networks are the same.
        moments, _ = theirs.encoder(torch.as_tensor(pixels))
        assert relative(first(ours.moments(np.moveaxis(pixels, 1, -1))), moments) < 1e-5
        latents = moments[:, :3]
        decoded, _ = theirs.decoder(latents)
        scaled = theirs.config.scaling_factor * np.moveaxis(latents.numpy(), 1, -1)
        assert relative(first(ours.decode(scaled)), decoded) < 1e-5
    assert ours.pixel_frames(ours.latent_frames(33)) == 33


@pytest.mark.torch
@pytest.mark.parametrize("frames", [1, 17])
def test_ltx_video(frames, tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    theirs = randomize(diffusers.AutoencoderKLLTXVideo(**LTX))
    theirs.latents_mean.copy_(torch.arange(6) / 10)
    theirs.latents_std.copy_(1 + torch.arange(6) / 10)
    theirs.save_pretrained(tmp_path)
    ours = load_autoencoder(tmp_path)
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, frames, 32, 64)).astype(np.float32)
    x = np.moveaxis(pixels, 1, -1)
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        latent = theirs.encode(torch.as_tensor(pixels)).latent_dist
        assert relative(first(ours.moments(x)), latent.parameters) < 1e-5
        channels = [v[None, :, None, None, None] for v in (theirs.latents_mean, theirs.latents_std)]
        scaled = (latent.mean - channels[0]) / channels[1]
        assert relative(first(ours.encode(x)), scaled) < 1e-5
        decoded = theirs.decode(latent.mean, temb=torch.zeros(1)).sample
        assert relative(first(ours.decode(ours.encode(x))), decoded) < 1e-5


@pytest.mark.torch
def test_phi(tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config = transformers.PhiConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        partial_rotary_factor=0.5,
        attn_implementation="eager",
    )
    theirs = randomize(transformers.PhiForCausalLM(config))
    theirs.save_pretrained(tmp_path)
    ours = load_language_model(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 50, (2, 13))
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        expected = theirs.model(torch.as_tensor(tokens)).last_hidden_state
        assert relative(ours(jnp.asarray(tokens, jnp.int32)), expected) < 1e-5


@pytest.mark.parametrize("frames", [3, (1, 3, 3)], ids=["three frames", "one frame"])
def test_large_features_are_convolved_frame_by_frame(frames, monkeypatch):
    """The same numbers as all at once."""
    conv = convolution.CausalConv(8, 4, frames, dtype="float32", rngs=nnx.Rngs(0))
    norm = convolution.GroupNorm(8, 4, per_frame=False, dtype="float32", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 4, 8))
    whole = conv(x, convolution.activated(norm, x))
    monkeypatch.setattr(convolution, "LARGE", 0)
    streamed = conv(x, convolution.activated(norm, x))
    np.testing.assert_allclose(streamed, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_released_video_is_decoded_within_16_gb(dtype):
    """33 frames of 768x480 by the published autoencoder, as compiled: nothing is run."""
    config = AutoencoderKLConfig(
        latent_channels=4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 2 + ("DownEncoderBlock3D",) * 2,
        up_block_types=("UpDecoderBlock3D",) * 4,
    )
    network = nnx.eval_shape(lambda: AutoencoderKL(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(network)
    latents = jax.ShapeDtypeStruct((1, 9, 60, 96, 4), dtype)
    decode = jax.jit(lambda state, latents: nnx.merge(graph, state).decode(latents))
    memory = decode.lower(state, latents).compile().memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert needed + memory.temp_size_in_bytes < 16e9
