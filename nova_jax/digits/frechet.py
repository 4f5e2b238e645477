"""How far a set of pictures of digits is from another: the Fréchet distance of what a judge sees.

As FID (arXiv 1706.08500) on Inception's features, with those of the judges' own classifier, which
knows handwriting and nothing else: its ten scores of each digit that it looks at.
"""

import numpy as np
from jaxtyping import Float


def frechet_distance(features: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]) -> float:
    """The squared Fréchet distance of two normal distributions with the features' moments.

    |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½); the trace of the root is the sum of the roots of the
    eigenvalues of Σ₁ Σ₂, which are real and not negative.
    """
    means = [x.mean(0) for x in (features, others)]
    first, second = (np.cov(x, rowvar=False) for x in (features, others))
    roots = np.sqrt(np.clip(np.linalg.eigvals(first @ second).real, 0, None)).sum()
    apart = float(((means[0] - means[1]) ** 2).sum())
    return apart + float(np.trace(first) + np.trace(second) - 2 * roots)
