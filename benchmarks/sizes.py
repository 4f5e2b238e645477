"""Model sizes by flags, which several benchmarks share."""

from absl import flags

from nova_jax.models import NovaConfig

ARCH = flags.DEFINE_list(
    "arch",
    ["vit_d4w256", "vit_d8w256", "mlp_d3w256"],
    "Temporal encoder, spatial decoder, diffusion head.",
)
SIZE = flags.DEFINE_string("size", "128x192", "Height x width in pixels.")
TEXT_LEN = flags.DEFINE_integer("text_len", 32, "Text tokens.")
TEXT_DIM = flags.DEFINE_integer("text_dim", 2560, "Channels of text features.")
MIXER_RANK = flags.DEFINE_integer("mixer_rank", 24, "Rank of the mixer; 0 for none.")


def config_of_flags(frames: int) -> NovaConfig:
    """The model that the flags describe, on latents of stride 8 with 4 channels."""
    height, width = (int(side) for side in SIZE.value.split("x"))
    return NovaConfig(
        latent_size=(height // 8, width // 8),
        temporal_encoder=ARCH.value[0],
        spatial_decoder=ARCH.value[1],
        diffusion_head=ARCH.value[2],
        frames=frames,
        text_dim=TEXT_DIM.value,
        text_length=TEXT_LEN.value,
        mixer_rank=MIXER_RANK.value,
    )
