"""Options of the pipeline that published numbers were made with, by name.

"paper": NOVA (arXiv:2412.14169), section 4.1: guidance 7 and 128 autoregressive steps in all
evaluations, 100 diffusion steps. "release": the scripts of its repository (baaivision/NOVA at
2cd254a, evaluations/geneval/sample.py and evaluations/vbench/sample.py), the same with 25 diffusion
steps. Videos have 9 latent frames, 33 of pixels, and motion score 5, as the scripts have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nova_jax.suites.interface import Medium

_COMMON = {"num_inference_steps": 128, "guidance_scale": 7.0}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": _COMMON | {"num_diffusion_steps": 100},
    "release": _COMMON | {"num_diffusion_steps": 25},
}
_VIDEOS = {"max_latent_length": 9, "motion_flow": 5.0}


def options(preset: str | None, medium: Medium) -> dict[str, Any]:
    """The options of a preset; none without one."""
    if preset is None:
        return {}
    return dict(PRESETS[preset]) | (_VIDEOS if medium == "video" else {})
