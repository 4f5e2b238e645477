"""Options of sampling: each reaches its field of the config and nothing else."""

import dataclasses

import numpy as np
import pytest

from nova_jax.config import from_dict, to_plain
from nova_jax.errors import NovaError
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import OPTIONS, SamplingConfig, with_options

CONFIG = SamplingConfig(8, 4, GuidanceConfig(scale=2.0, renorm=0.5))


def flat(values, start=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, start + name + ".")
        else:
            yield start + name, value


def test_every_field_has_one_option():
    fields = [name for name, _ in flat(to_plain(CONFIG))]
    assert sorted(option.field for option in OPTIONS.values()) == sorted(fields)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_sets_its_field(name):
    others = {"sampler": "pallas", "window": 8, "context_noise": 0.5}
    option, value = OPTIONS[name], others.get(name, 1)
    changed = with_options(CONFIG, {name: value})
    before, after = (dict(flat(to_plain(config))) for config in (CONFIG, changed))
    assert after == before | {option.field: value} != before


def test_by_hand():
    options = dict(num_diffusion_steps=9, guidance_scale=None, image_guidance_scale=1.5)
    wanted = SamplingConfig(8, 9, GuidanceConfig(scale=2.0, renorm=0.5, image_scale=1.5))
    assert with_options(CONFIG, options) == wanted
    assert with_options(CONFIG, {}) == CONFIG


def test_steps_that_are_given_are_for_all_frames():
    own = dataclasses.replace(CONFIG, num_inference_steps=4, later_inference_steps=2)
    assert with_options(own, {"num_inference_steps": 8}).of_frame(1).num_inference_steps == 8
    both = {"num_inference_steps": 8, "later_inference_steps": 3}
    assert with_options(own, both).of_frame(1).num_inference_steps == 3
    assert with_options(own, {"num_diffusion_steps": 9}).of_frame(1).num_inference_steps == 2


def test_what_is_wrong_is_named():
    with pytest.raises(TypeError, match="'guidance_scael' is no option of sampling; there are num"):
        with_options(CONFIG, {"guidance_scael": 3})
    with pytest.raises(NovaError, match="guidance_trunc is 'late'; it must be float"):
        with_options(CONFIG, {"guidance_trunc": "late"})
    with pytest.raises(
        NovaError, match="guidance_renorm is 2; it must be at least 0 and at most 1"
    ):
        with_options(CONFIG, {"guidance_renorm": 2})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1, 1e30, 10**400, True, "1", [1], 1j])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_type_and_a_range(name, value):
    """By the names of options, and in configs, however these are made."""
    with pytest.raises(NovaError, match=rf"^{name} is .*; it must be "):
        with_options(CONFIG, {name: value})
    path = OPTIONS[name].field.split(".")
    plain = {path[-1]: value} if len(path) == 1 else {path[0]: {path[1]: value}}
    with pytest.raises(NovaError, match=rf"^config\.{OPTIONS[name].field} is .*; it must be "):
        from_dict(SamplingConfig, plain, "config")
    made = SamplingConfig if len(path) == 1 else GuidanceConfig
    with pytest.raises(NovaError, match=rf"^{made.__name__}.{path[-1]} is .*; it must be "):
        made(**{path[-1]: value})


@pytest.mark.parametrize("name", ["num_inference_steps", "num_diffusion_steps"])
@pytest.mark.parametrize("value", [0, 4.5, 2.0, np.float32(2), np.bool_(True), 10**9])
def test_steps_are_whole_and_positive(name, value):
    with pytest.raises(NovaError, match=f"{name} is "):
        with_options(CONFIG, {name: value})


def test_a_flow_shift_is_positive():
    with pytest.raises(NovaError, match="flow_shift is 0; it must be at least 0.01"):
        with_options(CONFIG, {"flow_shift": 0})


def test_numbers_of_numpy_are_numbers():
    options = {"num_inference_steps": np.int64(4), "guidance_scale": np.float32(1.5)}
    config = with_options(CONFIG, options)
    assert config == SamplingConfig(4, 4, GuidanceConfig(scale=1.5, renorm=0.5))
    assert [type(config.num_inference_steps), type(config.guidance.scale)] == [int, float]
