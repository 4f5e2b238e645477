"""Traces of a run: which steps they hold, and when they are written."""

import jax.numpy as jnp

from nova_jax.training.throughput import TRACED, Trace


def test_a_trace_of_a_few_steps_is_written_when_they_are_done(tmp_path):
    with Trace(tmp_path, 3) as trace:
        for step in range(1, 10):
            trace.before(step)
            trace.after(step, {"loss": jnp.zeros(())})
            assert bool(list(tmp_path.rglob("*.xplane.pb"))) == (step >= 3 + TRACED - 1)
