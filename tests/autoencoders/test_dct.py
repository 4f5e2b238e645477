"""The codec of cosine frequencies, against SciPy's transform and by what it loses."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dctn

from nova_jax.autoencoders.dct import DCTCodec
from nova_jax.autoencoders.pixels import to_float
from nova_jax.checkpoints.parts import codec_from_dict
from nova_jax.config import to_plain
from nova_jax.digits.scenes import ScenesConfig, ScenesSource
from nova_jax.errors import NovaError

CODEC = DCTCodec(block=16, kept=8, shift=-0.959, scale=2.0)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return to_float(ScenesSource(ScenesConfig()).batch(range(30))["frames"])


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_latents_are_the_lowest_coefficients(pixels, array):
    latents = CODEC.encode(array(pixels))
    assert type(latents) is type(array(pixels)) and latents.dtype == np.float32
    assert latents.shape == (30, 1, 3, 3, 192)
    block = dctn(2.0 * (pixels[4, 0, 16:32, :16] + 0.959), axes=(0, 1), norm="ortho")
    found = np.asarray(latents[4, 0, 1, 0]).reshape(8, 8, 3)
    np.testing.assert_allclose(found, block[:8, :8], atol=1e-5 * np.abs(block).max())


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_only_fine_detail_is_lost(pixels, array):
    whole = DCTCodec(block=16, kept=16, shift=0.3)
    back = np.asarray(whole.decode(whole.encode(array(pixels))))
    np.testing.assert_allclose(back, pixels, atol=3e-6)
    back = np.asarray(CODEC.decode(CODEC.encode(array(pixels))))
    assert 1e-4 < np.mean((back - pixels) ** 2) < 3e-3
    flat = np.full((1, 2, 32, 16, 3), 0.25, np.float32)
    np.testing.assert_allclose(CODEC.decode(CODEC.encode(array(flat))), flat, atol=1e-6)


def test_encoding_leaves_its_input_alone(pixels):
    before = pixels.copy()
    CODEC.encode(pixels)
    np.testing.assert_array_equal(pixels, before)


def test_moments_and_scaling_give_the_latents(pixels):
    scale, shift = CODEC.scaling
    mean, deviation = CODEC.posterior(pixels)
    np.testing.assert_array_equal((CODEC.moments(pixels) - shift) * scale, mean)
    assert not deviation.any()


def test_it_comes_back_from_its_settings():
    assert codec_from_dict(to_plain(CODEC)) == CODEC
    assert (CODEC.latent_channels, CODEC.stride) == (192, 16)


@pytest.mark.parametrize(
    ("settings", "named"), [({"block": 8, "kept": 9}, "kept at most 8"), ({"kept": 0}, "kept")]
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(NovaError, match=named):
        codec_from_dict({"type": "dct"} | settings)
