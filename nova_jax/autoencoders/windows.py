"""How a codec takes long clips: in windows that overlap, in the memory of one."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

Frames = Float[Array, "b f h w c"]
Result = Float[Array, "b g y x d"]


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a long clip is taken in parts that overlap, each by itself.

    Attributes:
        size: frames of a part. A clip that is no longer is taken whole.
        step: frames from the start of a part to the start of the next; those that do not fit are
            left out.
        drop: frames at the start of every later part's result that repeat the part before.
    """

    size: int
    step: int
    drop: int

    def results(self, frames: int, of_part: Callable[[int], int]) -> int:
        """Frames of the result, where a part of n frames gives `of_part(n)`."""
        if frames <= self.size:
            return of_part(frames)
        later = (frames - self.size) // self.step
        return of_part(self.size) + later * (of_part(self.size) - self.drop)

    def run(self, network: Callable[[Frames], Result], x: Frames) -> Result:
        """Runs part after part, in the memory of one, and joins what they give."""
        if x.shape[1] <= self.size:
            return network(x)
        starts = range(0, x.shape[1] - self.size + 1, self.step)
        parts = jax.lax.map(network, jnp.stack([x[:, i : i + self.size] for i in starts]))
        later = rearrange(parts[1:, :, self.drop :], "n b t h w c -> b (n t) h w c")
        return jnp.concatenate([parts[0], later], axis=1)
