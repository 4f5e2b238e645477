"""The model's structure: what may see what, and that options change speed but not numbers.

The numbers themselves are checked against the PyTorch release in tests/parity.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import CONFIG, make

from nova_jax.errors import NovaError
from nova_jax.kernels.attention import block_causal_mask
from nova_jax.models import Conditions, Nova
from nova_jax.models.embeddings import apply_rotary, rotary_angles, space_embedding
from nova_jax.models.layers import Buffer, logical_axes, patchify, unpatchify


def inputs(frames=3, batch=2):
    keys = jax.random.split(jax.random.key(2), 3)
    latents = jax.random.normal(keys[0], (batch, frames, 8, 12, 3))
    text = jax.random.normal(keys[1], (batch, 4, 8))
    conditions = Conditions(
        text=text,
        text_length=jnp.array([3, 4][:batch]),
        flow=jnp.full(batch, 5.0),
        fps=jnp.full(batch, 12.0),
    )
    order = jnp.argsort(jax.random.uniform(keys[2], (batch * frames, 24)), axis=1)
    return latents, conditions, order


@nnx.jit
def forward(model, latents, conditions, order, visible):
    return model(latents, conditions, order, visible)


@pytest.mark.parametrize("rotary", [False, True])
def test_a_model_of_another_size_is_the_same_model(rotary):
    config = dataclasses.replace(CONFIG, rotary=rotary)
    model, size = make(config), (config.latent_size[0] + 4, config.latent_size[1] - 4)
    assert model.resized(config.latent_size) is model
    there = Nova(dataclasses.replace(config, latent_size=size), rngs=nnx.Rngs(0))
    nnx.update(there, nnx.state(model))
    resized = model.resized(size)
    assert resized.config == there.config and model.config == config
    latents = jax.random.normal(jax.random.key(0), (2, 3, *size, 3))
    conditions, tokens = inputs()[1], there.config.num_tokens
    order = jnp.argsort(jax.random.uniform(jax.random.key(1), (6, tokens)), axis=1)
    given = (latents, conditions, order, jnp.asarray(5))
    np.testing.assert_array_equal(forward(resized, *given), forward(there, *given))
    with pytest.raises(NovaError, match="latent_size 9x12 is not divisible"):
        model.resized((9, 12))


def test_block_causal_mask_written_out():
    # Two condition tokens and slot 0 are one block; slots 1 and 2 have two tokens each.
    mask = block_causal_mask(np.array([0, 0, 0, 0, 1, 1, 2, 2]))
    wanted = [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
    np.testing.assert_array_equal(mask, np.array(wanted, bool))


@pytest.mark.parametrize(("rotary", "temporal_patch"), [(False, 2), (True, 2), (True, 1)])
def test_frames_never_see_later_ones_and_tokens_never_see_masked_ones(rotary, temporal_patch):
    config = dataclasses.replace(CONFIG, rotary=rotary, temporal_patch=temporal_patch)
    model = make(config)
    assert config.indicator_tokens == 24 // temporal_patch**2
    latents, conditions, order = inputs()
    visible = jnp.asarray(5)
    base = forward(model, latents, conditions, order, visible).reshape(2, 3, 24, 32)
    changed = forward(model, latents.at[:, 1].add(1.0), conditions, order, visible)
    changed = changed.reshape(2, 3, 24, 32)
    np.testing.assert_array_equal(changed[:, 0], base[:, 0])
    assert float(jnp.abs(changed[:, 1] - base[:, 1]).max()) > 1e-3  # its own visible tokens
    assert float(jnp.abs(changed[:, 2] - base[:, 2]).max()) > 1e-3  # the frame before

    # A masked token of the last frame changes nothing, a visible one does.
    tokens = patchify(latents, 2)
    for position, differs in ((5, False), (4, True)):
        touched = tokens.at[0, 2, order[2, position]].add(1.0)
        touched = forward(model, unpatchify(touched, 2, (4, 6)), conditions, order, visible)
        assert bool(jnp.any(touched.reshape(2, 3, 24, 32) != base)) == differs


def test_padding_of_prompts_is_ignored_and_no_length_is_unconditional():
    model = make()
    latents, conditions, order = inputs()
    base = forward(model, latents, conditions, order, jnp.asarray(5))
    poisoned = dataclasses.replace(conditions, text=conditions.text.at[0, 3:].set(jnp.nan))
    np.testing.assert_array_equal(forward(model, latents, poisoned, order, jnp.asarray(5)), base)
    empty = [
        forward(
            model,
            latents,
            dataclasses.replace(conditions, text=text, text_length=jnp.zeros(2, jnp.int32)),
            order,
            jnp.asarray(5),
        )
        for text in (conditions.text, conditions.text * 2)
    ]
    np.testing.assert_array_equal(*empty)
    assert bool(jnp.any(empty[0] != base))


@pytest.mark.parametrize("options", [{"remat": "full"}, {"remat": "dots"}, {"unroll": 2}])
def test_speed_options_do_not_change_values_or_gradients(options):
    latents, conditions, order = inputs()

    @nnx.jit
    def value_and_gradient(model):
        def loss(model):
            return jnp.mean(model(latents, conditions, order, jnp.asarray(5)) ** 3)

        return nnx.value_and_grad(loss)(model)

    value, gradient = value_and_gradient(make())
    other_value, other_gradient = value_and_gradient(make(**options))
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(other_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_with_float32_parameters():
    model, half = make(), make(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    latents, conditions, order = inputs()
    full = forward(model, latents, conditions, order, jnp.asarray(5))
    low = forward(half, latents, conditions, order, jnp.asarray(5))
    assert low.dtype == jnp.bfloat16
    error = jnp.linalg.norm(low.astype(jnp.float32) - full) / jnp.linalg.norm(full)
    assert 1e-4 < float(error) < 0.05  # bf16 keeps 8 bits: 0.4 % a rounding


@pytest.mark.parametrize("rank", [None, 4, -1])
def test_mixer_ranks(rank):
    model = make(dataclasses.replace(CONFIG, mixer_rank=rank))
    mixer = model.temporal_encoder.mixer
    assert (mixer is None) == (rank is None)
    if mixer is not None:
        assert mixer.projection.kernel.shape == ((rank if rank > 0 else 32), 64)
    latents, conditions, order = inputs()
    assert forward(model, latents, conditions, order, jnp.asarray(5)).shape == (6, 24, 32)


def test_program_size_does_not_grow_with_depth():
    def size(depth):
        config = dataclasses.replace(CONFIG, spatial_decoder=f"vit_d{depth}w32")
        latents, conditions, order = inputs()
        model = nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0)))
        lowered = jax.jit(lambda m: m(latents, conditions, order, jnp.asarray(5))).lower(model)
        return len(lowered.as_text())

    assert size(32) < 1.1 * size(4)


def test_every_matrix_names_its_axes_and_only_the_text_buffer_is_untrained():
    model = make()
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        axes = logical_axes(variable)
        assert len(axes) == variable.get_value().ndim
        assert isinstance(variable, Buffer) == (path[-1] == "buffer")
        if path[-1] == "kernel":
            assert any(axes), path
        if "block" in path:
            assert axes[0] == "layers", path


def test_patchify_is_row_column_channel():
    image = jnp.arange(4 * 4 * 2).reshape(4, 4, 2)
    tokens = patchify(image, 2)
    np.testing.assert_array_equal(tokens[1], [4, 5, 6, 7, 12, 13, 14, 15])
    np.testing.assert_array_equal(unpatchify(tokens, 2, (2, 2)), image)


def test_space_embedding_is_integer_positions_x_before_y():
    table = space_embedding((2, 3), 8)
    np.testing.assert_allclose(table[5, :2], np.sin([2.0, 0.02]), rtol=1e-6)
    np.testing.assert_allclose(table[5, 6:], np.cos([1.0, 0.01]), rtol=1e-6)


def test_rotary_scores_depend_on_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 32))

    def score(a, b):
        rotated = (
            apply_rotary(x, rotary_angles(jnp.array([[p]]), 32)) for x, p in ((q, a), (k, b))
        )
        return float(jnp.sum(jnp.multiply(*rotated)))

    assert score((1, 2, 3), (0, 4, 1)) == pytest.approx(score((3, 5, 4), (2, 7, 2)), rel=1e-4)
    assert score((1, 2, 3), (0, 4, 1)) != pytest.approx(score((1, 2, 3), (0, 4, 2)), rel=1e-3)
