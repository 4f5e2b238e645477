"""A small model on a few videos of your own: 5 frames of 32x48 pixels, trained in minutes on a CPU.

    python -m nova_jax.prepare --config=configs/own_videos.py:prepare --checkpoint=MODEL \\
        --input=VIDEOS --out=data/own
    python -m nova_jax.train --config=configs/own_videos.py --workdir=runs/own \\
        --config.codec.source=MODEL --config.text_encoder.source=MODEL
    python -m nova_jax.generate --checkpoint=runs/own --prompt="one of the captions"

It learns a handful of clips by heart: what to try before anything large. docs/data.md tells more.
"""

from ml_collections import ConfigDict

FRAMES, SIZE, FPS = 5, (32, 48), 6.25  # FPS about that of the clips: every fourth frame of 25
STRIDE = 2  # of the autoencoder: pixels a latent


def get_config(what: str = "train") -> ConfigDict:
    return prepare() if what == "prepare" else train()


def prepare() -> ConfigDict:
    config = ConfigDict()
    config.clips = dict(sizes=(SIZE,), frames=(FRAMES,), stride=4)
    config.text_length = 16
    return config


def train() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = 800
    config.motion_flow = 1.0
    config.model = dict(
        latent_channels=4,
        latent_size=(SIZE[0] // STRIDE, SIZE[1] // STRIDE),
        patch_size=4,
        frames=FRAMES,
        temporal_encoder="vit_d2w128",
        spatial_decoder="vit_d4w128",
        diffusion_head="mlp_d3w192",
        text_dim=32,
        text_length=16,
        mixer_rank=-1,
    )
    config.schedule = dict(type="flow_matching", shift=1.0)
    config.codec = dict(type="released", source="MODEL")
    config.text_encoder = dict(type="released", source="MODEL")
    config.dataset = dict(
        type="latents", sources=(dict(path="data/own", weight=1.0),), held_out=0, fps=FPS
    )
    config.data = dict(
        batch_size=8, image_batch_size=8, video_fraction=0.75, text_dropout=0.1,
        flow_dropout=0.5, default_flow=config.get_ref("motion_flow"),
    )  # fmt: skip
    config.optimizer = dict(
        type="adamw",
        learning_rate=1.5e-3, schedule="cosine", warmup_steps=100, end_factor=0.02, b2=0.98,
        clip_norm=1.0, freeze=(),
    )  # fmt: skip
    config.ema = dict(decay=0.98, every=1, warmup=True)
    config.loss_repeat = 1
    config.unroll = 4
    config.checkpoint = dict(every=200)
    config.validation = dict(every=400, batches=1)
    config.samples = dict(every=None)
    config.sampling = dict(
        num_inference_steps=8, num_diffusion_steps=15, guidance=dict(scale=1.0, renorm=1.0)
    )
    return config
