"""The diffusion sampling loop: validates, splits the steps where memory asks for it, chooses."""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nova_jax.errors import NovaError
from nova_jax.kernels.device import compute_capability, platform
from nova_jax.kernels.diffusion_sampler import reference, tuning
from nova_jax.kernels.diffusion_sampler.reference import (
    Guidance,
    HeadWeights,
    Modulations,
    Outside,
    State,
    Steps,
    Work,
)

Implementation = Literal["auto", "xla", "pallas"]

#: (features of tokens, S times) to the modulations of these steps.
Modulate = Callable[[Float[Array, "gb n d"], Float[Array, " s"]], Modulations]

#: Modules of kernels by backend, imported when they are asked for: Pallas is slow to import, and no
#: CPU needs it.
_KERNELS: dict[str, Callable[[], Any]] = {
    backend: functools.partial(importlib.import_module, f"{__package__}.{backend}")
    for backend in ("gpu", "tpu")
}

#: Bytes of modulations that are there at once; steps beyond are projected when they are due.
MODULATION_BYTES = 2**28


def checked(implementation: Implementation, backend: str | None = None) -> Implementation:
    """The same name.

    Args:
        implementation: "auto" or one that is named.
        backend: "cpu", "gpu" or "tpu"; by default what is compiled for.

    Raises:
        NovaError: there is no such implementation, or not for this backend.
    """
    if implementation not in get_args(Implementation):
        raise NovaError(
            f"sampler {implementation!r} is not known; choose {', '.join(get_args(Implementation))}"
        )
    backend = platform() if backend is None else backend
    if implementation == "pallas" and backend not in _KERNELS:
        raise NovaError(
            f'sampler "pallas" runs on GPUs and TPUs, this is {backend}; use "auto" or "xla"'
        )
    if implementation == "pallas" and backend == "gpu" and compute_capability() < 8:
        raise NovaError(
            'sampler "pallas" needs an NVIDIA GPU of compute capability 8.0 or more (A100 and '
            f'later), this one has {compute_capability()}; use "auto" or "xla"'
        )
    return implementation


def sample(
    head: HeadWeights,
    modulate: Modulate,
    features: Float[Array, "gb n d"],
    state: State,
    steps: Steps,
    guidance: Guidance,
    *,
    scale: Float[Array, ""] | float = 1.0,
    count: Int[Array, ""] | int | None = None,
    first: int = 0,
    noise: Float[Array, "s b n p"] | None = None,
    implementation: Implementation = "auto",
) -> State:
    """Takes a set of tokens through diffusion steps.

    Args:
        head: the diffusion head, its modulations apart.
        modulate: the modulations.
        features: of the tokens, as `modulate` takes them; passes stacked on the batch axis.
        state: the tokens as they are, float32, and what is outside the set; the latter with
            `guidance.renormalized` only.
        steps: coefficients of the steps to run, a pytree.
        guidance: how passes are combined.
        scale: g of guidance.
        count: tokens of the set; those from here on are padding, whatever they hold.
        first: index of the first of these steps among all, for what is outside.
        noise: of these steps; None where none adds any.
        implementation: "xla", "pallas" or "auto"; a named one runs or fails. "auto" is the
            faster one, see `nova_jax.kernels.diffusion_sampler.tuning`; on CPUs "xla".

    Returns:
        The new state.

    Raises:
        NovaError: before anything is compiled, if the named implementation cannot do this.
    """
    tokens, total = state[0].shape[1], len(steps.time)
    one_step = jax.eval_shape(modulate, features, jnp.zeros(1))
    per_step = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(one_step))
    most = max(1, MODULATION_BYTES // per_step)
    chunk = max(size for size in range(1, total + 1) if total % size == 0 and size <= most)
    parts = total // chunk
    split = lambda array: jnp.reshape(jnp.asarray(array), (parts, chunk, *array.shape[1:]))  # noqa: E731
    rows = (jnp.arange(parts), *jax.tree.map(split, (steps, noise)))

    def work(width: int, x: Array, outside: Outside | None, row: tuple[Any, ...]) -> Work:
        """A part of the steps, of tokens that are padded to so many."""
        index, steps, noise = row
        modulations = modulate(_padded(features, width), steps.time)
        valid = (jnp.arange(width) < (tokens if count is None else count)).astype(jnp.float32)
        state, at = (_padded(x, width), outside), first + index * chunk
        noise = _padded(noise, width)
        return Work(head, modulations, state, steps, guidance, scale, valid, at, noise)

    run: Callable[..., State] = reference.sample
    width, kernel = tokens, _kernel(implementation)
    if kernel is not None:
        row, wide = jax.tree.map(lambda array: array[0], rows), kernel.padded_tokens(tokens)
        shapes = lambda width: jax.eval_shape(functools.partial(work, width), *state, row)  # noqa: E731
        if (
            implementation == "pallas"
            or tuning.faster(kernel.sample, shapes(tokens), shapes(wide)) == "pallas"
        ):
            run, width = kernel.sample, wide

    def part(state: State, row: tuple[Any, ...]) -> tuple[State, None]:
        return run(work(width, *state, row)), None

    state, _ = jax.lax.scan(part, (_padded(state[0], width), state[1]), rows)
    return state[0][:, :tokens], state[1]


def _kernel(implementation: Implementation) -> Any:
    """The kernel's module, if it is asked for, or may be what is faster here."""
    if checked(implementation) == "pallas":
        return _KERNELS[platform()]()
    if implementation == "xla" or not tuning.is_on():
        return None
    too_old = platform() == "gpu" and compute_capability() < 8
    load = None if too_old else _KERNELS.get(platform())
    return None if load is None else load()


def _padded(array: Float[Array, "*b n d"] | None, tokens: int) -> Any:
    """With as many tokens, on the axis before the last."""
    if array is None:
        return None
    room = [(0, 0)] * (array.ndim - 2) + [(0, tokens - array.shape[-2]), (0, 0)]
    return jnp.pad(array, room)
