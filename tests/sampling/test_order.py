"""Reveal order, set sizes and the buckets that AR steps share."""

import jax
import numpy as np
import pytest

from nova_jax.errors import NovaError
from nova_jax.sampling.order import (
    bucket_steps,
    reveal_order,
    set_sizes,
    to_reveal_order,
    to_row_major,
)


def test_set_sizes_follow_the_cosine():
    # N = 16, K = 4: 16·cos(π/8 · k) = 14.78, 11.31, 6.12, 0 → 15, 11, 6, 0 masked.
    assert set_sizes(16, 4).tolist() == [1, 4, 5, 6]


def test_steps_that_reveal_nothing_are_dropped():
    sizes = set_sizes(24, 40)
    assert sizes.sum() == 24
    assert (sizes > 0).all()
    assert len(sizes) == 24


def test_no_step_is_an_error():
    with pytest.raises(NovaError, match="num_inference_steps is 0"):
        set_sizes(16, 0)


def test_order_is_a_permutation_of_its_own_key():
    keys = jax.random.split(jax.random.key(3), 4)
    order = np.asarray(reveal_order(keys, 20))
    assert (np.sort(order, axis=1) == np.arange(20)).all()
    alone = np.asarray(reveal_order(keys[2:3], 20))
    assert (alone[0] == order[2]).all()


def test_orders_are_inverse():
    tokens = jax.random.normal(jax.random.key(0), (2, 12, 3))
    order = reveal_order(jax.random.split(jax.random.key(1), 2), 12)
    revealed = to_reveal_order(tokens, order)
    np.testing.assert_array_equal(revealed[1, 5], tokens[1, order[1, 5]])
    np.testing.assert_array_equal(to_row_major(revealed, order), tokens)


@pytest.mark.parametrize(("tokens", "steps"), [(16, 4), (24, 40), (1440, 64), (4096, 128), (1, 1)])
def test_buckets_cover_every_step_once_and_waste_little(tokens, steps):
    def cost(visible, predicted):  # of the same form as the real one
        return 300 + visible + 2 * predicted

    sizes = set_sizes(tokens, steps)
    buckets = bucket_steps(sizes, cost)
    assert [c for b in buckets for c in b.counts] == sizes.tolist()
    assert [s for b in buckets for s in b.starts] == (np.cumsum(sizes) - sizes).tolist()
    firsts = np.cumsum([0] + [len(b.counts) for b in buckets])[:-1]
    assert [b.first for b in buckets] == firsts.tolist()
    for bucket in buckets:
        assert bucket.prefix >= max(bucket.starts)
        assert bucket.width >= max(bucket.counts)
        padded, needed = bucket.cost(cost)
        assert needed == sum(map(cost, bucket.starts, bucket.counts))
        assert needed <= padded <= 1.05 * needed
