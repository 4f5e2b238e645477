"""The order in which a frame's tokens are revealed, and how AR steps are grouped into programs.

A sample has one random permutation of its N tokens for all its frames. Laid out in that order,
the visible tokens are a prefix and the set to predict is a slice, at every AR step.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, Num

from nova_jax.errors import NovaError


def reveal_order(keys: Key[Array, " b"], num_tokens: int) -> Int[Array, "b {num_tokens}"]:
    """A random permutation of the token indices for each key."""
    draw = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))
    return jnp.argsort(draw(keys), axis=1).astype(jnp.int32)


def to_reveal_order(tokens: Num[Array, "b n p"], order: Int[Array, "b n"]) -> Num[Array, "b n p"]:
    """Row-major tokens in reveal order."""
    return jnp.take_along_axis(tokens, order[..., None], axis=1)


def to_row_major(tokens: Num[Array, "b n p"], order: Int[Array, "b n"]) -> Num[Array, "b n p"]:
    """The inverse of `to_reveal_order`."""
    return jnp.take_along_axis(tokens, jnp.argsort(order, axis=1)[..., None], axis=1)


def kept_first(
    order: Int[Array, "b n"], kept: Bool[Array, "b n"]
) -> tuple[Int[Array, "b n"], Int[Array, " b"]]:
    """The same orders with tokens that are kept, row-major, before all others; and their number."""
    later = jnp.take_along_axis(~kept, order, axis=1)
    first = jnp.argsort(later, axis=1, stable=True)
    return jnp.take_along_axis(order, first, axis=1), kept.sum(axis=1)


def set_sizes(num_tokens: int, num_steps: int) -> Int[np.ndarray, " k"]:
    """Tokens revealed at each AR step: after step k of K, N·cos(π/2 · k/K) are still masked.

    Cosine schedule of MaskGIT (arXiv 2202.04200, section 3.3), rounded half to even. Steps that
    would reveal none are dropped.

    Raises:
        NovaError: if `num_steps` is not positive.
    """
    if num_steps < 1:
        raise NovaError(f"num_inference_steps is {num_steps}; it must be at least 1")
    # From π/2·N steps on a step reveals one token at most, however many there are.
    num_steps = min(num_steps, 2 * num_tokens)
    progress = np.arange(num_steps + 1) / num_steps
    masked = np.round(num_tokens * np.cos(0.5 * np.pi * progress)).astype(int)
    sizes = masked[:-1] - masked[1:]
    return sizes[sizes > 0]


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Consecutive AR steps that share one compiled body, padded to the largest among them.

    Attributes:
        first: index of the first step.
        starts: tokens visible before each step.
        counts: tokens each step reveals.
    """

    first: int
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def prefix(self) -> int:
        """Padded number of visible tokens."""
        return self.starts[-1]

    @property
    def width(self) -> int:
        """Padded number of tokens in a set."""
        return max(self.counts)

    @property
    def end(self) -> int:
        """Tokens visible after the last step."""
        return self.starts[-1] + self.counts[-1]

    @property
    def rows(self) -> tuple[Int[np.ndarray, " k"], ...]:
        """Each step's index, its first token, and how many it reveals."""
        indices = self.first + np.arange(len(self.counts))
        return indices, np.asarray(self.starts), np.asarray(self.counts)

    def cost(self, step: Callable[[int, int], float]) -> tuple[float, float]:
        """Cost of all steps as padded, and as needed; `step` as `bucket_steps` takes it."""
        needed = sum(
            step(start, count) for start, count in zip(self.starts, self.counts, strict=True)
        )
        return len(self.starts) * step(self.prefix, self.width), needed


def bucket_steps(
    sizes: Int[np.ndarray, " k"], step: Callable[[int, int], float], waste: float = 0.05
) -> list[Bucket]:
    """Groups AR steps greedily so that padding adds at most `waste` to each group's cost.

    Args:
        sizes: tokens revealed at each step.
        step: cost of a step by its visible and its predicted tokens.
        waste: share.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    buckets: list[Bucket] = []
    for index, (start, count) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        if buckets:
            last = buckets[-1]
            grown = Bucket(last.first, (*last.starts, start), (*last.counts, count))
            padded, needed = grown.cost(step)
            # Step 0 sees no token and has a body of its own.
            if last.prefix > 0 and padded <= (1 + waste) * needed:
                buckets[-1] = grown
                continue
        buckets.append(Bucket(index, (start,), (count,)))
    return buckets
