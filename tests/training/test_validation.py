import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.training.loss import LossParts
from nova_jax.training.validation import buckets


def test_masked_tokens_are_counted_in_their_buckets():
    # One copy of one video: 2 frames of 3 tokens, the first token visible.
    zero = jnp.zeros(())
    parts = LossParts(
        loss=zero,
        first=zero,
        rest=zero,
        per_token=jnp.array([[[[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]]]]),
        weight=jnp.array([0.0, 1.0, 1.0]),
        timestep_index=jnp.array([[[[0, 199, 200], [999, 500, 999]]]]),
        mask_ratio=jnp.asarray(2 / 3 + 0.1),
    )
    expected = {
        "frame/0": (3, 2),
        "frame/1": (7, 2),
        "mask/0.7-0.8": (10, 4),
        "mask/0.8-0.9": (0, 0),
        "mask/0.9-1.0": (0, 0),
        "time/000-199": (1, 1),
        "time/200-399": (2, 1),
        "time/400-599": (3, 1),
        "time/600-799": (0, 0),
        "time/800-999": (4, 1),
    }
    found = {name: tuple(map(float, pair)) for name, pair in buckets(parts).items()}
    assert found == expected


@pytest.mark.parametrize("lowest", [0.0, 0.7, 0.8])
@pytest.mark.parametrize("ratio", [0.68, 0.7, 0.8, 0.81, 0.9, 0.95, 1.0])
def test_every_mask_ratio_has_one_bucket(ratio, lowest):
    tokens = jnp.ones((1, 1, 1, 4))
    parts = LossParts(
        loss=jnp.zeros(()),
        first=jnp.zeros(()),
        rest=jnp.zeros(()),
        per_token=tokens,
        weight=jnp.ones(4),
        timestep_index=tokens.astype(jnp.int32),
        mask_ratio=jnp.asarray(ratio, jnp.float32),
    )
    found = {k: count for k, (_, count) in buckets(parts, lowest).items() if k.startswith("mask")}
    assert min(found).startswith(f"mask/{lowest:.1f}-")
    np.testing.assert_array_equal(sorted(found.values()), [*[0] * (1 + (lowest < 0.8)), 4])
