"""Text to video on captioned moving digits: no download, no VAE.

    python -m nova_jax.train --config=configs/digits_t2v.py --workdir=runs/digits
    python -m nova_jax.train --config=configs/digits_t2v.py:second --workdir=runs/second
    python -m nova_jax.train --config=configs/digits_t2v.py:third --workdir=runs/third
    python -m nova_jax.train --config=configs/digits_t2v.py:fourth --workdir=runs/fourth
    python -m nova_jax.generate --checkpoint=runs/fourth --prompt="a red seven moves to the left"
    python -m nova_jax.evaluate --checkpoint=runs/fourth

Digits go from wall to wall of 32x32 pixels, on and on. Training sees 8 frames of clips of 24, and
generation goes on beyond them with the same window. The first run takes two hours on one CPU core,
the second, which goes on from it with more pictures, one more. The third and the fourth are what
makes videos hold together beyond their length, an hour together; all made the shipped model.
`digits_t2v.py:demo`, for `make demo`, is a shorter run on less: 4 frames of 24x24 pixels in which a
digit passes once. docs/drift.md has what each choice is worth, docs/benchmarks.md what the models
score.
"""

from ml_collections import ConfigDict, config_dict

# What the shorter run has in place of the values below.
DEMO = dict(
    steps=3000,
    motion_flow=1.4,
    model=dict(latent_size=(24, 24), patch_size=6, frames=4),
    codec=dict(shift=-0.911, scale=2.3),
    # Paths that start where pictures are, which are learned soonest.
    dataset=dict(size=(24, 24), frames=4, fps=4.0, digit_size=12.0, walls=False, middle=0.0),
    data=dict(picture_batches_first=500),
    first_frame_loss=1 / 3,
    context=dict(noise=0.0, window=None),
    sampling=dict(
        num_inference_steps=8,
        later_inference_steps=None,
        guidance=dict(scale=2.0, renorm=1.0),
        window=None,
    ),
)
# What the run that goes on from the first one has: a quarter of its steps on pictures.
SECOND = dict(
    steps=15_000,
    init=dict(checkpoint="runs/digits/model", fresh=()),
    data=dict(video_fraction=0.75, picture_batches_first=0),
    optimizer=dict(learning_rate=6e-4),
)
# What the run after that one has: frames before in which another video shows, so that what is lost
# comes back and what does not belong goes.
THIRD = SECOND | dict(
    steps=6_000,
    init=dict(checkpoint="runs/second/model", fresh=()),
    context=dict(cutmix=0.6),
)
# And once more, with more pictures: first frames were wrong most.
FOURTH = THIRD | dict(
    steps=9_000,
    init=dict(checkpoint="runs/third/model", fresh=()),
    data=dict(video_fraction=0.65, picture_batches_first=0),
)
VARIANTS = {"full": {}, "demo": DEMO, "second": SECOND, "third": THIRD, "fourth": FOURTH}


def get_config(variant: str = "full") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = 45_000
    config.motion_flow = 1.9  # what generation asks for: between slow and fast
    config.stop_at = config_dict.placeholder(int)  # stop early; the same command goes on

    # The transformer: 4 x 4 tokens of 8x8 pixels a frame, 2 x 2 indicator features.
    config.model = dict(
        latent_channels=3,
        latent_size=(32, 32),
        patch_size=8,
        frames=8,
        temporal_encoder="vit_d2w128",
        spatial_decoder="vit_d4w128",
        diffusion_head="mlp_d3w192",
        text_dim=128,
        text_length=16,
        mixer_rank=-1,
        rotary=False,
    )
    # A token's 192 values share one color and one stroke, so that even strong noise gives them
    # away. The shift puts training where the prompt is what decides: at almost pure noise.
    config.schedule = dict(type="flow_matching", shift=8.0)
    config.codec = dict(type="pixels", shift=-0.931, scale=2.6)
    config.text_encoder = dict(type="hashed_words", dim=128)

    # Clips of real handwritten digits.
    config.dataset = dict(
        type="digits",
        size=(32, 32),
        frames=24,
        fps=8.0,
        digit_size=14.0,
        walls=True,
        place_jitter=0.1,
        num_clips=200_000,
    )
    config.data = dict(
        batch_size=8,
        image_batch_size=32,
        # Pictures alone until digits are told apart, then videos alone.
        video_fraction=1.0,
        picture_batches_first=800,
        # Guidance needs some; at 0.1 digits are told apart only after half as many steps again.
        text_dropout=0.03,
        flow_dropout=0.5,
        default_flow=config.get_ref("motion_flow"),
        short_caption_fraction=0.3,
        seed=0,
        num_workers=0,
    )

    # All parts are trained from scratch, the ones that the released recipe freezes too.
    config.optimizer = dict(
        type="muon",
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
    # At 1 the first frame counts as much as all later ones together, at 1/7 as each of them.
    config.first_frame_loss = 0.3
    # What the temporal encoder sees of the frames before; window: the first one and seven others.
    # Less noise is better at the model's own length, and worse beyond it.
    config.context = dict(
        noise=0.4,
        cutmix=0.0,
        dropout=0.0,
        own=0.0,
        own_steps=4,
        window=config_dict.placeholder(int),
    )
    config.context.window = 8
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
        # Training shows 30 % of a frame's tokens at most; in more steps a model sees more of them.
        num_inference_steps=4,
        later_inference_steps=config_dict.placeholder(int),
        num_diffusion_steps=15,
        # Without renormalization guidance adds up, and strokes get bolder from frame to frame.
        guidance=dict(scale=1.4, renorm=0.0, ceiling=config_dict.placeholder(float), trunc=0.0),
        window=config_dict.placeholder(int),
        # Saves work where frames have many tokens, see docs/performance.md.
        feature_cache=config_dict.placeholder(int),
    )
    config.sampling.later_inference_steps = 2
    config.sampling.window = 8
    config.update(VARIANTS[variant])
    return config
