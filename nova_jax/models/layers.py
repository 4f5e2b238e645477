"""Layers that all three stages share: linear maps, normalisation, patches, stacked blocks.

Every parameter is float32 and names the logical axis of each of its dimensions in its
metadata; `logical_axes` reads them and `nova_jax.distributed.mesh` maps them to mesh axes.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from nova_jax.models.layout import AxisNames, constrain
from nova_jax.models.observe import hand_on, observe, observed

# What a block keeps for its backward pass: everything; its matrix products; nothing but its input.
Remat = Literal["none", "dots", "full"]

_XAVIER_UNIFORM = nnx.initializers.xavier_uniform()


class Buffer(nnx.Variable):
    """A constant that is saved with the model and never trained."""


def logical_axes(variable: nnx.Variable) -> AxisNames:
    """Names of the logical axes of a parameter, one a dimension, None where unnamed.

    The leading depth axis of stacked blocks is called ``layers``.
    """
    shape = variable.get_value().shape
    names: AxisNames = variable.get_metadata().get("logical_axes", ())
    stacked = ("layers",) if len(shape) > len(names) > 0 else ()
    return stacked + names if names else (None,) * len(shape)


class Linear(nnx.Linear):
    """A linear map, whose kernel may be kept in 8 bits, see `nova_jax.models.quantization`.

    Attributes:
        scale: of a kernel in 8 bits, float32, one a channel of the output; else None.
    """

    def __init__(self, *sizes: int, **options: Any):
        super().__init__(*sizes, **options)
        self.scale: nnx.Param[jax.Array] | None = nnx.data(None)

    def __call__(self, inputs: Float[Array, "*b i"]) -> Float[Array, "*b o"]:  # type: ignore[override]
        """Maps the last axis."""
        if self.scale is None:
            return super().__call__(inputs)
        # Integers up to 127 are exact in every type; what is summed is scaled afterwards.
        dtype, scale = self.dtype, jnp.expand_dims(self.scale[...], range(inputs.ndim - 1))
        y = jnp.matmul(inputs.astype(dtype), self.kernel[...].astype(dtype)) * scale
        if self.bias is not None:
            y += jnp.expand_dims(self.bias[...], range(inputs.ndim - 1))
        return y.astype(dtype)


def linear(
    in_features: int,
    out_features: int,
    axes: AxisNames = (None, None),
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    bias: bool = True,
    kernel_init: Any = _XAVIER_UNIFORM,
    param_dtype: DTypeLike = jnp.float32,
) -> Linear:
    """A linear map that computes in `dtype`."""
    return Linear(
        in_features,
        out_features,
        use_bias=bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=kernel_init,
        kernel_metadata={"logical_axes": axes},
        bias_metadata={"logical_axes": axes[-1:]},
        rngs=rngs,
    )


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation in float32 whatever the compute type; the result has `dtype`."""

    def __init__(
        self,
        features: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        epsilon: float = 1e-5,
        affine: bool = True,
        initial_scale: float = 1.0,
    ):
        super().__init__(
            features,
            epsilon=epsilon,
            dtype=jnp.float32,
            use_bias=affine,
            use_scale=affine,
            # E[x²] − E[x]² cancels digits that parity with the release needs.
            use_fast_variance=False,
            scale_init=nnx.initializers.constant(initial_scale),
            bias_metadata={"logical_axes": (None,)},
            scale_metadata={"logical_axes": (None,)},
            rngs=rngs,
        )
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:  # type: ignore[override]
        """Normalises the last axis."""
        return super().__call__(x).astype(self.out_dtype)


class Projector(nnx.Module):
    """Two linear maps with an activation between them."""

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.fc1 = linear(in_features, hidden, ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, out_features, ("mlp", "embed"), dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Maps the last axis."""
        return self.fc2(self.activation(self.fc1(x)))


def gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The exact GELU, x·Φ(x), with the error function and not its tanh approximation.

    `jax.nn.gelu` goes through erfc, which costs several times as much on CPUs.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def patchify(x: Num[Array, "*b h w c"], patch: int) -> Num[Array, "*b n p"]:
    """Cuts images into tokens, row-major; a token's values are (row, column, channel)."""
    return rearrange(x, "... (H p) (W q) c -> ... (H W) (p q c)", p=patch, q=patch)


def unpatchify(
    tokens: Num[Array, "*b n p"], patch: int, grid: tuple[int, int]
) -> Num[Array, "*b h w c"]:
    """The inverse of `patchify` for a grid of (rows, columns) of tokens."""
    pattern = "... (H W) (p q c) -> ... (H p) (W q) c"
    return rearrange(tokens, pattern, H=grid[0], W=grid[1], p=patch, q=patch)


class BlockStack(nnx.Module):
    """`depth` equal blocks whose parameters are stacked on a leading axis and scanned.

    Compile time and program size do not grow with depth.

    Args:
        make_block: builds one block from random streams.
        depth: number of blocks.
        remat: what each block recomputes in the backward pass instead of keeping it.
        unroll: blocks per iteration of the compiled loop; the loop vanishes at `depth`.
        axes: logical axes of the carried value, see `nova_jax.models.layout`.
        name: what observers call the blocks, followed by an index.
    """

    def __init__(
        self,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        rngs: nnx.Rngs,
        remat: Remat = "none",
        unroll: int = 1,
        axes: AxisNames = (),
        name: str = "blocks",
    ):
        self.depth, self.remat, self.unroll = depth, remat, unroll
        self.axes, self.name = axes, name
        stacked = nnx.split_rngs(splits=depth)(nnx.vmap(make_block, in_axes=(0,), out_axes=0))
        self.block = stacked(rngs)

    def __call__(self, x: Any, *shared: Any) -> Any:
        """Applies block after block.

        Args:
            x: the carried value, the first argument of each block.
            *shared: further arguments, the same for every block.
        """
        graph, state = nnx.split(self.block)

        def apply(x: Any, block: Any) -> Any:
            x = nnx.merge(graph, block)(x, *shared)
            observe(self.name, x)
            # Arrays without those axes, as of the diffusion head in sampling, lie as they come.
            return constrain(x, *self.axes) if jnp.ndim(x) == len(self.axes) else x

        body = observed(apply)

        if self.remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if self.remat == "dots" else None
            body = jax.checkpoint(body, prevent_cse=False, policy=policy)
        unroll = min(self.unroll, self.depth)
        x, places = jax.lax.scan(body, x, state, unroll=unroll)
        hand_on(places, self.depth)
        return x

    def all_but_last(
        self, x: Any, *shared: Any, call: Callable[..., Any] = operator.call
    ) -> tuple[Any, Any]:
        """Applies all blocks but the last; returns x and the last block (no gradient is meant).

        With `call` it is that which is done with each block, x and what is shared.
        """
        graph, state = nnx.split(self.block)

        def block(index: Any) -> Any:
            pick = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)  # noqa: E731
            return nnx.merge(graph, jax.tree.map(pick, state))

        count = self.depth - 1
        run = lambda index, x: call(block(index), x, *shared)  # noqa: E731
        x = jax.lax.fori_loop(0, count, run, x, unroll=max(1, min(self.unroll, count)))
        return x, block(count)

    def map(self, function: Callable[[Any], Any]) -> Any:
        """The results of `function` for each block, stacked; the blocks do not see each other."""
        graph, state = nnx.split(self.block)
        return jax.lax.map(lambda block: function(nnx.merge(graph, block)), state)
