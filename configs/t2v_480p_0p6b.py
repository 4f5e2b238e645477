"""Text to video, 33 frames of 768x480, 0.6B parameters: the released video model, and its tuning.

    python -m nova_jax.train --config=configs/t2v_480p_0p6b.py --workdir=runs/t2v
    python -m nova_jax.train --config=configs/t2v_480p_0p6b.py:finetune --workdir=runs/tuned

Variants:

    pretrain   from a trained image model, as published: 512 videos a batch, 80,000 steps
    finetune   from the released video model
    long       the same for videos that go on: windows of clips twice as long, frames count alike,
               some noise on those before (docs/drift.md)
    i2v        the same for image to video only: no loss on the first frame, which is given
    lora_24gb  adapters of 16 columns to the released model, on one GPU of 24 GB
    v5e8       all parameters of the released model, on the eight chips of a TPU v5e-8

With ",synthetic" after it a variant trains on noise: it needs no data and shows what a step costs.
The model has 645,505,040 parameters. Nothing here was measured at full size. What `nova_jax.plan`
says, compiled, JAX 0.12.0.1, 2026-11-23 (docs/plans.md has the published run on other machines):

    lora_24gb  --topology=a100-40g:1: peak 8.67 GB (parameters 2.63, optimizer 0.15, average 0.05,
               temporaries 5.83), 64.0 TFLOP, 0.21 to 0.36 s a step
    v5e8       --topology=v5e:2x4: fsdp 8, peak 5.70 GB of 16.9 a chip (parameters 0.33, optimizer
               0.65, average 0.32, temporaries 4.40), 102.8 TFLOP, 0.56 to 1.33 s a step
"""

from ml_collections import ConfigDict, config_dict

RELEASED = "BAAI/nova-d48w1024-osp480"
# Batch, steps, devices that split the parameters. Only the first line is published (section 4.1).
RUNS = {
    "pretrain": (512, 80_000, 8),
    "finetune": (128, 10_000, 8),
    "long": (128, 10_000, 8),
    "i2v": (128, 10_000, 8),
    "lora_24gb": (1, 8_000, 1),
    "v5e8": (8, 5_000, 8),
}


def get_config(variant: str = "pretrain") -> ConfigDict:
    run, _, data = variant.partition(",")
    batch, steps, fsdp = RUNS[run]

    config = ConfigDict()
    config.seed = 0
    config.steps = steps
    config.stop_at = config_dict.placeholder(int)
    config.motion_flow = 5.0
    # Times are interpolated into 16 frames, whatever the length of a clip.
    config.model = dict(
        latent_channels=4,
        latent_size=(60, 96),
        patch_size=2,
        frames=16,
        temporal_encoder="vit_d16w1024",
        spatial_decoder="vit_d32w1024",
        diffusion_head="mlp_d3w1280",
        text_dim=2560,
        text_length=256,
        mixer_rank=24,
        rotary=False,
    )
    config.init = dict(checkpoint=RELEASED, fresh=())
    if run == "pretrain":
        # The video model has another head; motion embedding and mixer are new in any case.
        config.init = dict(checkpoint="runs/t2i_512_0p6b/model", fresh=(r"diffusion_head\.",))
    config.schedule = dict(type="flow_matching", shift=1.0)

    # Moments and text features of 33 frames each, which are 9 latent ones, that
    # `python -m nova_jax.prepare` has written.
    config.dataset = dict(type="latents", sources=(dict(path="data/videos_480p"),), latent_frames=9)
    if data == "synthetic":
        config.dataset = dict(type="synthetic", latent_frames=9)
        if run != "lora_24gb":  # which has to have something to adapt
            del config.init
    config.data = dict(
        batch_size=batch,
        image_batch_size=batch,
        video_fraction=1.0,
        text_dropout=0.1,
        short_caption_fraction=0.5,
        seed=0,
        num_workers=8,
    )

    # Text norm and motion embedding stay as they are.
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
    config.ema = dict(decay=0.97, every=100)
    config.loss_repeat = 4
    config.first_frame_loss = 0.0 if run == "i2v" else 1.0
    # Off, as published: what the temporal encoder sees of the frames before (docs/drift.md).
    config.context = dict(
        noise=0.0,
        cutmix=0.0,
        dropout=0.0,
        own=0.0,
        own_steps=4,
        window=config_dict.placeholder(int),
    )
    config.sampling = dict(
        num_inference_steps=64,
        num_diffusion_steps=25,
        guidance=dict(scale=5.0, renorm=1.0),
        window=config_dict.placeholder(int),
    )
    if run == "long":
        # What made the digits' videos hold together. Clips of 65 frames are 17 latent ones, of
        # which a step sees the first and eight in a row, as generation with this window does.
        config.dataset.latent_frames = 17
        config.first_frame_loss = 1 / 8
        config.context.update(noise=0.1, cutmix=0.6, window=9)
        config.sampling.window = 9
        # So that guidance does not add up from frame to frame.
        config.sampling.guidance.renorm = 0.0
    config.dtype = "bfloat16"
    config.remat = "full"
    config.mesh = dict(data=config_dict.placeholder(int), fsdp=fsdp, context=1, tensor=1)
    if run == "lora_24gb":
        config.lora = dict(rank=16, alpha=16.0, targets=("attention", "mlp"))
        config.optimizer.weight_decay = 0.0
        config.optimizer.accumulate = 8
        config.ema = dict(decay=0.99, every=8)

    config.checkpoint = dict(every=1000, keep_latest=2, keep_best=1)
    config.logging = dict(every=20, tensorboard=True, wandb_project=config_dict.placeholder(str))
    config.validation = dict(every=1000, batches=2)
    # Videos drawn on the way need `codec` and `text_encoder`, see docs/training.md.
    config.samples = dict(every=1000, prompts=())
    return config
