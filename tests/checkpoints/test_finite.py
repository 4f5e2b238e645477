"""Numbers that are not finite: neither saved nor loaded, and named by file and array."""

import re
import shutil
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import small
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from nova_jax.checkpoints import model, run
from nova_jax.checkpoints.adapters import save_adapters
from nova_jax.checkpoints.conversion import native_to_released, released_to_native
from nova_jax.checkpoints.finite import not_finite
from nova_jax.checkpoints.model import save_model
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.checkpoints.run import RunCheckpoints, claim_workdir
from nova_jax.errors import NovaError
from nova_jax.export import export
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.pipeline import NovaPipeline
from nova_jax.training.lora import LoraConfig, create_adapters

RELEASED = Path(__file__).parent.parent / "golden" / "pipeline_t2v"
KERNEL = "diffusion_head.blocks.block.mlp.fc1.kernel"


@pytest.fixture
def careless(monkeypatch):
    """A function that acts as earlier versions did, which saved whatever there was."""

    def act(action):
        with monkeypatch.context() as earlier:
            for module in (run, model):
                earlier.setattr(module, "check_finite", lambda *_: None)
            return action()

    return act


def spoiled(array, value=np.nan, count=1):
    """A copy whose first numbers are `value`."""
    flat = np.array(array).reshape(-1)
    flat[:count] = value
    return flat.reshape(array.shape)


def released(tmp_path, part, name, value=np.nan, dtype=None):
    """A copy of the released model with a tensor spoiled, its file, and how it is named."""
    directory = shutil.copytree(RELEASED, tmp_path / "released")
    (file,) = (directory / part).glob("*.safetensors")
    tensors = safetensors.numpy.load_file(file)
    tensors = {key: tensor.astype(dtype or tensor.dtype) for key, tensor in tensors.items()}
    tensors[name] = spoiled(tensors[name], value, 2)
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    return directory, file, f"{name} (2 of {tensors[name].size} "


def stream():
    return iter(grain.MapDataset.range(9).to_iter_dataset())


def trees(step):
    arrays = {"w": jnp.full((4, 6), float(step)), "b": jnp.full(3, float(step))}
    moments = {"count": jnp.asarray(step), "nu": dict(arrays)}
    return {"params": dict(arrays), "ema": dict(arrays), "optimizer": {"state": (moments,)}}


def save(directory, step, tree, loss=None):
    with RunCheckpoints(directory, keep_latest=9, keep_best=1) as checkpoints:
        checkpoints.save(step, tree, stream(), loss)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_numbers_are_counted_where_they_lie(dtype):
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(8, 12)).astype(jnp.dtype(dtype))
    whole[rng.random(whole.shape) < 0.2] = np.inf
    whole[7, 3:5] = np.nan
    mesh = jax.make_mesh((4,), ("fsdp",), devices=jax.devices()[:4])
    places = [PartitionSpec("fsdp"), PartitionSpec(None, "fsdp"), PartitionSpec()]
    arrays = {
        f"a{i}": jax.device_put(whole, NamedSharding(mesh, place)) for i, place in enumerate(places)
    }
    fine = np.where(np.isfinite(whole), whole, 0).astype(whole.dtype)
    arrays["fine"] = jax.device_put(fine, NamedSharding(mesh, places[0]))
    arrays["whole"] = jax.device_put(np.arange(4), NamedSharding(mesh, places[0]))
    count = np.sum(~np.isfinite(whole.astype(np.float64)))
    assert not_finite({"tree": (arrays,)}) == {
        f"tree.0.a{i}": f"{count} of 96 {dtype}" for i in range(3)
    }
    assert not_finite({}) == {}


@pytest.mark.parametrize(
    "part", [("params", "w"), ("ema", "b"), ("optimizer", "state", 0, "nu", "w")]
)
def test_a_state_that_is_not_finite_is_not_saved(part, tmp_path):
    save(tmp_path, 1, trees(1))
    tree = place = trees(2)
    for key in part[:-1]:
        place = place[key]
    place[part[-1]] = jnp.asarray(spoiled(place[part[-1]], -np.inf))
    name = re.escape(f"{'.'.join(map(str, part))} (1 of {place[part[-1]].size} float32)")
    with pytest.raises(NovaError, match=f"step 2 was not saved: .*{name}; lower optimizer.learn"):
        save(tmp_path, 2, tree)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    with RunCheckpoints(tmp_path, keep_latest=9, keep_best=1) as checkpoints:
        assert checkpoints.restore_newest(trees(0), stream())[0] == 1


def test_a_run_goes_on_from_the_last_checkpoint_that_is_finite(careless, tmp_path, caplog):
    save(tmp_path, 1, trees(1))
    for step in (2, 3):
        bad = trees(step)
        bad["ema"]["w"] = jnp.asarray(spoiled(bad["ema"]["w"], np.nan, step))
        careless(lambda step=step, bad=bad: save(tmp_path, step, bad))
    with RunCheckpoints(tmp_path, keep_latest=9, keep_best=1) as checkpoints:
        with pytest.raises(NovaError, match=r"checkpoints/3: .* ema.w \(3 of 24 float32\)"):
            checkpoints.restore(3, trees(0), stream())
        step, restored = checkpoints.restore_newest(trees(0), stream())
    assert step == 1 and np.all(restored["params"]["w"] == 1)
    assert "checkpoints/2: not finite are numbers of ema.w (2 of 24 float32)" in caplog.text
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "1",
        "2.damaged",
        "3.damaged",
    }


def test_a_run_whose_checkpoints_are_not_finite_does_not_start_anew(careless, tmp_path):
    bad = trees(1)
    bad["params"]["w"] = bad["params"]["w"] * np.nan
    careless(lambda: save(tmp_path, 1, bad))
    with (
        RunCheckpoints(tmp_path, keep_latest=9, keep_best=1) as checkpoints,
        pytest.raises(NovaError, match="every checkpoint in .* is damaged"),
    ):
        checkpoints.restore_newest(trees(0), stream())


def test_a_validation_loss_that_is_not_finite_is_never_the_best(tmp_path):
    claim_workdir(tmp_path, {})
    for step, loss in enumerate((float("nan"), 2.0, 3.0, float("inf")), 1):
        save(tmp_path, step, trees(step), loss)
    assert run.choose_checkpoint(run.absolute(tmp_path), "best").name == "2"


@pytest.fixture
def variables(untrained):
    loaded, _ = open_checkpoint(untrained).load_transformer()
    return flatten_dict(nnx.to_pure_dict(nnx.state(loaded)), sep=".")


def resave(directory, config, variables, **options):
    save_model(directory, variables=variables, config=config, step=0, **options)
    return directory


def test_a_model_that_is_not_finite_is_neither_written_nor_opened(
    careless, untrained, variables, tmp_path
):
    config = open_checkpoint(untrained).config
    place = resave(tmp_path / "model", config, variables)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    bad = variables | {KERNEL: jnp.asarray(spoiled(variables[KERNEL]))}
    message = re.escape(f"{KERNEL} (1 of {bad[KERNEL].size} float32)")
    with pytest.raises(NovaError, match=f"model was not written: .*{message}"):
        resave(place, config, bad)
    # What a half type cannot hold is no number there.
    large = variables | {KERNEL: variables[KERNEL] + 1e5}
    with pytest.raises(NovaError, match=f"{KERNEL} .* float16"):
        resave(place, config, large, dtype=jnp.float16)
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    careless(lambda: resave(place, config, bad))
    with pytest.raises(NovaError, match=f"checkpoint {place}: .*{message}; restore it"):
        NovaPipeline.from_checkpoint(place)
    resave(place, config, large)
    with pytest.raises(NovaError, match=f"checkpoint {place}: .*{KERNEL} .* float16"):
        open_checkpoint(place).load_transformer(param_dtype="float16")
    with pytest.raises(NovaError, match=f"checkpoint {place}: .*{KERNEL} .* float16"):
        native_to_released(place, tmp_path / "out", dtype="float16", parts=str(RELEASED))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "name", "value", "dtype"),
    [
        ("transformer", "image_encoder.blocks.1.mlp.fc1.weight", np.inf, np.float16),
        ("vae", "decoder.conv_in.weight", -np.inf, None),
        ("text_encoder", "model.layers.1.mlp.fc1.weight", np.nan, ml_dtypes.bfloat16),
    ],
)
def test_a_released_tensor_that_is_not_finite_is_named(part, name, value, dtype, tmp_path):
    directory, file, name = released(tmp_path, part, name, value, dtype)
    with pytest.raises(NovaError, match=f"{file}: .*{re.escape(name)}.*; fetch it") as error:
        NovaPipeline.from_pretrained(directory)
    assert "\n" not in str(error.value)


def test_a_release_that_is_not_finite_is_not_converted(tmp_path):
    directory, _, name = released(tmp_path, "transformer", "image_decoder.blocks.0.proj.fc1.weight")
    with pytest.raises(NovaError, match=re.escape(f"numbers of {name}")):
        released_to_native(directory, tmp_path / "native")
    assert not (tmp_path / "native").exists()


def test_adapters_that_are_not_finite_are_neither_written_nor_opened(careless, tmp_path):
    config = NovaConfig.from_dict(small.VIDEO)
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0)))))
    frozen = {
        name: jnp.asarray(np.ones(leaf.shape, np.float32))
        for name, leaf in flatten_dict(shapes, sep=".").items()
    }
    lora = LoraConfig(rank=2)
    adapters = create_adapters(lora, frozen, 0)
    name = next(name for name in adapters if name.endswith(".a"))
    bad = adapters | {name: jnp.asarray(spoiled(adapters[name]))}
    options = dict(rank=2, alpha=2.0, model=config, base="base")
    with pytest.raises(NovaError, match=f"adapters was not written: .*{re.escape(name)} "):
        save_adapters(tmp_path / "adapters", adapters=bad, **options)
    assert not (tmp_path / "adapters").exists()

    described = {"model": config.to_dict(), "schedule": {"type": "flow_matching"}}
    claim_workdir(tmp_path / "run", described | {"lora": {"rank": 2, "alpha": 2.0}})
    careless(lambda: save(tmp_path / "run", 1, {"params": adapters, "ema": bad, "frozen": frozen}))
    with pytest.raises(NovaError, match=f"checkpoints/1: .*{re.escape(name)} "):
        open_checkpoint(tmp_path / "run").load_transformer()
    open_checkpoint(tmp_path / "run", weights="raw").load_transformer()


def test_a_pipeline_that_is_not_finite_is_not_exported(untrained, tmp_path):
    pipeline = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])
    token = pipeline.model.spatial_decoder.mask_token
    token.set_value(token.get_value().at[3].set(jnp.nan))
    with pytest.raises(NovaError, match=r"transformer.spatial_decoder.mask_token \(1 of 32 float"):
        export(pipeline, tmp_path / "small.zip")
    assert not list(tmp_path.iterdir())
