"""Every dataset fills the one schema of a batch, and plans compile what training feeds."""

import contextlib
import copy

import jax
import numpy as np
import pytest
import small
from prepared import make_records
from videos import moving_square, write_video

from nova_jax.data.batch import abstract_batch, zero_batch
from nova_jax.distributed.mesh import make_mesh, shard_batch
from nova_jax.plan.compile import abstract_training
from nova_jax.prepare.clips import ClipConfig
from nova_jax.prepare.manifest import read_manifest
from nova_jax.prepare.preparation import PrepareConfig, prepare
from nova_jax.training.config import TrainConfig
from nova_jax.training.loop import build_parts


def digits(folder):
    return {}


def synthetic(folder):
    return {"dataset": {"type": "synthetic"}, "codec": None, "text_encoder": None}


def classes(folder):
    model = small.VIDEO | dict(text_dim=None, text_length=None, num_classes=10)
    return synthetic(folder) | {"model": model}


def latents(folder):
    make_records(folder / "data", [((2, 12, 12), 10), ((1, 12, 12), 16)])
    sources = ({"path": str(folder / "data")},)
    return synthetic(folder) | {"dataset": {"type": "latents", "sources": sources, "held_out": 1}}


def raw(folder):
    for n in range(3):
        path = write_video(folder / f"{n}.mp4", moving_square(4, hue=n))
        path.with_suffix(".txt").write_text(f"number {n}")
    clips = ClipConfig(sizes=((12, 12),), frames=(2,))
    prepare(*read_manifest(folder), folder / "data", PrepareConfig(clips=clips), None)
    shape = {"size": (12, 12), "frames": 2, "held_out": 1}
    return {"dataset": {"type": "raw", "path": str(folder / "data")} | shape}


def described(batch):
    return {name: (array.shape, array.dtype, array.sharding) for name, array in batch.items()}


@pytest.mark.parametrize("dataset", [digits, synthetic, classes, latents, raw])
def test_every_dataset_gives_what_plans_compile(tmp_path, dataset):
    values = copy.deepcopy(small.RUN) | {"samples": {"every": None}} | dataset(tmp_path)
    config, mesh = TrainConfig.from_dict(values), make_mesh()
    _, _, planned = abstract_training(config, mesh)
    data = build_parts(config).dataset
    assert described(shard_batch(next(data.held_out(config.data, 1)), mesh)) == described(planned)
    with contextlib.closing(data.batches(config.data)) as batches:
        kinds = {
            batch["latents"].shape[1]: described(shard_batch(batch, mesh))
            for batch in (next(batches) for _ in range(4))
        }
    assert kinds.keys() == {1, 2}  # pictures and videos
    for frames, size in ((1, 16), (2, 8)):
        schema = abstract_batch(
            config.model,
            size=size,
            frames=frames,
            text_dtype=config.dataset.text_dtype,
            sharding=next(iter(planned.values())).sharding,
        )
        assert kinds[frames] == described(schema)


def test_a_batch_of_zeros_has_the_shapes_of_its_clips():
    config = TrainConfig.from_dict(small.RUN)
    options = dict(size=3, frames=1, latent_size=(6, 15), text_dtype=np.float16)
    batch = zero_batch(abstract_batch(config.model, **options))
    assert batch["latents"].shape == (3, 1, 6, 15, 3) and batch["text"].dtype == np.float16
    like = abstract_batch(config.model, **options)
    assert jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, batch)) == like
