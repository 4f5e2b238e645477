import json
import signal

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from prepared import make_records
from processes import arrays

from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline
from nova_jax.training import loop
from nova_jax.training.config import TrainConfig
from nova_jax.training.status import read_status


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return tmp_path_factory.mktemp("unbroken")


def records(workdir):
    """All but how fast it went."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if not any(name.startswith("speed/") for name in line)]


def test_a_run_leaves_what_it_promises(run, unbroken):
    traced = run | {"logging": {"every": 2, "profile": 6}}  # the last: Python is slow while traced
    result = loop.train(TrainConfig.from_dict(traced), unbroken)
    assert (result.step, result.finished, result.skipped) == (6, True, {})
    assert 0 <= result.speed["data_wait"] <= 1
    assert result.speed["samples_per_second"] > 0 and result.speed["tflops_per_device"] > 0
    assert 0.1 < result.speed["host_memory_gib"] < 24
    assert list((unbroken / "profile").rglob("*.xplane.pb"))
    assert {"loss", "frame/0", "frame/1"} < result.validation.keys()
    assert result.validation == {
        name.removeprefix("validation/"): value
        for name, value in records(unbroken)[-2].items()  # before the samples' drift
        if name != "step"
    }
    steps = [r for r in records(unbroken) if any(name.startswith("train_") for name in r)]
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5, 6]
    assert {next(n for n in r if n != "step").split("/")[0] for r in steps} == {
        "train_video",
        "train_image",
    }
    assert all(np.isfinite(list(r.values())).all() for r in steps)
    drifted = next(r for r in records(unbroken) if "drift/sharpness" in r)
    assert drifted["step"] == 6 and "drift/like_the_first" in drifted
    assert list((unbroken / "tensorboard").iterdir())
    with Image.open(unbroken / "samples" / "step_0000006.gif") as gif:
        assert gif.n_frames == 2
    assert (unbroken / "samples" / "step_0000006.png").exists()
    assert json.loads((unbroken / "config.json").read_text())["optimizer"]["b2"] == 0.95


def test_a_finished_run_says_so(unbroken):
    status = read_status(epath.Path(unbroken))
    assert status.step == status.steps == 6
    assert status.losses.keys() == {"train_image", "train_video"}
    assert not status.running and not status.skipped
    assert "\nfinished\n" in status.text()


@pytest.mark.slow
def test_windows_of_longer_clips_with_all_that_is_done_to_frames(run, tmp_path):
    run |= {"steps": 3, "samples": {"prompts": ()}}
    run["data"] |= {"video_fraction": 1.0}
    run["model"] |= {"frames": 4}
    run["dataset"] |= {"frames": 7, "walls": True}
    run["context"] = {"noise": 0.3, "dropout": 0.2, "own": 0.5, "own_steps": 2, "window": 4}
    run["sampling"] |= {"window": 4}
    result = loop.train(TrainConfig.from_dict(run), tmp_path)
    assert result.finished and result.skipped == {}
    assert {"frame/0", "frame/3"} < result.validation.keys() and "frame/4" not in result.validation
    longer = NovaPipeline.from_pretrained(tmp_path)(["a red seven"], num_frames=6)
    assert longer.frames.shape == (1, 6, 12, 12, 3)


def test_a_window_must_be_the_models_length(run, tmp_path):
    run["dataset"] |= {"frames": 7}
    run["context"] = {"window": 4}
    with pytest.raises(NovaError, match=r"model.frames is 2, config.context.window gives 4"):
        loop.train(TrainConfig.from_dict(run), tmp_path)


@pytest.mark.slow
def test_rematerialization_changes_nothing_and_bfloat16_little(run, unbroken, tmp_path):
    losses = {"float32": [r for r in records(unbroken) if r["step"] <= 3]}
    for name, options in (("remat", {"remat": "dots"}), ("bfloat16", {"dtype": "bfloat16"})):
        loop.train(TrainConfig.from_dict(run | options | {"stop_at": 3}), tmp_path / name)
        losses[name] = records(tmp_path / name)
    loss = {
        name: [v for r in rows for k, v in r.items() if k.endswith("/loss") and "train" in k][:3]
        for name, rows in losses.items()
    }
    assert len(loss["float32"]) == 3
    np.testing.assert_allclose(loss["remat"], loss["float32"], rtol=1e-5)
    np.testing.assert_allclose(loss["bfloat16"], loss["float32"], rtol=0.03)
    assert loss["bfloat16"] != loss["float32"]
    # Parameters and what follows them stay float32.
    types = {value.dtype for value in arrays(tmp_path / "bfloat16", 3).values()}
    assert types <= {np.dtype(np.float32), np.dtype(np.int32)}


def test_the_finished_model_is_the_average_of_the_last_checkpoint(run, unbroken):
    model = open_checkpoint(unbroken / "model")
    of_run = open_checkpoint(unbroken)
    assert model.step == of_run.step == 6
    same = jax.tree.map(lambda a, b: bool((a == b).all()), *map(_state, (model, of_run)))
    assert all(jax.tree.leaves(same))
    raw = open_checkpoint(unbroken, weights="raw")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), *map(_state, (model, raw)))
    assert not all(jax.tree.leaves(same))


def _state(checkpoint):
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(checkpoint.load_transformer()[0]))


def test_a_run_stopped_by_a_signal_and_taken_up_again_is_the_same_to_the_bit(
    run, unbroken, tmp_path, monkeypatch
):
    config = TrainConfig.from_dict(run)
    shard_batch, batches = loop.shard_batch, []

    def interrupt(batch, mesh):
        batches.append(batch)
        if len(batches) == config.validation.batches + 3:
            signal.raise_signal(signal.SIGTERM)
        return shard_batch(batch, mesh)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "shard_batch", interrupt)
        result = loop.train(config, tmp_path)
    assert (result.step, result.finished) == (3, False)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "model").exists()

    assert loop.train(config, tmp_path).finished
    assert records(tmp_path) == records(unbroken)
    expected, found = arrays(unbroken, 6), arrays(tmp_path, 6)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_finished_run_has_nothing_left_to_do(run, unbroken):
    before = (unbroken / "metrics.jsonl").read_text()
    assert loop.train(TrainConfig.from_dict(run), unbroken).step == 6
    assert (unbroken / "metrics.jsonl").read_text() == before


def test_the_workdir_of_another_config_is_refused_and_untouched(run, unbroken):
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")}
    run["loss_repeat"] = 3
    run["optimizer"]["learning_rate"] = 2e-3
    message = r"another config: loss_repeat \(2 there, 3 now\), optimizer.learning_rate"
    with pytest.raises(NovaError, match=message):
        loop.train(TrainConfig.from_dict(run), unbroken)
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")} == before


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("model", "latent_channels", 4, "latent_channels is 4, config.codec gives 3"),
        ("model", "latent_size", (18, 18), "latent_size"),
        ("model", "frames", 3, "model.frames is 3"),
        ("text_encoder", "dim", 32, "text_dim is 16"),
        ("data", "batch_size", 12, "data.batch_size 12 cannot be split over 8 devices"),
        ("data", "image_batch_size", 4, "data.image_batch_size 4 cannot"),
        ("optimizer", "warmup_steps", 6, "warmup_steps 6 leave nothing of the 6 steps"),
    ],
)
def test_parts_that_do_not_fit_are_named_and_nothing_is_written(
    run, tmp_path, section, key, value, named
):
    run[section][key] = value
    with pytest.raises(NovaError, match=named):
        loop.train(TrainConfig.from_dict(run), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_of_latents_needs_no_codec_and_no_text_encoder(run, tmp_path):
    run |= {"dataset": {"type": "synthetic"}, "steps": 1, "samples": {}}
    run["optimizer"] = {}
    del run["codec"], run["text_encoder"]
    assert loop.train(TrainConfig.from_dict(run), tmp_path / "run").finished
    model = tmp_path / "run" / "model"
    assert open_checkpoint(model).load_autoencoder() is None
    with pytest.raises(NovaError, match="names no codec and no text_encoder"):
        NovaPipeline.from_checkpoint(model)


def test_clips_of_several_sizes_make_one_run(run, tmp_path):
    shapes = [(2, 12, 12), (2, 6, 18)]
    data = make_records(tmp_path / "data", [(shape, 24) for shape in shapes])
    run |= {"steps": 6, "samples": {}}
    run["dataset"] = {"type": "latents", "sources": [{"path": str(data)}], "held_out": 8}
    run["optimizer"] = {"learning_rate": 1e-3}
    run["data"] |= {"video_fraction": 1.0}
    del run["codec"], run["text_encoder"]
    result = loop.train(TrainConfig.from_dict(run), tmp_path / "run")
    assert result.finished and result.skipped == {}
    losses = {
        name: value
        for record in records(tmp_path / "run")
        for name, value in record.items()
        if "/loss_" in name and "x" in name
    }
    assert losses.keys() == {"train_video/loss_2x12x12", "train_video/loss_2x6x18"}
    assert np.isfinite(list(losses.values())).all()


@pytest.mark.parametrize("missing", ["codec", "text_encoder"])
@pytest.mark.parametrize("dataset", ["digits", "synthetic"])
def test_a_missing_part_is_named_where_it_is_needed(run, dataset, missing):
    if dataset == "synthetic":
        run["dataset"] = {"type": "synthetic"}
    del run[missing]
    with pytest.raises(NovaError, match=f"config.{missing} is missing"):
        loop.build_parts(TrainConfig.from_dict(run))
