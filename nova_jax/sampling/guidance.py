"""Classifier-free guidance over text and over the frame before (paper, section 4.1).

Guidance passes are stacked on the batch axis: [conditional | unconditional] or, with
`image_scale`, [conditional | no text, no frame | no text].
"""

import dataclasses

from jaxtyping import Array, Float, Int

from nova_jax.errors import NovaError
from nova_jax.kernels.diffusion_sampler.reference import Guidance


@dataclasses.dataclass(frozen=True)
class GuidanceConfig:
    """How strongly samples follow their conditions.

    Attributes:
        scale: g of uncond + g·(cond − uncond). At most 1: one pass, no guidance.
        min_scale: scale before the first AR step; it grows linearly to `scale` at the last.
        trunc: below this network time (0 to 1000) only the conditional pass is run.
        renorm: lower bound, at most 1, of the factor that takes the guided prediction back to
            the conditional one's norm (arXiv 2305.08891, section 3.4, clamped). 1: off.
        image_scale: s of + s·(no text − no text, no frame), a third pass. None or 0: off.
    """

    scale: float = 5.0
    min_scale: float | None = None
    trunc: float = 0.0
    renorm: float = 1.0
    image_scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale < 0 or self.trunc < 0 or not 0 <= self.renorm <= 1:
            raise NovaError(
                f"guidance scale {self.scale} and trunc {self.trunc} must not be negative, "
                f"renorm {self.renorm} must lie between 0 and 1"
            )

    @property
    def passes(self) -> int:
        """How many predictions each sampling step needs."""
        return 1 if self.scale <= 1 else 3 if self.image_scale else 2

    @property
    def rule(self) -> Guidance:
        """How predictions are combined, for the sampler."""
        return Guidance(self.passes, self.renorm, self.image_scale)

    def scale_at(self, step: int | Int[Array, ""], steps: int) -> float | Float[Array, ""]:
        """g of AR step k of K′: (g − m)·(k + 1)/K′ + m."""
        low = self.min_scale or self.scale
        return (self.scale - low) * (step + 1) / steps + low
