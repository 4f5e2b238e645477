"""A complete run, as small as one can be."""

from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from small import VIDEO


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory):
    """Programs are run a few times only, and by runs taken up again once more."""
    directory = jax.config.jax_compilation_cache_dir
    for options in (
        (str(tmp_path_factory.mktemp("xla")), 0.0, True),
        (directory, 1.0, False),
    ):
        jax.config.update("jax_compilation_cache_dir", options[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", options[1])
        jax.config.update("jax_disable_most_optimizations", options[2])
        compilation_cache.reset_cache()
        if options[2]:
            yield


@pytest.fixture
def run() -> dict[str, Any]:
    """Plain values of a `TrainConfig`: 6 steps, pictures and videos of 2 frames, 8 a batch."""
    return {
        "steps": 6,
        "model": dict(VIDEO),
        "schedule": {"type": "flow_matching"},
        "codec": {"type": "pixels"},
        "text_encoder": {"type": "hashed_words", "dim": 16},
        "dataset": {"size": (12, 12), "frames": 2, "digit_size": 8.0, "num_clips": 64},
        "data": {"batch_size": 8, "image_batch_size": 16, "video_fraction": 0.5},
        "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2},
        "loss_repeat": 2,
        "checkpoint": {"every": 4},
        "logging": {"every": 2},
        "evaluation": {"every": 4, "batches": 2},
        "samples": {"every": 6, "prompts": ("a red seven moves up",)},
        "sampling": {"num_inference_steps": 2, "num_diffusion_steps": 2},
    }
