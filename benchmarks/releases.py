"""The released models: their sizes, and what each of their components says in its config.json."""

from typing import Any


def vit(width: int, head: str) -> list[str]:
    """The stages of a release of this width."""
    return [f"vit_d16w{width}", f"vit_d32w{width}", head]


# Stages, pixels along the sides, frames.
RELEASES: dict[str, tuple[list[str], tuple[int, int], int]] = {
    "sdxl1024-d48w768": (vit(768, "mlp_d6w768"), (1024, 1024), 1),
    "sdxl1024-d48w1024": (vit(1024, "mlp_d6w1024"), (1024, 1024), 1),
    "sdxl1024-d48w1536": (vit(1536, "mlp_d6w1536"), (1024, 1024), 1),
    "sd512-d48w1024": (vit(1024, "mlp_d6w1024"), (512, 512), 1),
    "osp480": (vit(1024, "mlp_d3w1280"), (480, 768), 16),
}
PHI_2 = {
    "model_type": "phi",
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "partial_rotary_factor": 0.4,
    "rope_theta": 10000.0,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu_new",
}


def configs(name: str) -> dict[str, dict[str, Any]]:
    """Each component's config.json."""
    arch, (height, width), frames = RELEASES[name]
    grid = [height // 16, width // 16]
    transformer = {
        "_class_name": "NOVATransformer3DModel",
        "arch": arch,
        "image_dim": 4,
        "image_stride": 8,
        "image_size": [height, width],
        "image_base_size": grid,
        "video_base_size": [frames, grid[0] // 2, grid[1] // 2],
        "video_mixer_rank": 24 if frames > 1 else None,
        "rotary_pos_embed": False,
        "text_token_dim": PHI_2["hidden_size"],
        "text_token_len": 256,
    }
    vae = {
        "_class_name": "AutoencoderKLOpenSora" if frames > 1 else "AutoencoderKL",
        "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "scaling_factor": 0.18215,
    }
    if frames > 1:
        vae["down_block_types"] = ["DownEncoderBlock2D"] * 2 + ["DownEncoderBlock3D"] * 2
        vae["up_block_types"] = ["UpDecoderBlock3D"] * 4
    return {"transformer": transformer, "vae": vae, "text_encoder": PHI_2}
