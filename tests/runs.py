"""A complete run, as small as one can be, for tests that train or plan one."""

import copy
from typing import Any

import jax
import pytest
import small


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Programs are run a few times only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def run() -> dict[str, Any]:
    """Plain values of a `TrainConfig`: 6 steps, pictures and videos of 2 frames, 8 a batch."""
    return copy.deepcopy(small.RUN)
