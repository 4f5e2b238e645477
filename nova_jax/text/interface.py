"""What the rest of the package expects of a text encoder.

Letters in shapes:

    B prompts   L text rows   d text width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

#: What is only arithmetic serves data workers (NumPy) and programs (JAX) alike.
Array = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class Tokens:
    """How prompts get into a program that has no tokenizer in it.

    Attributes:
        kind: what it is that makes tokens of a prompt.
        dtype, shape: of one token; ids have the shape ().
        tokenizer: contents of a ``tokenizer.json`` of the tokenizers package; None if it is not
            one that makes the tokens.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...] = ()
    tokenizer: str | None = None


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

    def count(self, prompt: str) -> int:
        """How many rows a prompt would fill if none were cut."""

    @property
    def network(self) -> nnx.Module | None:
        """What holds the parameters; None for an encoder without any."""

    def offloaded(self) -> TextEncoder:
        """The same with parameters that wait in the host's memory while they are not used."""

    @property
    def tokens(self) -> Tokens:
        """What `features` takes."""

    def features(self, network: Any, tokens: jax.Array) -> Float[jax.Array, "b L d"]:
        """Features of tokens, `[B, L, *tokens.shape]`, float32; can be traced.

        Args:
            network: `network`, or the same with other parameters, such as a program's arguments.
            tokens: of prompts; rows after a prompt's end hold anything.
        """
