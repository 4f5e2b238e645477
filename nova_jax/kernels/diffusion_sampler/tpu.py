"""The diffusion sampling loop as one Pallas kernel for TPUs.

One program runs all steps: its grid is (groups, steps, blocks, tiles of tokens), one after the
other. A group's tokens, their predictions and hidden states stay in VMEM from the first step to the
last; the modulations stream in, tile by tile. There is one group where VMEM holds all tokens. The
blocks' weights are fetched once where they fit VMEM beside the rest (v5e, v6e; v5p up to 64 MiB),
and once a step where they do not (v4).

Dimensions: S steps, L blocks, G guidance passes, B samples, R rows (tokens of all samples), t rows
of a tile, P values of a token padded to the 128 lanes, D width, V vectors (see `Outside`).
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nova_jax.errors import NovaError
from nova_jax.kernels.diffusion_sampler.reference import Guidance, State, Work

LANES = 128
# Rows of a bfloat16 tile.
SUBLANES = 16
_LARGEST_TILE = 128  # rows
_DTYPES = ("bfloat16", "float32")  # Mosaic has no float16


def padded_tokens(tokens: int) -> int:
    """n: whole tiles of rows."""
    return tokens + -tokens % SUBLANES


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the kernel uses VMEM.

    Attributes:
        groups: parts that the rows are taken in, one after the other.
        tile: t.
        resident: all blocks' weights are there at once; else one block's.
        buffers: copies of a block's weights: 2 fetch one while the other is used.
        bytes: what is needed.
    """

    groups: int
    tile: int
    resident: bool
    buffers: int
    bytes: int


def choose_tiling(
    *,
    rows: int,
    passes: int,
    width: int,
    depth: int,
    values: int,
    dtype: DTypeLike,
    noise: bool,
    vmem: int,
    divisible: bool = True,
) -> Tiling:
    """Chooses groups, the tile and where weights live.

    Args:
        rows: R.
        passes, width, depth, values: G, D, L and P before padding.
        dtype: of the computation.
        noise: steps add noise.
        vmem: bytes of VMEM.
        divisible: rows may be taken in groups: their norms do not matter to each other.

    Raises:
        NovaError: it cannot be done, or does not fit.
    """
    if jnp.dtype(dtype).name not in _DTYPES:
        raise NovaError(
            f"the sampler's kernel for TPUs computes in {' or '.join(_DTYPES)}, not "
            f'{jnp.dtype(dtype)}; choose one of them, or sampler "xla"'
        )
    if width % LANES or values > LANES:
        raise NovaError(
            f"the sampler's kernel for TPUs takes heads whose width is a multiple of {LANES} and "
            f'tokens of at most {LANES} values, not {width} and {values}; choose sampler "xla"'
        )
    itemsize = jnp.dtype(dtype).itemsize
    block = 2 * width * width * itemsize
    needed = 0

    def bytes_of(rows: int, tile: int, held: int) -> int:
        state = (2 + passes + noise) * rows * LANES * 4 + passes * rows * width * 4
        streamed = 2 * passes * tile * (3 + 2) * width * itemsize
        temporary = 6 * passes * tile * width * 4
        small = 2 * LANES * width * itemsize + 4 * depth * width * 4 + 2**20
        return state + streamed + temporary + small + held * block

    units = rows // SUBLANES
    for groups in range(1, units + 1 if divisible else 2):
        if units % groups:
            continue
        part = rows // groups
        tiles = [t for t in range(_LARGEST_TILE, 0, -SUBLANES) if part % t == 0]
        for tile, (resident, buffers) in itertools.product(tiles, ((True, 1), (False, 2))):
            needed = bytes_of(part, tile, depth if resident else buffers)
            if needed <= vmem:
                return Tiling(groups, tile, resident, buffers, needed)
    # Without the room to fetch a block's weights while the one before is used.
    needed = bytes_of(rows if not divisible else SUBLANES, SUBLANES, 1)
    if needed <= vmem:
        return Tiling(1 if not divisible else units, SUBLANES, False, 1, needed)
    raise NovaError(
        f"the sampler's kernel needs {needed / 2**20:.0f} MiB of VMEM for {rows} tokens of width "
        f"{width}, and there are {vmem / 2**20:.0f}; sample fewer videos at a time, or choose "
        'sampler "xla"'
    )


def sample(
    work: Work, *, vmem: int | None = None, interpret: bool | pltpu.InterpretParams = False
) -> State:
    """The same as `nova_jax.kernels.diffusion_sampler.reference.sample`, fused.

    Args:
        work: n is what `padded_tokens` says.
        vmem: bytes of VMEM; by default what this machine's TPU has.
        interpret: run on any machine, for tests.

    Raises:
        NovaError: it cannot be done.
    """
    head, modulations, steps, guidance = work.head, work.modulations, work.steps, work.guidance
    (x, outside), noise = work.state, work.noise
    batch, tokens, values = x.shape
    rows, passes = batch * tokens, guidance.passes
    depth, width, dtype = head.depth, head.width, modulations.final.dtype
    count = modulations.final.shape[0]
    if vmem is None:
        vmem = pltpu.get_tpu_info().vmem_capacity_bytes
    # Mosaic keeps some for itself.
    how = choose_tiling(
        rows=rows,
        passes=passes,
        width=width,
        depth=depth,
        values=values,
        dtype=dtype,
        noise=noise is not None,
        vmem=int(0.9 * vmem),
        divisible=outside is None,
    )
    tile, part = how.tile, rows // how.groups
    tiles = part // tile

    def lanes(array: Array, axis: int = -1) -> Array:
        axis %= array.ndim
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, LANES - array.shape[axis])
        return jnp.pad(array, padding)

    vector = lambda weight: weight.astype(jnp.float32)[..., None, :]  # noqa: E731
    matrix = lambda weight: weight.astype(dtype)  # noqa: E731
    whole = lambda *shape: pl.BlockSpec(shape, lambda g, s, b, t: (0,) * len(shape))  # noqa: E731
    of_group = pl.BlockSpec((part, LANES), lambda g, s, b, t: (g, 0))
    held = 1 if how.resident else how.buffers
    weights = pl.BlockSpec(
        (depth if how.resident else 1, width, width),
        (lambda g, s, b, t: (0, 0, 0)) if how.resident else (lambda g, s, b, t: (b, 0, 0)),
        pipeline_mode=pl.Buffered(held),
    )
    columns = (steps.keep, steps.move, steps.noise_scale)
    coefficients = jnp.stack([jnp.asarray(column, jnp.float32) for column in columns], 1)
    inputs: list[tuple[Array, pl.BlockSpec]] = [
        (coefficients, pl.BlockSpec(memory_space=pltpu.SMEM)),
        (
            jnp.stack([jnp.asarray(work.scale, jnp.float32), jnp.asarray(work.first, jnp.float32)]),
            pl.BlockSpec(memory_space=pltpu.SMEM),
        ),
        (lanes(x.reshape(rows, values)), of_group),
        (
            modulations.blocks.reshape(depth, count, passes, rows, 3 * width),
            pl.BlockSpec(
                (1, 1, passes, tile, 3 * width), lambda g, s, b, t: (b, s, 0, g * tiles + t, 0)
            ),
        ),
        (
            modulations.final.reshape(count, passes, rows, 2 * width),
            # Asked for with the last block only; before, the tile that comes first then.
            pl.BlockSpec(
                (1, passes, tile, 2 * width),
                lambda g, s, b, t: (s, 0, g * tiles + jnp.where(b == depth - 1, t, 0), 0),
            ),
        ),
        (lanes(matrix(head.embed), 0), whole(LANES, width)),
        (vector(head.embed_bias), whole(1, width)),
        (matrix(head.fc1), weights),
        (vector(head.fc1_bias), whole(depth, 1, width)),
        (matrix(head.fc2), weights),
        (vector(head.fc2_bias), whole(depth, 1, width)),
        (vector(head.norm_scale), whole(depth, 1, width)),
        (vector(head.norm_bias), whole(depth, 1, width)),
        (lanes(matrix(head.out)), whole(width, LANES)),
        (lanes(vector(head.out_bias)), whole(1, LANES)),
    ]
    if noise is not None:
        inputs.append(
            (
                lanes(noise.reshape(count, rows, values)),
                pl.BlockSpec((1, part, LANES), lambda g, s, b, t: (s, g, 0)),
            )
        )
    if outside is not None:
        if batch > LANES or outside.weights.shape[1] > LANES:
            raise NovaError(
                f"the sampler's kernel renormalizes at most {LANES} samples and noisy steps; "
                'choose sampler "xla"'
            )
        member = jax.nn.one_hot(jnp.arange(rows) // tokens, LANES)
        member = jnp.where(jnp.tile(work.valid, batch)[:, None] > 0, member, 0.0)
        vectors = lanes(lanes(outside.gram), 1)
        inputs += [
            (member, whole(rows, LANES)),
            (vectors, whole(batch, LANES, LANES)),
            (lanes(outside.weights), whole(batch, LANES)),
        ]
    outputs = [(jax.ShapeDtypeStruct((rows, LANES), jnp.float32), of_group)]
    if outside is not None:
        outputs.append((jax.ShapeDtypeStruct((batch, LANES), jnp.float32), whole(batch, LANES)))
    arrays, in_specs = zip(*inputs, strict=True)
    shapes, out_specs = zip(*outputs, strict=True)
    results = pl.pallas_call(
        functools.partial(
            _kernel,
            guidance=guidance,
            how=how,
            noisy=noise is not None,
            renormalized=outside is not None,
        ),
        grid=(how.groups, count, depth, tiles),
        in_specs=list(in_specs),
        out_specs=list(out_specs),
        out_shape=list(shapes),
        scratch_shapes=[
            pltpu.VMEM((tiles, passes * tile, width), jnp.float32),
            pltpu.VMEM((passes, part, LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",) * 4, vmem_limit_bytes=vmem
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * count * passes * rows * width * (depth * width + LANES),
            transcendentals=count * passes * rows * width * depth,
            bytes_accessed=sum(array.nbytes for array in arrays),
        ),
        interpret=interpret,
        name="diffusion_sampler",
    )(*arrays)
    x = results[0][:, :values].reshape(x.shape)
    if outside is not None:
        known = outside.weights.shape[1]
        outside = dataclasses.replace(outside, weights=results[1][:, :known])
    return x, outside


def _normalized(x: Float[Array, "r d"], epsilon: float) -> Float[Array, "r d"]:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    x = x - mean
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)


def _kernel(
    coefficients: Any,
    scalars: Any,
    x_start: Any,
    modulation: Any,
    final: Any,
    embed: Any,
    embed_bias: Any,
    fc1: Any,
    fc1_bias: Any,
    fc2: Any,
    fc2_bias: Any,
    norm_scale: Any,
    norm_bias: Any,
    out: Any,
    out_bias: Any,
    *rest: Any,
    guidance: Guidance,
    how: Tiling,
    noisy: bool,
    renormalized: bool,
) -> None:
    """One step, one block, one tile; references in the order of `sample`."""
    left = list(rest)
    noise: Any = left.pop(0) if noisy else None
    member, gram, weights_start, weights = (None,) * 4  # type: Any, Any, Any, Any
    if renormalized:
        member, gram, weights_start = (left.pop(0) for _ in range(3))
    x = left.pop(0)
    if renormalized:
        weights = left.pop(0)
    hidden, predicted = left
    step, layer, tile = (pl.program_id(axis) for axis in (1, 2, 3))
    last_layer = layer == pl.num_programs(2) - 1
    passes, rows = guidance.passes, how.tile
    dtype = fc1.dtype
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    here = pl.ds(tile * rows, rows)

    @pl.when((step == 0) & (layer == 0) & (tile == 0))
    def _start() -> None:
        x[...] = x_start[...]
        if weights is not None:
            weights[...] = weights_start[...]

    @pl.when(layer == 0)
    def _embed() -> None:
        h = dot(x[here].astype(dtype), embed[...]) + embed_bias[...]
        hidden[tile] = jnp.concatenate([h] * passes, axis=0)

    # A block: h ← h + gate · LN(fc2(SiLU(fc1(LN₀(h)(1 + scale) + shift)))).
    which = layer if how.resident else 0
    width = hidden.shape[-1]
    rows_of = modulation[0, 0].reshape(passes * rows, 3 * width).astype(jnp.float32)
    scale, shift, gate = (rows_of[:, i * width : (i + 1) * width] for i in range(3))
    h = hidden[tile]
    u = _normalized(h, 1e-6) * (1 + scale) + shift
    u = jax.nn.silu(dot(u.astype(dtype), fc1[which]) + fc1_bias[layer])
    u = dot(u.astype(dtype), fc2[which]) + fc2_bias[layer]
    h = h + gate * (_normalized(u, 1e-5) * norm_scale[layer] + norm_bias[layer])
    hidden[tile] = h

    @pl.when(last_layer)
    def _project() -> None:
        rows_of = final[0].reshape(passes * rows, 2 * width).astype(jnp.float32)
        u = _normalized(h, 1e-6) * (1 + rows_of[:, :width]) + rows_of[:, width:]
        prediction = dot(u.astype(dtype), out[...]) + out_bias[...]
        for i in range(passes):
            predicted[i, here] = prediction[i * rows : (i + 1) * rows]

    def _renormalize(
        cond: Array, guided: Array, keep: Array, move: Array, noise_scale: Array
    ) -> Array:
        """Each row's factor; the part outside the set takes its step."""
        is_member = member[...]
        counts = jnp.sum(is_member, axis=1, keepdims=True) > 0

        def norm2(array: Array) -> Float[Array, "1 lanes"]:
            of_row = jnp.sum(jnp.where(counts, array, 0.0) ** 2, axis=1, keepdims=True)
            return jnp.sum(is_member * of_row, axis=0, keepdims=True)

        # wᵀ·gram·w of every sample, on its lane.
        samples = weights.shape[0]
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        beyond = jnp.zeros((1, LANES), jnp.float32)
        for b in range(samples):
            w = weights[b : b + 1]
            product = jnp.dot(w, gram[b], precision=jax.lax.Precision.HIGHEST)
            beyond = jnp.where(lane == b, jnp.sum(product * w), beyond)
        ratio = jnp.sqrt(norm2(cond) + beyond) / jnp.sqrt(norm2(guided) + beyond)
        factor = jnp.clip(jnp.where(lane < samples, ratio, 1.0), guidance.renorm, 1.0)
        its_vector = lane == 1 + step + scalars[1].astype(jnp.int32)
        added = jnp.where(its_vector, noise_scale, 0.0)
        for b in range(samples):
            mine = jnp.sum(jnp.where(lane == b, factor, 0.0))
            weights[b : b + 1] = weights[b : b + 1] * (keep + move * mine) + added
        return jnp.sum(is_member * factor, axis=1, keepdims=True)

    @pl.when(last_layer & (tile == pl.num_programs(3) - 1))
    def _update() -> None:
        keep, move, noise_scale = (coefficients[step, i] for i in range(3))
        guided = predicted[0]
        if passes > 1:
            cond, uncond, base = predicted[0], predicted[1], predicted[passes - 1]
            guided = uncond + scalars[0] * (cond - base)
            if weights is not None:
                guided = guided * _renormalize(cond, guided, keep, move, noise_scale)
            if guidance.image_scale:
                guided = guided + guidance.image_scale * (base - uncond)
        new = keep * x[...] + move * guided
        x[...] = new if noise is None else new + noise_scale * noise[0]
