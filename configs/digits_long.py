"""Text to video on digits that bounce between walls: 8 frames of 32x32 pixels, made to go on.

    python -m nova_jax.train --config=configs/digits_long.py --workdir=runs/long
    python -m nova_jax.generate --checkpoint=runs/long --frames=32 --prompt="a red seven goes left"

Training sees windows of clips of 24 frames, the first frame before each, so that generation may go
on beyond 8 frames with the same window; docs/drift.md has what each option is for.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    path = Path(__file__).with_name("digits_t2v.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.steps = 20_000
    config.motion_flow = 0.6
    config.model.update(latent_size=(32, 32), patch_size=8, frames=8, rotary=False)
    config.dataset.update(size=(32, 32), frames=24, fps=8.0, digit_size=14.0, walls=True)
    config.context.update(noise=0.3, dropout=0.2, own=0.25, window=8)
    config.sampling.window = 8
    return config
