"""Classifier-free guidance over text and over the frame before (paper, section 4.1).

Guidance passes are stacked on the batch axis: [conditional | unconditional] or, with
`image_scale`, [conditional | no text, no frame | no text].
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.errors import NovaError


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
    def renormalized(self) -> bool:
        """Whether the guided prediction's norm is bounded."""
        return self.passes > 1 and self.renorm < 1

    def scale_at(self, step: int | Array, steps: int) -> float | Array:
        """g of AR step k of K′: (g − m)·(k + 1)/K′ + m."""
        low = self.min_scale or self.scale
        return (self.scale - low) * (step + 1) / steps + low


def combine(
    predictions: Float[Array, "g b n p"],
    scale: Float[Array, ""] | float,
    config: GuidanceConfig,
    valid: Float[Array, "n"],
    rest_norm2: Float[Array, "b"] | None,
) -> tuple[Float[Array, "b n p"], Float[Array, "b"] | None]:
    """Combines the passes' predictions.

    Args:
        predictions: one slice a pass.
        scale: g of this AR step.
        config: the options.
        valid: 1 for tokens of the set, 0 for padding, which does not count in norms.
        rest_norm2: squared norm of what the passes agree on outside the set; needed and used
            for `renorm` only.

    Returns:
        The prediction, and the factor by which the part outside the set is scaled.
    """
    if config.passes == 1:
        return predictions[0], None
    cond, uncond, base = predictions[0], predictions[1], predictions[-1]
    guided = uncond + scale * (cond - base)
    factor = None
    if config.renormalized:
        assert rest_norm2 is not None
        weights = valid[None, :, None]
        cond_norm2 = jnp.sum(weights * cond**2, axis=(1, 2)) + rest_norm2
        guided_norm2 = jnp.sum(weights * guided**2, axis=(1, 2)) + rest_norm2
        factor = jnp.clip(jnp.sqrt(cond_norm2) / jnp.sqrt(guided_norm2), config.renorm, 1.0)
        guided = guided * factor[:, None, None]
    if config.image_scale:
        guided = guided + config.image_scale * (base - uncond)
    return guided, factor
