"""The recipes in configs/: they can be read, and are of the models and schedules they say.

How they are found where the package is installed, tests/test_wheel.py tries.
"""

import jax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from nova_jax import recipes
from nova_jax.distributed.mesh import make_mesh
from nova_jax.models.nova import Nova
from nova_jax.plan.compile import abstract_training
from nova_jax.training.config import TrainConfig
from nova_jax.training.optimizer import split_model

PUBLISHED = {  # batch, steps
    "t2i:256": (4096, 300_000),
    "t2i:512": (2048, 150_000),
    "t2i:1024": (1024, 30_000),
    "t2v_480p_0p6b:pretrain": (512, 80_000),
}
IMAGES = [f"t2i:{side}_{size}" for side in (256, 512, 1024) for size in ("0p3b", "0p6b", "1p4b")]
VIDEOS = [
    f"t2v_480p_0p6b:{run}" for run in ("pretrain", "finetune", "long", "i2v", "lora_24gb", "v5e8")
]
# Values in the released files, see docs/benchmarks.md.
PARAMETERS = {
    "t2i:256_0p3b": 365_256_720,
    "t2i:512_0p6b": 647_004_176,
    "t2i:1024_1p4b": 1_451_147_280,
    "t2v_480p_0p6b:pretrain": 645_505_040,
}


def read(recipe: str) -> TrainConfig:
    return TrainConfig.from_dict(recipes.read(recipe).to_dict())


def abstract(config: TrainConfig) -> Nova:
    return nnx.eval_shape(lambda: Nova(config.model, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("recipe", IMAGES + VIDEOS)
def test_recipes_can_be_read_and_stand_as_published(recipe):
    config = read(recipe)
    assert read(f"{recipe},synthetic").dataset.type == "synthetic"
    assert TrainConfig.from_dict(config.to_dict()) == config
    for name, published in PUBLISHED.items():
        if recipe.startswith(name):
            assert (config.data.batch_size, config.steps) == published
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps) == (
        *(1e-4, "constant"),
        0,
    )
    assert (optimizer.b1, optimizer.b2, optimizer.clip_norm, optimizer.freeze) == (
        *(0.9, 0.95),
        *(None, None),
    )
    assert optimizer.weight_decay == (0.0 if config.lora else 0.02)
    side = 60 if "480p" in recipe else int(recipe.split(":")[1].split("_")[0]) // 8
    assert config.model.latent_size[0] == side
    seen = min(config.clip_frames, config.context.window or config.clip_frames)
    assert seen == (9 if config.model.is_video else 1)
    # Nothing that the release does not do, unless a variant is for it.
    longer = recipe.endswith(":long")
    assert (config.context.changes_frames or config.sampling.window is not None) == longer


def test_stages_start_from_the_stage_before():
    """The model that a recipe starts from is its own at another size of pictures."""
    for recipe in IMAGES:
        config = read(recipe)
        if config.init is None:
            assert "256" in recipe
            continue
        _, stage, _ = config.init.checkpoint.split("/")
        before = read(stage.replace("t2i_", "t2i:")).model
        assert before.latent_size[0] * 2 == config.model.latent_size[0]
        assert before.spatial_decoder == config.model.spatial_decoder


@pytest.mark.parametrize("recipe", PARAMETERS)
def test_models_have_the_released_number_of_parameters(recipe):
    leaves = jax.tree.leaves(nnx.state(abstract(read(recipe))))
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[recipe]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            "t2i:256_0p3b",
            {
                "text_embed.norm",
                "text_embed.buffer",
                "temporal_encoder.time_embed",
                "temporal_encoder.patch_embed",
            },
        ),
        (
            "t2v_480p_0p6b:pretrain",
            {"text_embed.norm", "text_embed.buffer", "motion_embed.flow", "motion_embed.fps"},
        ),
    ],
)
def test_what_is_frozen_is_as_published(recipe, expected):
    config = read(recipe)
    _, _, frozen = split_model(abstract(config), config.model, config.optimizer.freeze)
    assert {".".join(name.split(".")[:2]) for name in flatten_dict(frozen, sep=".")} == expected


@pytest.mark.parametrize(
    "recipe",
    [
        *(pytest.param(recipe, marks=pytest.mark.slow) for recipe in IMAGES + VIDEOS[:4]),
        "t2v_480p_0p6b:lora_24gb",
        pytest.param("t2v_480p_0p6b:v5e8", marks=pytest.mark.slow),
    ],
)
def test_full_size_steps_can_be_traced(recipe):
    config = read(recipe)
    mesh = make_mesh(jax.devices()[: config.mesh.fsdp], config.mesh)
    step, state, batch = abstract_training(config, mesh)
    after, metrics = jax.eval_shape(step, state, batch)
    shape = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(shape, after) == jax.tree.map(shape, state)
    assert metrics["loss"].shape == ()
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    if config.lora:
        # rank 16 x (inputs + outputs) of four kernels a block, of 48 blocks.
        assert trained == 48 * 16 * 1024 * ((1 + 3) + (1 + 1) + (1 + 4) + (4 + 1))
