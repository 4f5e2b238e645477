"""Models small enough to compile in seconds."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict

from nova_jax.checkpoints.model import save_model
from nova_jax.models import Conditions, Nova, NovaConfig

#: Settings of the smallest video model, for tests of what surrounds it.
VIDEO = dict(
    latent_channels=3,
    latent_size=(12, 12),
    patch_size=3,
    frames=2,
    temporal_encoder="vit_d1w32",
    spatial_decoder="vit_d2w32",
    diffusion_head="mlp_d1w32",
    text_dim=16,
    text_length=8,
    mixer_rank=4,
)
IMAGES = VIDEO | dict(frames=1, mixer_rank=None)

#: A complete training run: 6 steps, pictures and videos of 2 frames, 8 a batch.
RUN = {
    "steps": 6,
    "model": VIDEO,
    "schedule": {"type": "flow_matching"},
    "codec": {"type": "pixels"},
    "text_encoder": {"type": "hashed_words", "dim": 16},
    "dataset": {"size": (12, 12), "frames": 2, "digit_size": 8.0, "num_clips": 64},
    "data": {"batch_size": 8, "image_batch_size": 16, "video_fraction": 0.5},
    "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2},
    "loss_repeat": 2,
    "checkpoint": {"every": 4},
    "logging": {"every": 2},
    "validation": {"every": 4, "batches": 2},
    "samples": {"every": 6, "prompts": ("a red seven moves up",)},
    "sampling": {"num_inference_steps": 2, "num_diffusion_steps": 2},
}

#: For tests of the model itself: blocks that follow each other, sides that differ.
CONFIG = NovaConfig.from_dict(
    VIDEO
    | dict(
        latent_size=(8, 12),
        patch_size=2,
        frames=3,
        temporal_encoder="vit_d2w32",
        spatial_decoder="vit_d3w32",
        diffusion_head="mlp_d2w32",
        text_dim=8,
        text_length=4,
    )
)


def make(config: NovaConfig = CONFIG, **options) -> Nova:
    """A model away from the special values of initialisation: zeros, and ones in norms."""
    graph, state = nnx.split(Nova(config, rngs=nnx.Rngs(0), **options))
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [v + 0.1 * jax.random.normal(k, v.shape) for k, v in zip(keys, leaves, strict=True)]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves))


def conditions(batch: int) -> Conditions:
    """What `CONFIG` takes."""
    return Conditions(
        text=jax.random.normal(jax.random.key(5), (batch, 4, 8)),
        text_length=jnp.arange(batch, dtype=jnp.int32) % 4 + 1,
        flow=jnp.full(batch, 5.0),
        fps=jnp.full(batch, 12.0),
    )


def draw_variables(config: NovaConfig) -> dict[str, jax.Array]:
    """Parameters by dotted path; none near zero, so that every part shows in what is generated."""
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Nova(config, rngs=nnx.Rngs(0)))))
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(name.endswith("scale"), 0.2, leaf.shape), jnp.float32)
        for name, leaf in flatten_dict(shapes, sep=".").items()
    }


def save_untrained(directory: Path, **changes: object) -> Path:
    """Writes a model that has learned nothing, 3 frames of 16x16 pixels but for the changes."""
    model = VIDEO | dict(latent_size=(16, 16), patch_size=4, frames=3)
    config = NovaConfig.from_dict(model | changes)
    text = {"type": "hashed_words", "dim": config.text_dim} if config.text_dim else None
    recipe = {
        "model": config.to_dict(),
        "schedule": {"type": "flow_matching"},
        "codec": {"type": "pixels", "shift": 0.0, "scale": 4.0},
        "text_encoder": text,
        "sampling": dict(num_inference_steps=2, num_diffusion_steps=3, guidance=dict(scale=5.0)),
        "motion_flow": 1.5,
        "dataset": {"size": [16, 16], "frames": 3, "fps": 6.0, "digit_size": 8.0},
    }
    save_model(directory, variables=draw_variables(config), config=recipe, step=0)
    return directory
