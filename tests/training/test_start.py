"""Runs that start from a checkpoint: with adapters, too, from released files to released files."""

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
from processes import finish, start, start_together

from nova_jax.checkpoints.adapters import apply_adapters
from nova_jax.checkpoints.conversion import native_to_released
from nova_jax.checkpoints.diffusers import load_transformer
from nova_jax.checkpoints.model import save_model
from nova_jax.checkpoints.open import open_checkpoint
from nova_jax.checkpoints.tensors import Tensors, open_tensors
from nova_jax.distributed.mesh import MeshConfig, make_mesh, parameter_shardings
from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.pipeline import NovaPipeline
from nova_jax.training import loop
from nova_jax.training.config import TrainConfig
from nova_jax.training.lora import LoraConfig, create_adapters
from nova_jax.training.optimizer import OptimizerConfig, make_optimizer
from nova_jax.training.start import InitConfig, load_initial
from nova_jax.training.state import state_maker

GOLDEN = Path(__file__).parent.parent / "golden"
IMAGES, VIDEOS = GOLDEN / "pipeline_t2i", GOLDEN / "pipeline_t2v"
SMALL = NovaConfig(
    latent_size=(4, 4),
    frames=2,
    temporal_encoder="vit_d1w32",
    spatial_decoder="vit_d2w32",
    diffusion_head="mlp_d1w32",
    text_dim=32,
    text_length=16,
    mixer_rank=4,
)


def variables(model: Nova) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.asarray(value.get_value()) for path, value in flat}


def released_tensors(directory: Path) -> Tensors:
    return open_tensors(directory / "transformer", ["diffusion_pytorch_model"])


@pytest.fixture(scope="module")
def video_model():
    return load_transformer(VIDEOS)[0]


@pytest.fixture(scope="module")
def image_model():
    return load_transformer(IMAGES)[0]


def test_an_image_model_becomes_a_video_model_of_another_size(video_model, image_model):
    mesh = make_mesh(config=MeshConfig(fsdp=2, tensor=2))
    config = video_model.config
    start = load_initial(InitConfig(checkpoint=str(IMAGES)), config, mesh)
    assert {".".join(name.split(".")[:2]) for name in start.fresh} == {
        "motion_embed.flow",
        "motion_embed.fps",
        "temporal_encoder.mixer",
    }
    shardings = parameter_shardings(nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0))), mesh)
    assert {k: v.sharding for k, v in start.variables.items()} == {
        k: shardings[k] for k in start.variables
    }
    optimizer = make_optimizer(OptimizerConfig(), 1)
    blueprint, _, create = state_maker(config, optimizer, mesh, seed=1)
    state = create(start.variables)
    made, given = blueprint.variables(state.ema, state.frozen), variables(image_model)
    assert made.keys() == variables(video_model).keys()
    for name in given:
        np.testing.assert_array_equal(made[name], given[name], err_msg=name)
    assert {name: made[name].sharding for name in made} == shardings
    # What is new does nothing yet but tell frames' motion.
    assert not np.any(made["temporal_encoder.mixer.projection.kernel"])
    assert np.any(made["motion_embed.flow.fc1.kernel"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"spatial_decoder": "vit_d2w64"}, "config.model.spatial_decoder is 'vit_d2w64', there it"),
        ({"frames": 4, "rotary": True}, "model.frames is 4, there it is 3; .*model.rotary is True"),
        ({"frames": 1}, "config.model.frames is 1"),
        ({"diffusion_head": "mlp_d1w32"}, "or put 'diffusion_head.*' into init.fresh"),
        ({"mixer_rank": None}, "config.model.mixer_rank is None, there it is 8"),
        ({"text_length": 15}, "config.model.text_length"),
    ],
)
def test_what_differs_is_named(video_model, changes, named):
    config = dataclasses.replace(video_model.config, **changes)
    with pytest.raises(NovaError, match=named):
        load_initial(InitConfig(checkpoint=str(VIDEOS)), config, make_mesh())


def test_training_may_hide_other_shares_than_the_checkpoint_s_did(video_model):
    config = dataclasses.replace(video_model.config, mask_ratio_min=0.0, mask_ratio_std=100.0)
    start = load_initial(InitConfig(checkpoint=str(VIDEOS)), config, make_mesh())
    assert not start.fresh and len(start.variables) == len(variables(video_model))


def test_named_parts_are_drawn_anew_and_may_differ(video_model):
    config = dataclasses.replace(video_model.config, diffusion_head="mlp_d1w32")
    init = InitConfig(checkpoint=str(VIDEOS), fresh=(r"diffusion_head\.",))
    start = load_initial(init, config, make_mesh())
    assert start.fresh and {name.split(".")[0] for name in start.fresh} == {"diffusion_head"}
    with pytest.raises(NovaError, match="init.fresh: 'decoder' matches no parameter"):
        load_initial(
            InitConfig(checkpoint=str(VIDEOS), fresh=("decoder",)), video_model.config, make_mesh()
        )


def test_a_checkpoint_that_is_not_there_is_named(video_model):
    with pytest.raises(NovaError, match="there is no directory nowhere"):
        load_initial(InitConfig(checkpoint="nowhere"), video_model.config, make_mesh())


def tuning(**changes) -> TrainConfig:
    few = {"every": 100}
    return TrainConfig.from_dict(
        {
            "steps": 20,
            "model": SMALL.to_dict(),
            "init": {"checkpoint": "somewhere"},
            "lora": {"rank": 4, "alpha": 8, "targets": ("attention", "mlp", "diffusion_head")},
            "schedule": {"type": "flow_matching"},
            "dataset": {"type": "synthetic"},
            "data": {"batch_size": 8, "image_batch_size": 8, "video_fraction": 1.0},
            "optimizer": {"learning_rate": 1e-2},
            "ema": {"decay": 0.5},
            "loss_repeat": 2,
            "checkpoint": few,
            "validation": few | {"batches": 1},
            "logging": {"every": 10, "tensorboard": False},
        }
        | changes
    )


@pytest.fixture
def released(tmp_path) -> Path:
    """A small model in the released layout."""
    state = jax.jit(lambda: nnx.state(Nova(SMALL, rngs=nnx.Rngs(0))))()
    save_model(
        tmp_path / "small",
        variables=flatten_dict(nnx.to_pure_dict(state), sep="."),
        config={"model": SMALL.to_dict(), "schedule": {"type": "flow_matching"}},
        step=0,
    )
    native_to_released(str(tmp_path / "small"), tmp_path / "released", parts=str(VIDEOS))
    return tmp_path / "released"


def test_adapters_are_trained_and_everything_else_stays(released, tmp_path):
    """A released model is fine-tuned and given back in the released layout."""
    before = variables(load_transformer(released)[0])
    config = tuning(init={"checkpoint": str(released)})
    loop.train(config, tmp_path / "run")
    base = {name: tensor.astype(np.float32) for name, tensor in released_tensors(released).items()}
    shutil.rmtree(released)  # a run that has a checkpoint does not look at it again
    assert loop.train(config, tmp_path / "run").finished
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = [row["train_video/loss"] for row in rows if "train_video/loss" in row]
    assert len(losses) == 20
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])

    # What was trained, alone: files that peft reads.
    adapters = safetensors.numpy.load_file(tmp_path / "run/adapters/adapter_model.safetensors")
    described = json.loads((tmp_path / "run/adapters/adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"]) == (4, 8)
    # The run's checkpoint, its finished model and the released files hold the same sums.
    trained = variables(open_checkpoint(tmp_path / "run").load_transformer()[0])
    finished = variables(open_checkpoint(tmp_path / "run" / "model").load_transformer()[0])
    native_to_released(str(tmp_path / "run"), tmp_path / "out", parts=str(VIDEOS))
    given_back = variables(load_transformer(tmp_path / "out")[0])
    for name in before:
        np.testing.assert_array_equal(trained[name], finished[name], err_msg=name)
        np.testing.assert_array_equal(trained[name], given_back[name], err_msg=name)
    chosen = config.lora.select(before)
    assert {name for name in before if np.any(before[name] != trained[name])} == set(chosen)

    merged = released_tensors(tmp_path / "out")
    prefix, changed = "base_model.model.", set()
    for module in described["target_modules"]:
        a, b = (adapters[f"{prefix}{module}.lora_{x}.weight"] for x in "AB")
        weight = base[f"{module}.weight"]
        delta = (2.0 * b.reshape(len(b), -1) @ a.reshape(len(a), -1)).reshape(weight.shape)
        np.testing.assert_allclose(merged[f"{module}.weight"], weight + delta, atol=1e-6)
        changed.add(f"{module}.weight")
    for name in set(base) - changed:
        np.testing.assert_array_equal(merged[name], base[name], err_msg=name)

    pipeline = NovaPipeline.from_pretrained(tmp_path / "out")
    few = {"num_inference_steps": 2, "num_diffusion_steps": 2, "disable_progress_bar": True}
    latents = pipeline("a red seven", max_latent_length=2, output_type="latent", **few).latents
    assert latents.shape == (1, 2, 4, 4, 4) and np.isfinite(latents).all()


@pytest.mark.slow
def test_two_processes_start_from_a_model_and_train_the_adapters_that_one_does(released, tmp_path):
    run = tuning(init={"checkpoint": str(released)}, steps=3).to_dict()
    run["mesh"] = {"fsdp": 2}
    options = {"cache": tmp_path / "programs"}
    alone = start(run, tmp_path / "alone", devices=2, log=tmp_path / "alone.log", **options)
    assert finish([alone]) == [0], (tmp_path / "alone.log").read_text()
    both = start_together(2, run, tmp_path / "both", logs=tmp_path / "logs", **options)
    assert finish(both) == [0, 0], (tmp_path / "logs" / "0.log").read_text()
    one, two = (
        safetensors.numpy.load_file(tmp_path / name / "adapters" / "adapter_model.safetensors")
        for name in ("alone", "both")
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert any(np.any(value) for name, value in one.items() if "lora_B" in name)


def test_new_adapters_change_nothing_and_lie_as_their_kernels_do(video_model):
    given, config = variables(video_model), LoraConfig(rank=4)
    adapters = create_adapters(config, given, seed=0)
    made = apply_adapters(given, adapters, config.scale)
    for name in given:
        np.testing.assert_array_equal(made[name], given[name], err_msg=name)
    _, state, _ = state_maker(
        video_model.config,
        make_optimizer(OptimizerConfig(), 1),
        make_mesh(config=MeshConfig(fsdp=2, tensor=2)),
        lora=config,
    )
    assert flatten_dict(state.frozen, sep=".").keys() == given.keys()
    adapters = flatten_dict(state.params, sep=".")
    assert sum("attention" in name for name in adapters) == 3 * 2 * 2
    assert sum("mlp" in name for name in adapters) == 3 * 2 * 2
    qkv = "temporal_encoder.blocks.block.attention.qkv.kernel"
    assert adapters[f"{qkv}.a"].shape == (2, 64, 4) and adapters[f"{qkv}.b"].shape == (2, 4, 192)
    assert tuple(adapters[f"{qkv}.a"].sharding.spec) == (None, "fsdp", None)
    assert tuple(adapters[f"{qkv}.b"].sharding.spec) == (None, None, "tensor")
    moments = flatten_dict(state.optimizer[0].mu, sep=".")
    assert {k: v.sharding for k, v in moments.items()} == {
        k: v.sharding for k, v in adapters.items()
    }
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"init": None}, "lora needs a model to adapt"),
        ({"optimizer": {"freeze": ("motion",)}}, "leave optimizer.freeze out"),
        ({"lora": {"rank": 0}}, "lora.rank is 0"),
        ({"lora": {"alpha": 0.0}}, "lora.alpha is 0.0"),
        ({"lora": {"targets": ()}}, "lora.targets is empty"),
        ({"lora": {"targets": ("(",)}}, "no pattern"),
        ({"init": {"checkpoint": "x", "fresh": ("(",)}}, "no pattern"),
    ],
)
def test_impossible_settings_are_named(changes, named):
    with pytest.raises(NovaError, match=named):
        tuning(**changes)


def test_a_target_without_kernels_is_named(video_model):
    with pytest.raises(NovaError, match="'atention' matches no kernel; use attention or mlp"):
        LoraConfig(targets=("atention",)).select(variables(video_model))
