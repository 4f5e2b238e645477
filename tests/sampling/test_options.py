"""Options of sampling: each reaches its field of the config and nothing else."""

import pytest

from nova_jax.config import to_plain
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
    option = OPTIONS[name]
    value = option.choices[-1] if option.choices else option.kind(1)
    changed = with_options(CONFIG, {name: value})
    before, after = (dict(flat(to_plain(config))) for config in (CONFIG, changed))
    assert after == before | {option.field: value} != before


def test_by_hand():
    options = dict(num_diffusion_steps=9, guidance_scale=None, image_guidance_scale=1.5)
    wanted = SamplingConfig(8, 9, GuidanceConfig(scale=2.0, renorm=0.5, image_scale=1.5))
    assert with_options(CONFIG, options) == wanted
    assert with_options(CONFIG, {}) == CONFIG


def test_what_is_wrong_is_named():
    with pytest.raises(TypeError, match="'guidance_scael' is no option of sampling; there are num"):
        with_options(CONFIG, {"guidance_scael": 3})
    with pytest.raises(NovaError, match="guidance_trunc is 'late'; it must be a number"):
        with_options(CONFIG, {"guidance_trunc": "late"})
    with pytest.raises(NovaError, match="renorm 2"):
        with_options(CONFIG, {"guidance_renorm": 2})
