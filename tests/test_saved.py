"""What earlier versions wrote still loads, and gives what it gave.

``tests/saved/VERSION.tar.gz`` was written by that version: model (a finished run's), run (stopped
at step 4 of 6), lora_run (adapters on model, stopped at step 4), latents and raw (prepared
records), run_metrics.json (of the whole run), keys.json (random keys by purpose), videos.npz
(generated).
"""

import json
import shutil
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import RUN

from nova_jax.data.records import Records
from nova_jax.pipeline import NovaPipeline
from nova_jax.sampling.keys import (
    image_keys,
    noise_keys,
    order_keys,
    sample_key,
    seed_key,
    training_key,
)
from nova_jax.sampling.order import reveal_order
from nova_jax.training.config import TrainConfig
from nova_jax.training.loop import train

HERE = Path(__file__).parent
PROMPTS = ["a red seven moves up", "a blue 3, left and back"]
QUIET = dict(disable_progress_bar=True, output_type="latent")
#: The run's config, as it is written today.
CONFIG = RUN | {
    "logging": {"every": 2, "tensorboard": False},
    "checkpoint": {"every": 4, "keep_latest": 1, "keep_best": 0},
    "samples": {"every": None},
}


@pytest.fixture(scope="module", params=["0.1.0"])
def saved(request, tmp_path_factory) -> Path:
    """The unpacked files of a version."""
    directory = tmp_path_factory.mktemp("saved")
    with tarfile.open(HERE / "saved" / f"{request.param}.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.fixture(scope="module")
def videos(saved) -> dict[str, np.ndarray]:
    return dict(np.load(saved / "videos.npz"))


def assert_same(made: np.ndarray, recorded: np.ndarray) -> None:
    # A whole trajectory of sampling, on another machine perhaps.
    np.testing.assert_allclose(made, recorded, rtol=0, atol=1e-4 * np.abs(recorded).max())


def assert_same_pixels(made: np.ndarray, recorded: np.ndarray) -> None:
    # Pixels are truncated: rounding may move one by a level.
    difference = np.abs(made.astype(int) - recorded)
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3


def test_seeds_give_the_same_keys(saved):
    expected = json.loads((saved / "keys.json").read_text())
    samples = jnp.stack([sample_key(seed_key(3), 0), sample_key(seed_key(4), 1)])
    tokens = NovaPipeline.from_checkpoint(saved / "model").config.num_tokens
    keys = {
        "sample_keys": samples,
        "order_keys": order_keys(samples),
        "noise_keys": noise_keys(samples),
        "image_keys": image_keys(samples),
        "training_key_seed1_step5": training_key(1, 5),
    }
    found = {name: jax.random.key_data(key).tolist() for name, key in keys.items()}
    assert found | {"order": reveal_order(order_keys(samples), tokens).tolist()} == expected


def test_a_model_generates_what_it_did(saved, videos):
    pipeline = NovaPipeline.from_checkpoint(saved / "model")
    made = pipeline(PROMPTS, seed=[3, 4], num_images_per_prompt=2, **QUIET)
    assert_same(made.latents, videos["plain"])
    image = (np.arange(12 * 12 * 3).reshape(12, 12, 3) * 7 % 256).astype(np.uint8)
    options = dict(image=image, guidance_scale=3.0, num_diffusion_steps=3)
    assert_same(pipeline(PROMPTS[:1], seed=3, **options, **QUIET).latents, videos["image"])


def test_runs_generate_what_they_did(saved, videos):
    lora = NovaPipeline.from_checkpoint(saved / "lora_run")
    assert_same(lora(PROMPTS, seed=7, **QUIET).latents, videos["lora"])
    raw = NovaPipeline.from_checkpoint(saved / "run", weights="raw")
    assert_same(raw(PROMPTS, seed=7, **QUIET).latents, videos["raw"])


def test_the_shipped_model_generates_what_it_did(videos):
    made = NovaPipeline.from_checkpoint()(
        ["a red seven moves slowly to the left"], seed=1, disable_progress_bar=True
    )
    assert_same_pixels(made.frames, videos["shipped"])


def test_a_released_model_generates_what_it_did(videos):
    pipeline = NovaPipeline.from_pretrained(HERE / "golden" / "pipeline_t2v")
    options = dict(num_inference_steps=3, num_diffusion_steps=3, max_latent_length=2)
    made = pipeline(["a red seven"], seed=5, **options, disable_progress_bar=True)
    assert_same_pixels(made.frames, videos["released"])


def test_a_run_goes_on_as_it_would_have(saved, tmp_path):
    workdir = shutil.copytree(saved / "run", tmp_path / "run")
    assert train(TrainConfig.from_dict(CONFIG), workdir).finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = {(line["step"], name): value for line in lines for name, value in line.items()}
    for line in json.loads((saved / "run_metrics.json").read_text()):
        for name, value in line.items():
            assert found[line["step"], name] == pytest.approx(value, rel=1e-5), name


def test_a_run_of_adapters_goes_on(saved, tmp_path):
    workdir = shutil.copytree(saved / "lora_run", tmp_path / "run")
    changes = {"init": {"checkpoint": "model"}, "lora": {"rank": 2, "alpha": 4.0}}
    assert train(TrainConfig.from_dict(CONFIG | changes), workdir).finished


def test_records_are_read(saved):
    latents, raw = Records(saved / "latents"), Records(saved / "raw")
    latents.verify()
    raw.verify()
    assert [record["caption"] for record in latents.read([0, 7])] == ["record 0", "record 7"]
    assert float(latents.read([5])[0]["moments"][0, 0, 0, 0]) == 5
    (record,) = raw.read([3])
    assert (record["caption"], record["frames"].shape) == ("clip 3", (2, 12, 12, 3))
