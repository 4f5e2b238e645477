"""How videos become training data: the clips that the released video model was trained on.

    python -m nova_jax.prepare --config=configs/prepare_t2v.py \\
        --checkpoint=MODEL --input=DIR --out=DIR

33 frames, every second one of the video, scaled and cropped to 480x768: 9 latent frames.
`prepare_t2v.py:images` makes pictures of every frame size of a 1024-pixel image model.
"""

from ml_collections import ConfigDict, config_dict

SIZES = {
    "video": ((480, 768),),
    "images": ((1024, 1024),),
}


def get_config(variant: str = "video") -> ConfigDict:
    config = ConfigDict()
    config.clips = dict(
        sizes=SIZES[variant],  # (height, width); each clip takes the nearest aspect
        frames=(33,),  # each clip takes the longest its shot has room for
        stride=2,
        clips_per_video=1,
        shot_threshold=27.0,
        shot_ratio=3.0,
        max_pixels=100_000_000,
    )
    config.text_length = 256
    config.batch_size = 4
    config.threads = config_dict.placeholder(int)  # one a core
    config.rows_per_part = 128
    config.dtype = "float32"
    return config
