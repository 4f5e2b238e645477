"""Diffusion heads by flags, alone: what the benchmarks of the sampler share."""

import jax
from absl import flags
from flax import nnx

from nova_jax.models import NovaConfig
from nova_jax.models.diffusion_head import DiffusionHead

HEADS = flags.DEFINE_list("heads", ["mlp_d3w1280", "mlp_d6w1024"], "Diffusion heads.")
BATCH = flags.DEFINE_integer("batch", 1, "Samples.")


def config_of_head(size: str) -> NovaConfig:
    """A model of 480x768 pixels with this head, whose other stages do not matter."""
    return NovaConfig(
        latent_size=(60, 96),
        temporal_encoder="vit_d1w1024",
        spatial_decoder="vit_d2w1024",
        diffusion_head=size,
        text_dim=2560,
        text_length=256,
    )


def make_head(size: str, dtype: str) -> DiffusionHead:
    """The head of `config_of_head`, random, with weights of the type it computes in."""
    head = DiffusionHead(
        config_of_head(size), dtype=dtype, rngs=nnx.Rngs(0), remat="none", unroll=1
    )
    nnx.update(head, jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(head)))
    return head
