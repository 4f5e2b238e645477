import errno
import itertools
import json
import os
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from flax.traverse_util import flatten_dict

from nova_jax.checkpoints import run
from nova_jax.checkpoints.model import save_model
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.checkpoints.run import RunCheckpoints, claim_workdir
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova

MODEL = NovaConfig.from_dict(small.IMAGES)
CONFIG = {
    "model": MODEL.to_dict(),
    "schedule": {"type": "flow_matching", "shift": 1.0},
    "codec": {"type": "pixels"},
    "text_encoder": {"type": "hashed_words", "dim": 16},
    "sampling": {"num_inference_steps": 4},
    "optimizer": {"learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def variables():
    """Random values for every variable of the model."""
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Nova(MODEL, rngs=nnx.Rngs(0)))))
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
        for name, leaf in flatten_dict(shapes, sep=".").items()
    }


@pytest.fixture(scope="module")
def saved(variables, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "model"
    save_model(directory, variables=variables, config=CONFIG, step=7)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def load(directory, **options):
    """A checkpoint, and its variables by dotted path."""
    checkpoint = open_checkpoint(directory, **options)
    model, _ = checkpoint.load_transformer()
    return checkpoint, flatten_dict(nnx.to_pure_dict(nnx.state(model)), sep=".")


def test_a_model_comes_back_to_the_bit(saved, variables):
    checkpoint, found = load(saved)
    assert checkpoint.step == 7
    assert checkpoint.model_config() == MODEL
    assert checkpoint.load_text_encoder().dim == 16
    assert "optimizer" not in checkpoint.config
    assert found.keys() == variables.keys()
    for name, value in variables.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_model_stored_in_half_precision_is_half_as_large_and_float32_again(
    saved, variables, tmp_path
):
    save_model(tmp_path / "half", variables=variables, config=CONFIG, step=7, dtype=jnp.bfloat16)
    sizes = [
        sum(file.stat().st_size for file in directory.rglob("d/*"))
        for directory in (saved, tmp_path / "half")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    for name, value in load(tmp_path / "half")[1].items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, variables[name], rtol=2**-8, err_msg=name)


def test_saving_again_replaces_the_model_and_nothing_else(copy, variables, tmp_path):
    save_model(copy, variables=variables, config=CONFIG, step=8)
    assert load(copy)[0].step == 8
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(NovaError, match="letters exists and is no model directory"):
        save_model(tmp_path / "letters", variables=variables, config=CONFIG, step=8)
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("length", [0, 0.5, -1], ids=["empty", "half", "one byte short"])
def test_every_truncated_file_is_noticed_and_named(copy, length):
    for file in sorted(file for file in copy.rglob("*") if file.is_file()):
        whole = file.read_bytes()
        file.write_bytes(whole[: int(length * len(whole)) if length >= 0 else -1])
        if file.name in ("config.json", "checksums.json") and length == -1:
            assert load(copy)[0].step == 7  # only the last line break is gone
        else:
            with pytest.raises(NovaError, match=f"{file}.* damaged"):
                load(copy)
        file.write_bytes(whole)
    assert load(copy)[0].step == 7


def test_missing_and_changed_files_are_noticed(copy):
    largest = max((copy / "params").rglob("*"), key=lambda file: file.stat().st_size)
    whole = bytearray(largest.read_bytes())
    whole[len(whole) // 2] ^= 1
    largest.write_bytes(whole)
    with pytest.raises(NovaError, match=f"{largest} is damaged"):
        load(copy)
    largest.unlink()
    with pytest.raises(NovaError, match=f"{largest} is missing"):
        load(copy)


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(NovaError, match="there is no directory .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(NovaError, match="is no checkpoint: it has no config.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "NOVATransformer3DModel"}')
    with pytest.raises(NovaError, match="is not of nova_jax"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "nova_jax", "version": 2}')
    with pytest.raises(NovaError, match="format version 2"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "nova_jax", "version": 1}')
    with pytest.raises(NovaError, match="no checkpoint yet"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"temporal_encoder": "vit_d2w32"},
            "does not fit its config.json: temporal_encoder.blocks",
        ),
        ({"text_dim": 32}, "does not fit its config.json: text_embed"),
        ({"frames": 2}, "motion_embed.*is missing"),
        ({"patch_size": 5}, "config.json: latent_size 12x12 is not divisible"),
    ],
)
def test_parameters_of_another_model_are_refused(copy, change, named):
    config = json.loads((copy / "config.json").read_text())
    config["model"] |= change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(NovaError, match=named):
        load(copy)


@pytest.fixture
def workdir(tmp_path, variables):
    """A run with checkpoints at steps 1 to 3, whose parameters are step, average step + 0.5."""
    claim_workdir(tmp_path / "run", CONFIG)
    checkpoints = RunCheckpoints(tmp_path / "run", keep_latest=5, keep_best=1)
    data = stream()
    for step, loss in ((1, 2.0), (2, 1.0), (3, None)):
        next(data)
        checkpoints.save(step, trees(variables, step), data, loss)
    checkpoints.close()
    return tmp_path / "run"


def stream():
    return iter(grain.MapDataset.range(100).shuffle(seed=1).to_iter_dataset())


def trees(variables, step):
    frozen = {name: value for name, value in variables.items() if name.startswith("text_embed")}
    params = {name: jnp.full_like(v, step) for name, v in variables.items() if name not in frozen}
    ema = jax.tree.map(lambda x: x + 0.5, params)
    return {
        "params": params,
        "frozen": frozen,
        "ema": ema,
        "optimizer": {"step": jnp.asarray(step)},
    }


@pytest.mark.parametrize(
    ("options", "step", "value"),
    [
        ({}, 3, 3.5),
        ({"weights": "raw"}, 3, 3.0),
        ({"step": "best"}, 2, 2.5),
        ({"step": 1, "weights": "raw"}, 1, 1.0),
    ],
)
def test_a_run_gives_the_model_that_is_asked_for(workdir, variables, options, step, value):
    checkpoint, found = load(workdir, **options)
    assert checkpoint.step == step
    np.testing.assert_array_equal(found["spatial_decoder.mask_token"], np.full(32, value, "f4"))
    np.testing.assert_array_equal(found["text_embed.buffer"], variables["text_embed.buffer"])


def test_a_step_that_is_gone_is_named_with_those_that_are_there(workdir):
    with pytest.raises(NovaError, match="no checkpoint of step 9; there are 1, 2, 3"):
        load(workdir, step=9)


def test_a_run_goes_on_where_it_was(workdir, variables):
    checkpoints = RunCheckpoints(workdir, keep_latest=5, keep_best=1)
    data, expected = stream(), stream()
    for _ in range(3):
        next(expected)
    restored = checkpoints.restore(3, trees(variables, 0), data)
    checkpoints.close()
    assert [next(data) for _ in range(5)] == [next(expected) for _ in range(5)]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), restored, trees(variables, 3))
    assert all(jax.tree.leaves(same))


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep_latest=2, keep_best=1)
    for step, loss in enumerate([3.0, 1.0, 2.0, 4.0, None, 5.0], 1):
        checkpoints.save(step, {"params": {"w": jnp.ones(3)}}, stream(), loss)
    checkpoints.close()
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"2", "5", "6"}


def test_a_damaged_loss_is_named_and_its_checkpoint_set_aside(workdir, caplog):
    file = workdir / "checkpoints" / "2" / "metrics" / "metrics"
    file.write_text('{"lo')
    with pytest.raises(NovaError, match=f"{file} cannot be read"):
        load(workdir, step="best")
    RunCheckpoints(workdir, keep_latest=5, keep_best=1).close()
    assert f"{file} cannot be read" in caplog.text
    assert load(workdir, step="best")[0].step == 1
    assert (workdir / "checkpoints" / "2.damaged" / "params").is_dir()


@pytest.fixture
def small_run(tmp_path):
    """Checkpoints at steps 1 to 3 of one array and a counter, both equal to the step."""
    checkpoints, data = RunCheckpoints(tmp_path, keep_latest=5, keep_best=1), stream()
    for step in (1, 2, 3):
        next(data)
        checkpoints.save(step, small_trees(step), data, 1.0 / step)
    checkpoints.close()
    return tmp_path / "checkpoints"


def small_trees(step):
    return {"params": {"w": jnp.full(9, step)}, "optimizer": {"step": jnp.asarray(step)}}


def restore_newest(directory, trees=None):
    """Step, the parameter there, and the next batch."""
    checkpoints, data = RunCheckpoints(directory.parent, keep_latest=5, keep_best=1), stream()
    try:
        restored = checkpoints.restore_newest(trees or small_trees(0), data)
    finally:
        checkpoints.close()
    return None if restored is None else (restored[0], restored[1]["params"]["w"][0], next(data))


def names(directory):
    return {path.name for path in directory.iterdir()}


def flip(file):
    """Changes one bit in the middle."""
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "where"),
    [(flip, "params/d"), (cut, "optimizer/d"), (os.unlink, "data"), (cut, "checksums.json")],
)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(small_run, damage, where, caplog):
    expected = list(itertools.islice(stream(), 4))
    assert restore_newest(small_run) == (3, 3, expected[3])
    for kept in ({"1", "2", "3.damaged"}, {"1", "2", "3.damaged", "3.damaged+"}):
        place = small_run / "3" / where
        file = next(place.iterdir()) if place.is_dir() else place
        damage(file)
        caplog.clear()
        assert restore_newest(small_run) == (2, 2, expected[2])
        assert f"checkpoint file {file} is" in caplog.text and "aside as" in caplog.text
        assert names(small_run) == kept
        # Training comes to that step again; what was set aside stays.
        checkpoints = RunCheckpoints(small_run.parent, keep_latest=5, keep_best=1)
        checkpoints.save(3, small_trees(3), stream())
        checkpoints.close()
        assert restore_newest(small_run)[:2] == (3, 3)


def test_a_run_without_a_whole_checkpoint_does_not_start_anew_by_itself(small_run, tmp_path):
    assert restore_newest(tmp_path / "new" / "checkpoints") is None
    for step in "123":
        flip(next((small_run / step / "params" / "d").iterdir()))
    with pytest.raises(NovaError, match="every checkpoint in .* is damaged; restore one"):
        restore_newest(small_run)


def test_a_checkpoint_that_does_not_fit_is_not_taken_for_damaged(small_run):
    other = small_trees(0)
    other["params"]["new"] = jnp.ones(3)
    with pytest.raises(NovaError, match="checkpoints/3 cannot be read"):
        restore_newest(small_run, other)
    assert names(small_run) == {"1", "2", "3"}


def test_a_deletion_that_was_cut_off_does_not_stop_a_run(small_run):
    """Orbax deletes file by file; a process can be killed after any of them."""
    everything = sorted((small_run / "1").rglob("*"), reverse=True)
    for file in sorted(everything, key=lambda path: path.is_dir()):
        file.rmdir() if file.is_dir() else file.unlink()
        assert restore_newest(small_run)[:2] == (3, 3), file


def test_a_truncated_checkpoint_of_a_run_is_named(workdir, variables):
    source = workdir / "checkpoints" / "3"
    checkpoints = RunCheckpoints(workdir, keep_latest=5, keep_best=1)
    for file in sorted(file for file in source.glob("*/**/*") if file.is_file()):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if len(whole) > 1 else b"")
        with pytest.raises(NovaError, match=f"{file} is damaged"):
            checkpoints.restore(3, trees(variables, 0), stream())
        with pytest.raises(NovaError, match=f"{file} is damaged"):
            load(workdir)
        file.write_bytes(whole)
    checkpoints.close()


def test_saving_does_not_see_what_training_does_next(tmp_path, variables):
    """The arrays are donated to the next step while they are still being written."""
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    state = jax.tree.map(jnp.copy, trees(variables, 4))
    expected = jax.tree.map(np.array, state)
    checkpoints = RunCheckpoints(tmp_path, keep_latest=1, keep_best=0)
    checkpoints.save(4, state, stream())
    for _ in range(3):
        state = step(state)
    restored = checkpoints.restore(4, trees(variables, 0), stream())
    checkpoints.close()
    same = jax.tree.map(lambda a, b: bool((a == b).all()), restored, expected)
    assert all(jax.tree.leaves(same))


def test_a_workdir_of_another_config_is_refused_with_the_keys(tmp_path):
    claim_workdir(tmp_path, CONFIG)
    claim_workdir(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_text()
    other = CONFIG | {"schedule": {"type": "flow_matching", "shift": 2.0}, "seed": 1}
    message = r"schedule.shift \(1.0 there, 2.0 now\), seed \(None there, 1 now\); choose another"
    with pytest.raises(NovaError, match=message):
        claim_workdir(tmp_path, other)
    assert (tmp_path / "config.json").read_text() == before
    claim_workdir(tmp_path, other, free=("schedule", "seed"))
    assert json.loads((tmp_path / "config.json").read_text())["schedule"]["shift"] == 2.0


def test_checkpoints_without_a_config_are_left_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(NovaError, match="has checkpoints but no config.json"):
        claim_workdir(tmp_path, CONFIG)
    assert not (tmp_path / "config.json").exists()


def test_a_full_disk_is_found_before_anything_is_replaced(copy, variables, monkeypatch):
    usage = shutil.disk_usage(copy)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(NovaError, match=f"{copy}: no space left on device"):
        save_model(copy, variables=variables, config=CONFIG, step=9)
    assert load(copy)[0].step == 7
    checkpoints = RunCheckpoints(copy.parent, keep_latest=1, keep_best=0)
    with pytest.raises(NovaError, match="checkpoints: no space left on device"):
        checkpoints.save(1, trees(variables, 1), stream())
    checkpoints.close()


def test_a_disk_that_fills_up_while_writing_is_one_line(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "config.json.partial")

    monkeypatch.setattr(run, "write_config", full)
    with pytest.raises(NovaError, match="no space left on device; free some"):
        claim_workdir(tmp_path / "run", CONFIG)
