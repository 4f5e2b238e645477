"""Text to picture on scenes of one to four handwritten digits: no download, no autoencoder.

    python -m nova_jax.train --config=configs/digits_t2i.py:words --workdir=runs/words
    python -m nova_jax.train --config=configs/digits_t2i.py --workdir=runs/scenes
    python -m nova_jax.generate --checkpoint=runs/scenes --prompt="a red seven and a blue three"
    python -m nova_jax.evaluate --suite=digits --checkpoint=runs/scenes --out=output

Digits of 12 pixels in the cells of a grid of 48x48, and captions that say which, how many, of which
color or where: the six tasks of GenEval. The first run learns what words mean, from pictures with a
digit in every cell; the second goes on from it with scenes. docs/digits.md has why, and what else
was tried.
"""

from ml_collections import ConfigDict, config_dict

# All but counting; more often what is harder, of two things in their relations and colors.
PAIRS = ("position", "color_attr", "two_object")
# What the first run has in place of the values below.
WORDS = dict(
    steps=1500,
    dataset=dict(filled=True, tasks=("single_object", "colors", *PAIRS, "position", "color_attr")),
    optimizer=dict(schedule="constant"),
)
VARIANTS = {"full": {}, "words": WORDS}


def get_config(variant: str = "full") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = 20_000
    config.motion_flow = 0.0
    config.stop_at = config_dict.placeholder(int)  # stop early; the same command goes on
    if variant == "full":
        config.init = dict(checkpoint="runs/words/model", fresh=())

    # The transformer: 3 x 3 tokens, each a block of 16x16 pixels and with it a whole digit, and one
    # indicator feature.
    config.model = dict(
        latent_channels=192,
        latent_size=(3, 3),
        patch_size=1,
        frames=1,
        temporal_encoder="vit_d3w128",
        spatial_decoder="vit_d4w128",
        diffusion_head="mlp_d3w192",
        text_dim=128,
        text_length=16,
        rotary=False,
        # One token a step is generated: training shows any number of them, all equally often.
        mask_ratio_min=0.0,
        mask_ratio_std=100.0,
    )
    # A token's values share one color and one stroke, see configs/digits_t2v.py.
    config.schedule = dict(type="flow_matching", shift=8.0)
    # 8 x 8 frequencies of a block are all that a digit of 12 pixels needs.
    config.codec = dict(type="dct", block=16, kept=8, shift=-0.959, scale=2.0)
    config.text_encoder = dict(type="hashed_words", dim=128)

    config.dataset = dict(
        type="scenes",
        size=(48, 48),
        digit_size=12.0,
        place_jitter=0.05,
        filled=False,
        tasks=("single_object", "colors", "counting", *PAIRS, *PAIRS),
        num_scenes=2_000_000,
    )
    config.data = dict(
        batch_size=64,
        image_batch_size=64,
        video_fraction=0.0,
        text_dropout=0.03,
        short_caption_fraction=0.5,
        default_flow=config.get_ref("motion_flow"),
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
    config.ema = dict(decay=0.999, every=1, warmup=True)
    config.loss_repeat = 1
    config.dtype = "float32"
    config.remat = "none"
    config.unroll = 4
    config.mesh = dict(fsdp=1, context=1, tensor=1)

    config.checkpoint = dict(every=1000, keep_latest=2, keep_best=1)
    config.logging = dict(every=20, tensorboard=True, wandb_project=config_dict.placeholder(str))
    config.validation = dict(every=1000, batches=8)
    config.samples = dict(
        every=1000,
        prompts=(
            "a seven",
            "a three and an eight",
            "three fives",
            "a blue two",
            "a nine above a four",
            "a red seven and a green one",
        ),
    )
    # What generation does unless told otherwise.
    config.sampling = dict(
        num_inference_steps=9,
        num_diffusion_steps=15,
        guidance=dict(scale=1.5, renorm=1.0),
    )
    config.update(VARIANTS[variant])
    return config
