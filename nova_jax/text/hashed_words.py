"""A text encoder that needs no download: each word is a fixed random vector, found by hashing it.

Row j of a prompt, with d features, is

    x_j = √(1 - P) · word_j + √(2 P) · place_j

    word_j   d numbers uniform in (-√3, √3), so of unit variance: 16-bit words of the
             SHAKE-256 digest of the lower-cased word
    place_j  [sin(j · ω), cos(j · ω)], ω_i = 100^(-i / (d/2)): the position, so that order shows
    P        the share of the variance that tells the position, `position_share`

Entries have a mean square of one. The same word gives the same numbers on every machine and in
every version of Python. It knows no grammar and no synonyms: the model learns what words mean.
"""

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt16

from nova_jax.config import Checked, Count, Fraction
from nova_jax.errors import NovaError
from nova_jax.text.interface import Array, Tokens


def words(prompt: str) -> list[str]:
    """Splits a prompt into lower-case words and numbers of any script; punctuation is dropped."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).casefold())


@functools.lru_cache(maxsize=65536)
def word_vector(word: str, dim: int) -> Float[np.ndarray, " {dim}"]:
    """The fixed vector of a word, float32, before the position is added."""
    digest = hashlib.shake_256(word.encode()).digest(2 * dim)
    return np.asarray(vectors(np.frombuffer(digest, "<u2")))


def vectors(digests: UInt16[Array, "*b d"]) -> Float[Array, "*b d"]:
    """The vectors of words, from the 16-bit words of their digests."""
    uniform = (digests.astype(np.float32) + 0.5) / 2**16
    return np.float32(np.sqrt(3)) * (2 * uniform - 1)


@functools.lru_cache
def position_vectors(length: int, dim: int) -> Float[np.ndarray, "{length} {dim}"]:
    """Sine-cosine vectors of the positions, float32."""
    frequency = 100.0 ** (-np.arange(dim // 2) / (dim // 2))
    angle = np.arange(length)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashedTextEncoder(Checked):
    """Hashed words plus positions; see the top of the file.

    Attributes:
        dim: d, even.
        position_share: P, 0 to 1. What tells words apart gets the rest.
    """

    type: ClassVar[str] = "hashed_words"
    network: ClassVar[None] = None
    dim: Count = 128
    position_share: Fraction = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % 2:
            raise NovaError(f"text encoder: dim must be even, not {self.dim}")

    def encode(
        self, prompts: Sequence[str], length: int
    ) -> tuple[Float[np.ndarray, "b {length} d"], Int[np.ndarray, " b"]]:
        """Features and lengths; see `TextEncoder.encode`."""
        features = np.zeros((len(prompts), length, self.dim), np.float32)
        lengths = np.zeros(len(prompts), np.int32)
        for row, prompt in enumerate(prompts):
            rows = [word_vector(word, self.dim) for word in words(prompt)[:length]]
            if rows:
                lengths[row] = count = len(rows)
                features[row, :count] = self.placed(np.stack(rows))
        return features, lengths

    def count(self, prompt: str) -> int:
        """Words of a prompt."""
        return len(words(prompt))

    def placed(self, rows: Float[Array, "*b l d"]) -> Float[Array, "*b l d"]:
        """Adds positions to the vectors of a prompt's words."""
        length = rows.shape[-2]
        share = self.position_share
        places = np.float32((2 * share) ** 0.5) * position_vectors(length, self.dim)
        places = places.reshape((1,) * (rows.ndim - 2) + places.shape)
        return np.float32((1 - share) ** 0.5) * rows + places

    def offloaded(self) -> Self:
        """Itself."""
        return self

    @property
    def tokens(self) -> Tokens:
        """The 16-bit words of the digest of each word."""
        return Tokens(self.type, "uint16", (self.dim,))

    def features(
        self, network: Any, tokens: UInt16[jax.Array, "b L d"]
    ) -> Float[jax.Array, "b L d"]:
        """Vectors of the words, with positions."""
        return jnp.asarray(self.placed(vectors(tokens)))
