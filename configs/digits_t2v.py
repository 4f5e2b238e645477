"""Text to video on captioned moving digits: 4 frames of 24x24 pixels, no download, no VAE.

    python -m nova_jax.train --config=configs/digits_t2v.py --workdir=runs/digits
    python -m nova_jax.generate --checkpoint=runs/digits --prompt="a red seven drifts to the left"
    python -m nova_jax.evaluate --config=configs/digits_t2v.py --checkpoint=runs/digits

`digits_t2v.py:demo` is a run of a third of the steps, for `make demo`: less time for pictures, and
paths that start where pictures are, which are shorter and learned sooner. The full one takes 36
minutes on two CPU cores and made the shipped model; docs/benchmarks.md scores both.
"""

from ml_collections import ConfigDict, config_dict

STEPS = {"full": 16_000, "demo": 5000}
# One in so many steps, to begin with, is for pictures alone; then this share of batches is videos.
PICTURES_FIRST = {"full": 5, "demo": 6}
VIDEO_FRACTION = {"full": 0.75, "demo": 1.0}
MIDDLE = {"full": 1 / 3, "demo": 0.0}
MOTION = {"full": 2.3, "demo": 1.4}
# At 1 the first frame counts as much as all later ones together; at 1/3 all four count alike, and
# 44 instead of 34 % of the demo's videos show the right digit in every frame (docs/drift.md).
FIRST_FRAME = {"full": 1.0, "demo": 1 / 3}


def get_config(variant: str = "full") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = STEPS[variant]
    config.motion_flow = MOTION[variant]  # what generation asks for: between slow and fast
    config.stop_at = config_dict.placeholder(int)  # stop early; the same command goes on

    # The transformer: 4 x 4 tokens of 6x6 pixels a frame, 2 x 2 indicator features.
    config.model = dict(
        latent_channels=3,
        latent_size=(24, 24),
        patch_size=6,
        frames=4,
        temporal_encoder="vit_d2w128",
        spatial_decoder="vit_d4w128",
        diffusion_head="mlp_d3w192",
        text_dim=128,
        text_length=16,
        mixer_rank=-1,
        rotary=False,
    )
    # A token's 108 values share one color and one stroke, so that even strong noise gives them
    # away. The shift puts training where the prompt is what decides: at almost pure noise.
    config.schedule = dict(type="flow_matching", shift=8.0)
    config.codec = dict(type="pixels", shift=-0.911, scale=2.3)
    config.text_encoder = dict(type="hashed_words", dim=128)

    # Clips of real handwritten digits.
    config.dataset = dict(
        type="digits",
        size=(24, 24),
        frames=4,
        fps=4.0,
        digit_size=12.0,
        middle=MIDDLE[variant],
        num_clips=200_000,
    )
    config.data = dict(
        batch_size=8,
        image_batch_size=32,
        video_fraction=VIDEO_FRACTION[variant],
        picture_batches_first=config.get_ref("steps") // PICTURES_FIRST[variant],
        text_dropout=0.1,
        flow_dropout=0.5,
        default_flow=config.get_ref("motion_flow"),
        short_caption_fraction=0.3,
        seed=0,
        num_workers=0,
    )

    # All parts are trained from scratch, the ones that the released recipe freezes too.
    config.optimizer = dict(
        learning_rate=1.5e-3,
        schedule="cosine",
        warmup_steps=100,
        end_factor=0.02,
        b2=0.98,
        clip_norm=1.0,
        accumulate=1,
        weight_decay=0.02,
        freeze=(),
    )
    config.ema = dict(decay=0.998, every=1, warmup=True)
    config.loss_repeat = 1
    config.first_frame_loss = FIRST_FRAME[variant]
    # What the temporal encoder sees of the frames before; all of it is off.
    config.context = dict(
        noise=0.0, dropout=0.0, own=0.0, own_steps=4, window=config_dict.placeholder(int)
    )
    config.dtype = "float32"
    config.remat = "none"
    config.unroll = 4
    # All devices split the batch, unless some split parameters (fsdp), frames and long sequences
    # (context) or layers (tensor).
    config.mesh = dict(fsdp=1, context=1, tensor=1)

    config.checkpoint = dict(every=1000, keep_latest=2, keep_best=1)
    config.logging = dict(every=20, tensorboard=True, wandb_project=config_dict.placeholder(str))
    config.validation = dict(every=1000, batches=16)
    config.samples = dict(
        every=1000,
        prompts=(
            "a red seven drifts slowly to the left",
            "the digit 3 in blue moves up and bounces",
            "a green zero moves quickly to the lower right",
            "a yellow five slides up",
        ),
    )
    # What generation does unless told otherwise.
    config.sampling = dict(
        num_inference_steps=8, num_diffusion_steps=15, guidance=dict(scale=2.0, renorm=1.0)
    )
    return config
