import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nova_jax.distributed.mesh import make_mesh
from nova_jax.training.config import TrainConfig
from nova_jax.training.optimizer import make_optimizer
from nova_jax.training.state import EMAConfig, TrainState, state_maker, update_ema


def follow(config, values):
    ema = {"w": jnp.zeros(1)}
    history = []
    for step, value in enumerate(values, 1):
        params = {"w": jnp.full(1, float(value))}
        ema = update_ema(config, jnp.asarray(step), ema, params)
        history.append(float(ema["w"][0]))
    return history


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EMAConfig(decay=0.5), [0.5, 1.25, 2.125, 3.0625]),
        (EMAConfig(decay=0.5, every=2), [0, 1.0, 1.0, 2.5]),
        (EMAConfig(decay=0.0), [1, 2, 3, 4]),
        # Weights of the past: 2/11, 3/12, then 0.25.
        (EMAConfig(decay=0.25, warmup=True), [9 / 11, 1.7045455, 2.6761364, 3.6690341]),
    ],
)
def test_the_average_follows_the_parameters(config, expected):
    np.testing.assert_allclose(follow(config, [1, 2, 3, 4]), expected, rtol=1e-6)


def test_moments_exist_for_trained_parameters_only(run):
    config = TrainConfig.from_dict(run)
    optimizer = make_optimizer(config.optimizer, config.steps)
    *_, create = state_maker(config.model, optimizer, make_mesh())
    state = create({})
    adam = state.optimizer[0]
    assert jax.tree.structure(adam.mu) == jax.tree.structure(state.params)
    assert not flatten_dict(state.params).keys() & flatten_dict(state.frozen).keys()
    assert jax.tree.structure(TrainState.from_trees(state.trees())) == jax.tree.structure(state)
    np.testing.assert_array_equal(
        state.ema["spatial_decoder"]["mask_token"], state.params["spatial_decoder"]["mask_token"]
    )
