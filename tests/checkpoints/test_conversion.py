"""The released layout to ours and back: the same bytes, and a pipeline that works on the way."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from flax.traverse_util import flatten_dict

from nova_jax.checkpoints import conversion, diffusers
from nova_jax.checkpoints.conversion import native_to_released, released_to_native
from nova_jax.checkpoints.model import save_model
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.checkpoints.tensors import open_tensors
from nova_jax.distributed.mesh import MeshConfig, make_mesh
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.pipeline import NovaPipeline
from nova_jax.training import loop
from nova_jax.training.config import TrainConfig

GOLDEN = Path(__file__).parent.parent / "golden"
RELEASED = GOLDEN / "pipeline_t2v"
FEW = {"num_inference_steps": 2, "num_diffusion_steps": 2, "disable_progress_bar": True}


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    directory = tmp_path_factory.mktemp("converted") / "native"
    released_to_native(str(RELEASED), directory)
    return directory


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def assert_same_release(one: Path, other: Path) -> None:
    mine, theirs = files(one), files(other)
    assert mine.keys() == theirs.keys()
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert [name for name in mine if mine[name] != theirs[name] and name != weights] == []
    tensors = [open_tensors(d / "transformer", [diffusers.WEIGHTS]) for d in (one, other)]
    assert set(tensors[0]) == set(tensors[1])
    for name in tensors[0]:
        ours, released = (t[name] for t in tensors)
        assert ours.dtype == released.dtype and ours.tobytes() == released.tobytes(), name


def test_there_and_back_is_bit_exact(native, tmp_path):
    native_to_released(str(native), tmp_path / "back")
    assert_same_release(tmp_path / "back", RELEASED)


def test_files_of_several_types_come_back_as_they_were(tmp_path):
    shutil.copytree(RELEASED, tmp_path / "mixed")
    path = tmp_path / "mixed" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    for index, name in enumerate(tensors):
        tensors[name] = tensors[name].astype([np.float16, np.float32][index % 2])
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    released_to_native(str(tmp_path / "mixed"), tmp_path / "native")
    native_to_released(str(tmp_path / "native"), tmp_path / "back")
    assert_same_release(tmp_path / "back", tmp_path / "mixed")


def test_a_converted_model_generates_what_the_released_one_does(native):
    one = NovaPipeline.from_checkpoint(native, devices=jax.devices()[:1])
    other = NovaPipeline.from_pretrained(RELEASED)
    videos = [p("a red seven", max_latent_length=2, **FEW).frames for p in (one, other)]
    np.testing.assert_array_equal(*videos)


def test_a_training_run_is_given_back_complete(tmp_path):
    """Trained on latents and features of a released model's frozen parts."""
    source = GOLDEN / "pipeline_t2i"
    model, _ = diffusers.load_transformer(source)
    parts = {"type": "released", "source": str(source)}
    few = {"every": 2}
    config = TrainConfig.from_dict(
        {
            "steps": 2,
            "model": model.config.to_dict(),
            "schedule": {"type": "flow_matching"},
            "codec": parts,
            "text_encoder": parts,
            "dataset": {"size": (64, 64), "frames": 1, "digit_size": 40.0, "num_clips": 64},
            "data": {"batch_size": 8, "image_batch_size": 8, "video_fraction": 0.0},
            "checkpoint": few,
            "validation": few | {"batches": 1},
            "logging": few | {"tensorboard": False},
        }
    )
    loop.train(config, tmp_path / "run")
    states = {}
    for which in ("ema", "raw"):
        native_to_released(str(tmp_path / "run"), tmp_path / which, weights=which)
        states[which] = nnx.state(diffusers.load_transformer(tmp_path / which)[0])
        trained = nnx.state(open_checkpoint(tmp_path / "run", weights=which).load_transformer()[0])
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), states[which], trained))
        others = [path for path in files(source) if path.split("/")[0] != "transformer"]
        assert {p: files(tmp_path / which)[p] for p in others} == {
            p: files(source)[p] for p in others
        }
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *states.values()))
    assert run_once(NovaPipeline.from_pretrained(tmp_path / "ema")).shape == (1, 1, 64, 64, 3)


def run_once(pipeline):
    return pipeline("a red seven", **FEW).frames


def test_other_schedules_and_types_are_written(native, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(native, model)
    config = json.loads((model / "config.json").read_text())
    del config["dtypes"]
    config["schedule"]["shift"] = 3.0
    (model / "config.json").write_text(json.dumps(config))
    native_to_released(str(model), tmp_path / "out")
    tensors = open_tensors(tmp_path / "out" / "transformer", [diffusers.WEIGHTS])
    assert {tensors[name].dtype for name in tensors} == {np.dtype(np.float32)}
    _, schedule = diffusers.load_transformer(tmp_path / "out")
    assert schedule.shift == 3.0
    native_to_released(str(model), tmp_path / "half", dtype="bfloat16")
    tensors = open_tensors(tmp_path / "half" / "transformer", [diffusers.WEIGHTS])
    assert {str(tensors[name].dtype) for name in tensors} == {"bfloat16"}


def test_parts_that_the_release_does_not_know_are_refused(untrained, tmp_path):
    with pytest.raises(NovaError, match="trained with codec 'pixels'.*--parts"):
        native_to_released(str(untrained), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sizes_that_the_released_layout_cannot_say_are_refused(tmp_path):
    """It does not say how many classes there are."""
    released_to_native(GOLDEN / "pipeline_t2i", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    text = NovaConfig.from_dict(config["model"])
    for classes, fits in {1000: True, 10: False}.items():
        model = dataclasses.replace(text, text_dim=None, text_length=None, num_classes=classes)
        assert conversion.is_released(model, GOLDEN / "pipeline_t2i") == fits
    variables = nnx.to_pure_dict(nnx.state(Nova(model, rngs=nnx.Rngs(0))))
    config |= {"model": model.to_dict(), "text_encoder": None, "dtypes": "float32"}
    save_model(
        tmp_path / "model", variables=flatten_dict(variables, sep="."), config=config, step=0
    )
    with pytest.raises(NovaError, match="no place for, such as another number of classes than"):
        native_to_released(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(native, tmp_path):
    (tmp_path / "mine").write_text("precious")
    for convert in (released_to_native, native_to_released):
        with pytest.raises(NovaError, match="exists already; choose another name"):
            convert(str(native), tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    ("convert", "last"),
    [(released_to_native, "write_checksums"), (native_to_released, "write_safetensors")],
)
def test_what_is_interrupted_leaves_nothing(native, tmp_path, monkeypatch, convert, last):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    source, out = RELEASED if convert is released_to_native else native, tmp_path / "new" / "out"
    out.mkdir(parents=True)  # an empty directory is not in the way
    monkeypatch.setattr(conversion, last, interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(source, out)
    assert not list(out.parent.iterdir())


def test_every_difference_is_listed_at_once(tmp_path):
    shutil.copytree(RELEASED / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    del tensors["encoder.conv_in.bias"]
    tensors["decoder.conv_in.weight"] = np.zeros((2, 2), np.float32)
    tensors["loss.log_variance"] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(NovaError) as raised:
        diffusers.load_autoencoder(tmp_path / "vae")
    for part in (
        "missing encoder.conv_in.bias",
        "unknown loss.log_variance",
        "decoder.conv_in.weight has shape [2, 2], the model needs [3, 3, 3, 4, 32]",
    ):
        assert part in str(raised.value)


def test_parameters_go_to_their_shards_and_types():
    mesh = make_mesh(config=MeshConfig(fsdp=2, tensor=2))
    model, _ = diffusers.load_transformer(RELEASED, param_dtype="bfloat16", mesh=mesh)
    kernel = model.temporal_encoder.blocks.block.mlp.fc1.kernel.get_value()
    assert kernel.dtype == "bfloat16"
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    whole, _ = diffusers.load_transformer(RELEASED)
    for ours, theirs in zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, whole)), strict=True):
        np.testing.assert_array_equal(np.float32(ours), np.asarray(theirs.astype("bfloat16"), "f4"))
