"""Text to image: every released model, at every stage of its training.

    python -m nova_jax.train --config=configs/t2i.py:256_0p6b --workdir=runs/t2i_256_0p6b
    python -m nova_jax.train --config=configs/t2i.py:512_0p6b --workdir=runs/t2i_512_0p6b
    python -m nova_jax.train --config=configs/t2i.py:1024_0p6b --workdir=runs/t2i_1024_0p6b

A variant is SIDE_SIZE: 256, 512 or 1024 pixels; 0p3b, 0p6b or 1p4b (365,256,720, 647,004,176 and
1,451,147,280 parameters). Each stage starts from the finished model of the one before, under runs/;
--config.init.checkpoint=BAAI/nova-d48w1024-sdxl1024 (or another release, of the same size) in its
place fine-tunes released weights. With ",synthetic" after it a variant trains on noise: it needs
no data and shows what a step costs.

docs/plans.md has, for each, what a step needs on TPUs and GPUs; nothing was measured at full size.
Batch sizes, schedule and what is frozen are as published (paper, section 4.1, on 128 A100-40G).
"""

from ml_collections import ConfigDict, config_dict

WIDTHS = {"0p3b": 768, "0p6b": 1024, "1p4b": 1536}
# By side in pixels: batch, steps, the side that came before.
STAGES = {256: (4096, 300_000, None), 512: (2048, 150_000, 256), 1024: (1024, 30_000, 512)}


def get_config(variant: str = "1024_0p6b") -> ConfigDict:
    stage, _, data = variant.partition(",")
    side, size = stage.split("_")
    side, width = int(side), WIDTHS[size]
    batch, steps, before = STAGES[side]

    config = ConfigDict()
    config.seed = 0
    config.steps = steps
    config.stop_at = config_dict.placeholder(int)
    config.model = dict(
        latent_channels=4,
        latent_size=(side // 8, side // 8),
        patch_size=2,
        frames=1,
        temporal_encoder=f"vit_d16w{width}",
        spatial_decoder=f"vit_d32w{width}",
        diffusion_head=f"mlp_d6w{width}",
        text_dim=2560,
        text_length=256,
        rotary=False,
    )
    # Positions are computed from the grid of tokens: a larger picture takes all parameters over.
    if before and data != "synthetic":
        config.init = dict(checkpoint=f"runs/t2i_{before}_{size}/model", fresh=())
    config.schedule = dict(type="flow_matching", shift=1.0)

    # Moments and text features that `python -m nova_jax.prepare` has written.
    config.dataset = dict(type="latents", sources=(dict(path=f"data/images_{side}"),))
    if data == "synthetic":
        config.dataset = dict(type="synthetic")
    config.data = dict(
        batch_size=batch,
        image_batch_size=batch,
        video_fraction=0.0,
        text_dropout=0.1,
        short_caption_fraction=0.5,
        seed=0,
        num_workers=8,
    )

    # Text norm, and the parts that only a video model will use, stay as they are.
    config.optimizer = dict(
        type="adamw",
        learning_rate=1e-4,
        schedule="constant",
        warmup_steps=0,
        b1=0.9,
        b2=0.95,
        weight_decay=0.02,
        accumulate=1,
        clip_norm=config_dict.placeholder(float),
        freeze=config_dict.placeholder(tuple),
    )
    config.ema = dict(decay=0.98, every=100)
    config.loss_repeat = 4
    config.dtype = "bfloat16"
    config.remat = "full"
    config.mesh = dict(data=config_dict.placeholder(int), fsdp=8, context=1, tensor=1)

    config.checkpoint = dict(every=1000, keep_latest=2, keep_best=1)
    config.logging = dict(every=20, tensorboard=True, wandb_project=config_dict.placeholder(str))
    config.validation = dict(every=5000, batches=2)
    # Pictures drawn on the way need `codec` and `text_encoder`, see docs/training.md.
    config.samples = dict(every=5000, prompts=())
    config.sampling = dict(num_inference_steps=64, num_diffusion_steps=25, guidance=dict(scale=5.0))
    return config
