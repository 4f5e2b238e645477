import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from flax import nnx
from flax.traverse_util import flatten_dict

from nova_jax.errors import NovaError
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Nova
from nova_jax.training.optimizer import (
    OptimizerConfig,
    decays,
    learning_rate_schedule,
    make_optimizer,
    split_model,
)

PARAMS = {
    "norm": {"scale": np.array([1.0, 2.0]), "bias": np.array([0.5, -0.5])},
    "out": {"kernel": np.array([[0.1, -0.2]]), "bias": np.array([3.0, 1.0])},
    "mask_token": np.array([0.7]),
}
GRADS = {
    "norm": {"scale": np.array([0.3, -1.0]), "bias": np.array([2.0, 0.0])},
    "out": {"kernel": np.array([[1e-3, 5.0]]), "bias": np.array([-0.4, 0.2])},
    "mask_token": np.array([-2.0]),
}


def adamw_of_pytorch(p, g, decay, steps, lr=1e-2, b1=0.9, b2=0.95, eps=1e-8):
    """As torch.optim.AdamW documents it, with the same gradient at each step."""
    m = v = 0.0
    for t in range(1, steps + 1):
        p = p - lr * decay * p
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return p


def after(config, steps, grads=GRADS):
    optimizer = make_optimizer(config, steps)
    as_arrays = {"norm": 0, "out": 0, "mask_token": 0}
    params = {k: _float32(PARAMS[k]) for k in as_arrays}
    grads = {k: _float32(grads[k]) for k in as_arrays}
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def _float32(tree):
    if isinstance(tree, dict):
        return {k: _float32(v) for k, v in tree.items()}
    return jnp.asarray(tree, jnp.float32)


def test_adamw_is_that_of_pytorch_and_norms_do_not_decay():
    params = flatten_dict(after(OptimizerConfig(learning_rate=1e-2, weight_decay=0.5), 3))
    for path, value in flatten_dict(PARAMS).items():
        decay = 0.0 if path[0] == "norm" else 0.5
        expected = adamw_of_pytorch(value, flatten_dict(GRADS)[path], decay, 3)
        np.testing.assert_allclose(params[path], expected, rtol=2e-6, err_msg=str(path))


def test_clipping_scales_the_whole_gradient():
    grads = {"norm": GRADS["norm"], "out": GRADS["out"], "mask_token": np.array([1e6])}
    clipped = after(OptimizerConfig(clip_norm=1e-3, eps=1.0), 1, grads)
    free = after(OptimizerConfig(eps=1.0), 1, grads)
    # With eps 1 the update grows with the gradient, which clipping makes tiny.
    start = PARAMS["norm"]["scale"]
    assert np.abs(clipped["norm"]["scale"] - start).max() < 1e-6
    assert np.abs(free["norm"]["scale"] - start).max() > 1e-5


def test_accumulation_updates_once_with_the_mean():
    twice = after(OptimizerConfig(accumulate=2, learning_rate=1e-2), 2)
    once = after(OptimizerConfig(learning_rate=1e-2), 1)
    for path, value in flatten_dict(once).items():
        np.testing.assert_allclose(flatten_dict(twice)[path], value, rtol=1e-6)
    unchanged = after(OptimizerConfig(accumulate=2), 1)
    np.testing.assert_array_equal(unchanged["out"]["kernel"], PARAMS["out"]["kernel"].astype("f4"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (
            {"schedule": "cosine", "warmup_steps": 2, "end_factor": 0.5},
            [0.5, 1, 1, *(0.75 + 0.25 * np.cos(np.pi * np.arange(1, 6) / 6))],
        ),
        (
            {"schedule": "multistep", "milestones": (3, 6), "warmup_steps": 2},
            [0.5, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01],
        ),
    ],
)
def test_learning_rates(options, expected):
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, **options), 8)
    np.testing.assert_allclose([schedule(i) for i in range(8)], expected, rtol=1e-6)


VIDEO = NovaConfig.from_dict(small.VIDEO)
IMAGES = NovaConfig.from_dict(small.IMAGES)


def split_names(config, freeze=None):
    model = nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0)))
    _, params, rest = split_model(model, config, freeze)
    return set(flatten_dict(params, sep=".")), set(flatten_dict(rest, sep="."))


def test_the_recipe_freezes_text_norm_and_motion():
    _, frozen = split_names(VIDEO)
    motion = {f"motion_embed.{of}.{fc}.{leaf}" for of in ("flow", "fps") for fc in ("fc1", "fc2")
              for leaf in ("kernel", "bias")}  # fmt: skip
    assert frozen == motion | {"text_embed.norm.scale", "text_embed.norm.bias", "text_embed.buffer"}


def test_image_models_freeze_the_parts_for_video():
    _, frozen = split_names(IMAGES)
    assert {"temporal_encoder.patch_embed.kernel", "temporal_encoder.patch_embed.bias"} < frozen
    assert not any(name.startswith("spatial_decoder") for name in frozen)


def test_nothing_but_buffers_is_frozen_on_request():
    assert split_names(VIDEO, ())[1] == {"text_embed.buffer"}


def test_every_parameter_but_those_of_norms_decays():
    model = nnx.eval_shape(lambda: Nova(VIDEO, rngs=nnx.Rngs(0)))
    params = split_model(model, VIDEO)[1]
    kept = {name for name, decay in flatten_dict(decays(params), sep=".").items() if not decay}
    assert kept == {n for n in flatten_dict(params, sep=".") if ".norm" in n}
    assert "temporal_encoder.blocks.block.norm1.scale" in kept
    assert "diffusion_head.blocks.block.modulation.bias" not in kept


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        *(({"learning_rate": rate}, "learning_rate") for rate in (1e9, 1e30, float("nan"))),
        ({"eps": 0.0}, "eps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"accumulate": 0}, "accumulate"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"schedule": "multistep"}, "milestones"),
        ({"milestones": (5,)}, "milestones"),
        ({"schedule": "multistep", "milestones": (6, 3)}, "milestones"),
        ({"freeze": ("(",)}, "freeze"),
    ],
)
def test_impossible_options_are_named(options, named):
    with pytest.raises(NovaError, match=f"(OptimizerConfig|optimizer).{named}"):
        OptimizerConfig(**options)


def test_a_freeze_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(NovaError, match="txt_embed"):
        split_names(VIDEO, ("txt_embed",))


def test_a_warmup_longer_than_the_run_is_an_error():
    with pytest.raises(NovaError, match="warmup_steps 9"):
        learning_rate_schedule(OptimizerConfig(schedule="cosine", warmup_steps=9), 9)


def test_muon_makes_the_updates_of_blocks_orthogonal_and_leaves_the_rest_to_adamw():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731

    def tree():
        block = {"fc1": {"kernel": draw(2, 8, 16), "bias": draw(2, 16)},
                 "modulation": {"kernel": draw(2, 8, 24)}}  # fmt: skip
        return {"encoder_blocks": {"block": block}, "out": {"kernel": draw(8, 4)}}

    params, gradients = tree(), tree()
    options = {"learning_rate": 0.01, "weight_decay": 0.0, "clip_norm": 1.0}
    updates = {}
    for kind in ("adamw", "muon"):
        optimizer = make_optimizer(OptimizerConfig(type=kind, **options), 10)
        made, _ = optimizer.update(gradients, optimizer.init(params), params)
        updates[kind] = flatten_dict(made, sep=".")
    matrix = updates["muon"].pop("encoder_blocks.block.fc1.kernel")
    # Of the size of AdamW's: root mean square 0.2, whatever the matrix is.
    singular = jnp.linalg.svd(matrix, compute_uv=False) / (0.01 * 0.2 * 16**0.5)
    assert ((singular > 0.6) & (singular < 1.3)).all(), singular
    for name, update in updates["muon"].items():
        np.testing.assert_allclose(update, updates["adamw"][name], rtol=1e-5, err_msg=name)
