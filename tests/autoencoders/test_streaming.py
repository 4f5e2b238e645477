"""Pixels as latents come are those of the whole video at once, for every kind of codec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nova_jax.autoencoders import codec
from nova_jax.autoencoders.pixels import PixelCodec
from nova_jax.autoencoders.registry import AUTOENCODERS
from nova_jax.autoencoders.streaming import StreamDecoder
from nova_jax.autoencoders.windows import Windows

GROUPS = {"norm_num_groups": 4, "latent_channels": 3}
VIDEO = GROUPS | {
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "down_block_types": ("Down2D", "Down2D", "Down3D", "Down3D"),
    "up_block_types": ("Up3D",) * 4,
}
IMAGE = GROUPS | {"block_out_channels": (8, 8), "layers_per_block": 1}
COG = GROUPS | {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1}
LTX = {
    "latent_channels": 6,
    "block_out_channels": (8, 8, 16, 16, 32),
    "decoder_block_out_channels": (16, 32, 64),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1),
}


def make(name, values, windows=None):
    if name == "pixels":
        return PixelCodec()
    entry = AUTOENCODERS[name]
    network = entry.network(entry.config(**values), dtype=jnp.float32, rngs=nnx.Rngs(0))
    if windows is not None:  # its own are of 32 latent frames
        network.decode_windows = windows
    return codec.AutoencoderCodec(network)


@pytest.mark.parametrize(
    ("name", "values", "windows", "latents"),
    [
        ("pixels", {}, None, 3),
        ("AutoencoderKL", IMAGE, None, 3),
        ("AutoencoderKLOpenSora", VIDEO, None, 3),
        ("AutoencoderKLOpenSora", VIDEO, None, 10),  # the last one fills no window
        ("AutoencoderKLCogVideoX", COG, None, 10),
        ("AutoencoderKLLTXVideo", LTX, Windows(size=4, step=4, drop=1), 8),
    ],
)
def test_pixels_as_they_come_are_those_of_the_whole(name, values, windows, latents):
    one = make(name, values, windows)
    shape = (2, latents, 2, 2, one.latent_channels)
    video = np.asarray(jax.random.normal(jax.random.key(0), shape))
    decoder, pieces = StreamDecoder(), []
    for frame in range(latents):
        decoder, ready = decoder.push(one, video[:, frame : frame + 1])
        pieces += ready
        held = 0 if decoder.waiting is None else decoder.waiting.shape[1]
        assert held < one.decode_windows.size  # of one window, whatever the video's length is
    decoder, ready = decoder.flush(one)
    pixels = np.concatenate(pieces + ready, axis=1)
    assert pixels.shape[1] == one.pixel_frames(latents)
    np.testing.assert_allclose(pixels, one.decode(video), rtol=1e-5, atol=1e-5)


def test_what_was_shown_at_an_end_is_not_shown_again():
    one = make("AutoencoderKLOpenSora", VIDEO)
    video = np.asarray(jax.random.normal(jax.random.key(0), (1, 5, 2, 2, 3)))
    decoder, ready = StreamDecoder().push(one, video[:, :2])
    assert ready == []
    decoder, (first,) = decoder.flush(one)
    assert first.shape[1] == one.pixel_frames(2)
    assert decoder.flush(one)[1] == []
    _, (rest,) = decoder.push(one, video[:, 2:])
    assert first.shape[1] + rest.shape[1] == one.pixel_frames(5)
    np.testing.assert_allclose(rest, one.decode(video)[:, first.shape[1] :], rtol=1e-5, atol=1e-5)
