"""Model configurations: derived sizes, and every impossible size named."""

import dataclasses

import pytest

from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig, StageSize

RELEASED_VIDEO = {
    "latent_size": [60, 96],
    "temporal_encoder": "vit_d16w1024",
    "spatial_decoder": "vit_d32w1024",
    "diffusion_head": "mlp_d3w1280",
    "frames": 16,
    "text_dim": 2560,
    "text_length": 256,
    "mixer_rank": 24,
}


def test_sizes_of_the_released_video_model():
    config = NovaConfig.from_dict(RELEASED_VIDEO)
    assert config.grid == (30, 48)
    assert config.temporal_grid == (15, 24)
    assert (config.num_tokens, config.indicator_tokens) == (1440, 360)
    assert config.token_dim == 16
    assert config.max_visible_tokens == 432
    assert config.spatial_decoder_size == StageSize(32, 1024)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1536, 16), (64, 2), (256, 8)])
def test_heads_follow_the_width(width, heads):
    assert StageSize(1, width).heads == heads


def test_round_trip_through_plain_values():
    config = NovaConfig.from_dict(RELEASED_VIDEO)
    assert NovaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_size": [60, 97]}, "latent_size 60x97 is not divisible"),
        ({"latent_size": [60, 0]}, "latent_size 60x0"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"temporal_patch": 31}, "temporal encoder's patch, 31 times that"),
        ({"frames": 0}, "frames is 0"),
        ({"spatial_decoder": "vit_d32w1000"}, "multiple of 32"),
        ({"spatial_decoder": "vit_d32w768"}, "same width"),
        ({"spatial_decoder": "vit_d1w1024"}, "depth of at least 2"),
        ({"temporal_encoder": "vit16"}, "vit_d<depth>w<width>"),
        ({"diffusion_head": "vit_d3w1280"}, "mlp_d<depth>w<width>"),
        ({"text_dim": None}, "text_dim"),
        ({"num_classes": 10}, "one of the two"),
        ({"text_length": 513}, "text_length is 513"),
        ({"frames": "16"}, "model.frames is '16'"),
        ({"rotary": 1}, "model.rotary is 1"),
        ({"depth": 3}, "model.depth: no such key"),
    ],
)
def test_impossible_configurations_are_named(change, message):
    with pytest.raises(NovaError, match=message.replace("<", ".").replace(">", ".")):
        NovaConfig.from_dict(RELEASED_VIDEO | change)


def test_missing_option_is_named():
    values = dict(RELEASED_VIDEO)
    del values["latent_size"]
    with pytest.raises(NovaError, match="model.latent_size is missing"):
        NovaConfig.from_dict(values)


def test_what_fits_is_cut_into_two_patches_a_side_at_least():
    config = NovaConfig.from_dict(RELEASED_VIDEO)
    sizes = [(60, 96), (4, 4), (2, 4), (4, 6), (5, 4), (0, 4)]
    assert [config.fits(size) for size in sizes] == [True, True, False, True, False, False]


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NovaConfig.from_dict(RELEASED_VIDEO).frames = 3  # type: ignore[misc]


@pytest.mark.parametrize("change", [{"frames": "16"}, {"frames": True}, {"latent_size": 60}])
def test_types_are_checked_without_plain_values_too(change):
    config = NovaConfig.from_dict(RELEASED_VIDEO)
    with pytest.raises(NovaError, match=f"{next(iter(change))} is {next(iter(change.values()))!r}"):
        dataclasses.replace(config, **change)
