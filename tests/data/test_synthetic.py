"""Noise of a model's shapes, without a codec or a text encoder."""

import json

import numpy as np
import pytest
from small import IMAGES, VIDEO

from nova_jax.data.pipeline import DataConfig
from nova_jax.data.synthetic import SyntheticConfig, SyntheticDataset
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig

CONFIG = DataConfig(batch_size=4, image_batch_size=8, video_fraction=0.5)


def dataset(model=VIDEO, **changes):
    return SyntheticDataset(SyntheticConfig(**changes), NovaConfig.from_dict(model))


def shapes(batch):
    return {name: value.shape for name, value in batch.items()}


def test_batches_have_the_shapes_of_the_model():
    stream = dataset().batches(CONFIG)
    pair = sorted((next(stream) for _ in range(2)), key=lambda batch: len(batch["flow"]))
    for (size, frames), batch in zip(((4, 2), (8, 1)), pair, strict=True):
        assert shapes(batch) == {
            "latents": (size, frames, 12, 12, 3),
            "text": (size, 8, 16),
            "text_length": (size,),
            "flow": (size,),
            "fps": (size,),
        }
        assert {value.dtype.name for value in batch.values()} == {"float32", "int32"}


def test_models_of_classes_get_labels():
    model = IMAGES | dict(text_dim=None, text_length=None, num_classes=10)
    batch = next(dataset(model).batches(CONFIG))
    assert batch["label"].max() < 10 and batch["label"].dtype == np.int32
    assert "text" not in batch


def test_a_batch_costs_nothing_and_the_position_is_kept():
    stream = dataset().batches(CONFIG, 1, 2)
    first = [next(stream) for _ in range(4)]
    assert len({id(batch["latents"]) for batch in first}) == 2
    assert {len(batch["flow"]) for batch in first} == {2, 4}
    again = dataset().batches(CONFIG, 1, 2)
    next(again)
    again.set_state(json.loads(json.dumps(stream.get_state())))
    assert shapes(next(again)) == shapes(next(stream))


def test_processes_share_the_batch_of_one():
    data = dataset()
    whole = next(data.batches(CONFIG))
    parts = [next(data.batches(CONFIG, index, 2)) for index in range(2)]
    for name, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


def test_processes_and_held_out_batches_differ():
    data = dataset()
    draws = [next(data.batches(CONFIG, index, 2))["latents"] for index in range(2)]
    draws += [next(data.held_out(CONFIG, 3, index, 2))["latents"] for index in range(2)]
    assert len({draw.tobytes() for draw in draws}) == 4
    assert len(list(data.held_out(CONFIG, 3))) == 3


def test_what_cannot_be_is_named():
    with pytest.raises(NovaError, match="batch_size 4 is not divisible by 3"):
        dataset().held_out(CONFIG, 1, 0, 3)
    with pytest.raises(NovaError, match="fps"):
        dataset(fps=0.0)
