"""Classifier-free guidance over text and over the frame before (paper, section 4.1).

Guidance passes are stacked on the batch axis: [conditional | unconditional] or, with
`image_scale`, [conditional | no text, no frame | no text].
"""

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import Array, Float, Int

from nova_jax.config import Checked, Fraction, Range
from nova_jax.kernels.diffusion_sampler.reference import Guidance

#: Beyond it nothing but overflow is left of a picture.
Scale = Annotated[float, Range(0, 100)]


@dataclasses.dataclass(frozen=True)
class GuidanceConfig(Checked):
    """How strongly samples follow their conditions.

    Attributes:
        scale: g of uncond + g·(cond − uncond). At most 1: one pass, no guidance.
        min_scale: scale before the first AR step; it grows linearly to `scale` at the last.
        trunc: below this network time (0 to 1000) only the conditional pass is run.
        ceiling: the same above this one, so that guidance is for an interval of noise levels
            (arXiv 2404.07724, equation 5). None: no such bound.
        renorm: lower bound, at most 1, of the factor that takes the guided prediction back to
            the conditional one's norm (arXiv 2305.08891, section 3.4, clamped). 1: off.
        image_scale: s of + s·(no text − no text, no frame), a third pass. None or 0: off.
    """

    scale: Scale = 5.0
    min_scale: Scale | None = None
    trunc: Annotated[float, Range(0, 10_000)] = 0.0
    renorm: Fraction = 1.0
    image_scale: Scale | None = None
    ceiling: Annotated[float, Range(0, 10_000)] | None = None

    @property
    def passes(self) -> int:
        """How many predictions each sampling step needs."""
        return 1 if self.scale <= 1 else 3 if self.image_scale else 2

    @property
    def rule(self) -> Guidance:
        """How predictions are combined, for the sampler."""
        return Guidance(self.passes, self.renorm, self.image_scale)

    def interval(self, times: Float[np.ndarray, " s"]) -> tuple[int, int]:
        """The steps with guidance among steps at these network times, which fall: [first, end)."""
        end = int(np.count_nonzero(times >= self.trunc))
        first = 0 if self.ceiling is None else int(np.count_nonzero(times > self.ceiling))
        return min(first, end), end

    def scale_at(self, step: int | Int[Array, ""], steps: int) -> float | Float[Array, ""]:
        """g of AR step k of K′: (g − m)·(k + 1)/K′ + m."""
        low = self.min_scale or self.scale
        return (self.scale - low) * (step + 1) / steps + low
