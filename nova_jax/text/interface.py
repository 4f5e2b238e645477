"""What the rest of the package expects of a text encoder.

Letters in shapes:

    B prompts   L text rows   d text width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int


class TextEncoder(Protocol):
    """Turns prompts into rows of features for the model's text condition."""

    @property
    def dim(self) -> int:
        """d."""

    def encode(
        self, prompts: Sequence[str], length: int
    ) -> tuple[Float[np.ndarray, "b {length} d"], Int[np.ndarray, " b"]]:
        """Features float32, and how many rows of each prompt are filled (int32).

        Prompts are cut at L = `length` rows; rows after the prompt's end are zero. An empty prompt
        fills none, which is how the unconditional case is written.
        """
