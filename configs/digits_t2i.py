"""Text to picture on scenes of one to four handwritten digits: no download, no VAE.

    python -m nova_jax.train --config=configs/digits_t2i.py --workdir=runs/scenes
    python -m nova_jax.generate --checkpoint=runs/scenes --prompt="a red seven and a blue three"
    python -m nova_jax.evaluate --suite=digits --checkpoint=runs/scenes

Digits of 12 pixels in the cells of a grid of 48x48, and captions that say which, how many, of which
color or where: the six tasks of GenEval. It does not learn them yet, a single digit is right in a
quarter of the pictures after 15,000 steps; docs/digits.md has what was tried.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = 20_000
    config.motion_flow = 0.0
    config.stop_at = config_dict.placeholder(int)  # stop early; the same command goes on

    # The transformer: 6 x 6 tokens of 8x8 pixels, 3 x 3 indicator features.
    config.model = dict(
        latent_channels=3,
        latent_size=(48, 48),
        patch_size=8,
        frames=1,
        temporal_encoder="vit_d3w128",
        spatial_decoder="vit_d4w128",
        diffusion_head="mlp_d3w192",
        text_dim=128,
        text_length=16,
        rotary=False,
    )
    # A token's 192 values share one color and one stroke, see configs/digits_t2v.py.
    config.schedule = dict(type="flow_matching", shift=8.0)
    config.codec = dict(type="pixels", shift=-0.931, scale=2.6)
    config.text_encoder = dict(type="hashed_words", dim=128)

    config.dataset = dict(
        type="scenes", size=(48, 48), digit_size=12.0, place_jitter=0.1, num_scenes=2_000_000
    )
    config.data = dict(
        batch_size=32,
        image_batch_size=32,
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
    config.ema = dict(decay=0.998, every=1, warmup=True)
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
    # What generation does unless told otherwise: one token a step is the most there can be.
    config.sampling = dict(
        num_inference_steps=36,
        num_diffusion_steps=15,
        guidance=dict(scale=1.5, renorm=1.0),
    )
    return config
