import json

import pytest

from nova_jax.data.synthetic import SyntheticConfig
from nova_jax.errors import NovaError
from nova_jax.training.config import TrainConfig


def edited(run, path, value):
    *sections, key = path.split(".")
    target = run
    for section in sections:
        target = target[section]
    target[key] = value
    return run


def test_plain_values_survive_a_round_trip_through_json(run):
    config = TrainConfig.from_dict(run)
    assert config.model.latent_size == (12, 12)
    assert config.dataset.digit_size == 8.0
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer.learning_rat", 1e-3, "config.optimizer.learning_rat: .*learning_rate"),
        ("model.widht", 3, "config.model.widht"),
        ("stpes", 3, "config.stpes: .*steps"),
        ("steps", "six", "config.steps is 'six'; it must be int"),
        ("steps", True, "config.steps is True"),
        ("steps", 2.5, "config.steps is 2.5"),
        ("optimizer.learning_rate", "fast", "config.optimizer.learning_rate is 'fast'"),
        ("optimizer.schedule", "linear", "must be 'constant' or 'cosine' or 'multistep'"),
        ("optimizer", 3, "config.optimizer is 3"),
        ("model.latent_size", (12,), "config.model.latent_size"),
        ("model.latent_size", (12, 13), "not divisible"),
        ("model.temporal_encoder", "vit_d1w33", "multiple of 32"),
        (
            "mesh",
            {"rules": {"mlp": "tensor"}},
            "mesh.rules.mlp is 'tensor'; it must be tuple",
        ),
        ("mesh", {"rules": {"mlp": (3,)}}, r"config.mesh.rules.mlp\[0\] is 3; it must be str"),
        ("samples.prompts", ("a", 3), r"config.samples.prompts\[1\] is 3"),
        ("stop_at", 1.5, "config.stop_at"),
        ("dtype", "float16", "config.dtype"),
        ("steps", 0, "steps is 0"),
        ("logging.every", 0, "logging.every is 0"),
        ("ema", {"decay": 1.0}, "ema.decay is 1.0"),
        (
            "dataset.type",
            "digit",
            "config.dataset.type is 'digit'; .*'digits' or 'scenes' or 'synthetic'",
        ),
        ("dataset", {"type": "synthetic", "size": 3}, "config.dataset.size: no such key"),
        ("dataset", 3, "config.dataset is 3"),
    ],
)
def test_mistakes_are_named(run, path, value, message):
    with pytest.raises(NovaError, match=message):
        TrainConfig.from_dict(edited(run, path, value))


def test_rules_of_the_mesh_survive_json_too(run):
    config = TrainConfig.from_dict(run | {"mesh": {"fsdp": 2, "rules": {"mlp": ["fsdp"]}}})
    assert config.mesh.rules == {"mlp": ("fsdp",)}
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_missing_key_is_named(run):
    del run["model"]
    with pytest.raises(NovaError, match="config.model is missing"):
        TrainConfig.from_dict(run)


def test_integers_stand_for_floats(run):
    config = TrainConfig.from_dict(edited(run, "optimizer.learning_rate", 1))
    assert isinstance(config.optimizer.learning_rate, float)


def test_the_length_of_a_run_may_change_unless_the_learning_rate_depends_on_it(run):
    assert "steps" not in TrainConfig.from_dict(run).changeable()
    constant = TrainConfig.from_dict(edited(run, "optimizer.schedule", "constant"))
    assert "steps" in constant.changeable()


def test_datasets_are_told_apart_by_type(run):
    assert TrainConfig.from_dict(run).dataset.type == "digits"
    config = TrainConfig.from_dict(edited(run, "dataset", {"type": "synthetic", "fps": 8}))
    assert config.dataset == SyntheticConfig(fps=8.0)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
