"""The pixel codec and the conversions between bytes and numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.autoencoders.pixels import PixelCodec, to_float, to_uint8
from nova_jax.checkpoints.parts import codec_from_dict
from nova_jax.config import to_plain
from nova_jax.digits.clips import DigitsConfig, DigitsSource
from nova_jax.errors import NovaError

ALL_BYTES = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1).repeat(3, -1)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_bytes_survive_the_round_trip(array):
    codec = PixelCodec()
    pixels = to_float(array(ALL_BYTES))
    latents = codec.encode(pixels)
    assert latents.dtype == np.float32
    assert type(latents) is type(array(ALL_BYTES))
    np.testing.assert_allclose(codec.decode(latents), pixels, atol=1e-6)
    # Truncation loses one level where arithmetic lands just below a byte.
    for result in (codec.decode(latents), pixels):
        lost = ALL_BYTES.astype(int) - np.asarray(to_uint8(result))
        assert lost.min() >= 0 and lost.max() <= 1


def test_bytes_are_kept_exactly_by_numpy():
    np.testing.assert_array_equal(to_uint8(to_float(ALL_BYTES)), ALL_BYTES)


def test_encoding_leaves_its_input_alone():
    pixels = to_float(ALL_BYTES)
    before = pixels.copy()
    PixelCodec().encode(pixels)
    np.testing.assert_array_equal(pixels, before)


def test_pixels_are_clamped_then_truncated():
    values = np.array([-2.0, -1.0, 0.0, 0.0039, 0.999, 1.0, 2.0], np.float32)
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 127, 127, 254, 255, 255])


def test_digits_have_zero_mean_and_unit_variance():
    frames = DigitsSource(DigitsConfig(num_clips=400)).batch(range(400))["frames"]
    latents = PixelCodec().encode(to_float(frames))
    assert abs(latents.mean()) < 0.03
    assert abs(latents.std() - 1) < 0.03


def test_it_comes_back_from_its_settings():
    codec = PixelCodec(shift=0.25, scale=2.0)
    assert codec_from_dict(to_plain(codec)) == codec
    assert codec.latent_frames(5) == codec.pixel_frames(5) == 5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"type": "vq"}, "vq"),
        ({}, "None"),
        ({"type": "pixels", "shfit": 1.0}, "shfit"),
        ({"type": "pixels", "scale": 0}, "scale"),
        ({"type": "pixels", "scale": "2"}, "scale"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(NovaError, match=named):
        codec_from_dict(settings)
