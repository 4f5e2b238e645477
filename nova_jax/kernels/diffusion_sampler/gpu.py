"""The diffusion sampling loop as one Pallas kernel for GPUs, through Triton.

A sample's set of tokens is few rows, too few to occupy a GPU by themselves, so each layer is spread
over the multiprocessors: a program computes some columns of every layer for one sample, and
programs of a sample wait for each other between layers, at a counter in memory. All of them must be
on the GPU at once; there are never more than it has multiprocessors. A program reads the same part
of the weights at every step, so weights stay in the second-level cache; tokens are in registers
from the first step to the last, in every program of their sample.

    embed                       columns of h, their share of its norm           | wait
    for each block   fc1        columns of SiLU(fc1(LN₀(h)(1 + scale) + shift)) | wait
                     fc2        columns of u = fc2(·), their share of its norm   | wait
                     gate       columns of h + gate · LN(u), their share         | wait
    project          their share of the prediction                              | wait
    update           all of x, the same in every program

Dimensions: S steps, L blocks, G guidance passes, B samples, n tokens (padded to a power of two), P
values of a token, D width, C programs of a sample, c = D / C columns of a program.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nova_jax.errors import NovaError
from nova_jax.kernels.device import compute_capability
from nova_jax.kernels.diffusion_sampler.reference import Guidance, State, Work

#: Fewest rows, columns and depth of a matrix product in Triton.
SMALLEST = 16
_MOST_TOKENS = 64  # of a sample; its rows are in the registers of one program
_DEPTH = 64  # columns of the left side that are loaded at once
_DTYPES = ("bfloat16", "float16", "float32")
# KiB of shared memory that a program can have, by compute capability (CUDA's programming guide).
_SHARED = {8.0: 163, 8.6: 99, 8.7: 163, 8.9: 99, 9.0: 227, 10.0: 227, 10.3: 227, 12.0: 99}


def shared_memory(capability: float) -> int:
    """Bytes of it for one program; of a GPU that is not known, the least there is."""
    return 1024 * _SHARED.get(capability, min(_SHARED.values()))


def padded_tokens(tokens: int) -> int:
    """n: a power of two, or where a sample's tokens are many, whole parts of such a size."""
    if tokens > _MOST_TOKENS:
        return tokens + -tokens % _MOST_TOKENS
    return max(SMALLEST, pl.next_power_of_2(tokens))


def choose_columns(
    *, tokens: int, batch: int, width: int, dtype: DTypeLike, processors: int, shared: int
) -> int:
    """Columns of a program, c: the fewest with which all programs are on the GPU at once.

    Args:
        tokens, batch, width: n, B, D.
        dtype: of the computation.
        processors: multiprocessors of the GPU.
        shared: bytes of shared memory that a program can have.

    Raises:
        NovaError: it cannot be done.
    """
    if jnp.dtype(dtype).name not in _DTYPES:
        raise NovaError(
            f"the sampler's kernel for GPUs computes in {', '.join(_DTYPES)}, not "
            f'{jnp.dtype(dtype)}; choose one of them, or sampler "xla"'
        )
    if width % _DEPTH and width not in (SMALLEST, 2 * SMALLEST):
        raise NovaError(
            f"the sampler's kernel for GPUs takes heads whose width is a multiple of {_DEPTH}, not "
            f'{width}; choose sampler "xla"'
        )
    if tokens > _MOST_TOKENS:
        raise NovaError(
            f"the sampler's kernel renormalizes at most {_MOST_TOKENS} tokens of a sample, not "
            f'{tokens}; use more AR steps, or sampler "xla"'
        )
    hint = 'sample fewer videos at a time, or choose sampler "xla"'
    sizes = [c for c in (16, 32, 64, 128, 256) if width % c == 0]
    columns = next((c for c in sizes if batch * (width // c) <= processors), None)
    if columns is None:
        raise NovaError(
            f"the sampler's kernel cannot put {batch} samples of width {width} on {processors} "
            f"multiprocessors at once; {hint}"
        )
    # Of a product Triton keeps the weights there, and the sums when it lays them out anew. It was
    # seen to ask for just this (128 KiB for 64 tokens, 256 columns, float32).
    needed = columns * (_DEPTH * jnp.dtype(dtype).itemsize + tokens * 4)
    if needed > shared:
        raise NovaError(
            f"the sampler's kernel needs {needed // 1024} KiB of shared memory for {batch} "
            f"samples of {tokens} tokens in {jnp.dtype(dtype)}, and there are {shared // 1024}; "
            f"{hint}"
        )
    return columns


def sample(
    work: Work,
    *,
    processors: int | None = None,
    shared: int | None = None,
    interpret: bool = False,
) -> State:
    """The same as `nova_jax.kernels.diffusion_sampler.reference.sample`, fused.

    Args:
        work: n is what `padded_tokens` says.
        processors, shared: multiprocessors of the GPU and bytes of shared memory of one; by
            default of this machine's.
        interpret: run on any machine, for tests: one program a sample, as they run one by one.

    Raises:
        NovaError: it cannot be done.
    """
    head, modulations, steps, guidance = work.head, work.modulations, work.steps, work.guidance
    (x, outside), noise = work.state, work.noise
    whole_shape = x.shape
    if outside is None and x.shape[1] > _MOST_TOKENS:
        # Nothing ties the tokens of a sample together: parts of it are samples of their own.
        x = x.reshape(-1, _MOST_TOKENS, x.shape[2])
        noise = None if noise is None else noise.reshape(len(noise), *x.shape)
    batch, tokens, values = x.shape
    passes, depth, width = guidance.passes, head.depth, head.width
    dtype, count = modulations.final.dtype, modulations.final.shape[0]
    if interpret:
        columns = width
    else:
        processors = processors or jax.local_devices()[0].core_count
        columns = choose_columns(
            tokens=tokens,
            batch=batch,
            width=width,
            dtype=dtype,
            processors=processors,
            shared=shared or shared_memory(compute_capability()),
        )
    programs = width // columns
    slots = pl.next_power_of_2(programs)
    # A token's values as the depth and as the columns of products.
    room = max(SMALLEST, pl.next_power_of_2(values)) - values
    wide = values + room
    matrix = lambda weight: weight.astype(dtype)  # noqa: E731
    vector = lambda weight: weight.astype(jnp.float32)  # noqa: E731
    last = lambda array: jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, room)])  # noqa: E731
    rows = jnp.stack(
        [jnp.asarray(column, jnp.float32) for column in (steps.keep, steps.move, steps.noise_scale)]
    )
    vectors = 0
    weights = gram = jnp.zeros((1, 1), jnp.float32)
    if outside is not None:
        known = outside.weights.shape[1]
        vectors = max(SMALLEST, pl.next_power_of_2(known))
        weights = jnp.pad(outside.weights, ((0, 0), (0, vectors - known)))
        gram = jnp.pad(outside.gram, ((0, 0), (0, vectors - known), (0, vectors - known)))
    inputs = [
        rows,
        jnp.stack([jnp.asarray(work.scale, jnp.float32), jnp.asarray(work.first, jnp.float32)]),
        work.valid.astype(jnp.float32),
        last(x),
        jnp.zeros((1,), jnp.float32) if noise is None else last(noise),
        weights,
        gram,
        modulations.blocks.reshape(depth, count, passes, batch, tokens, 3 * width),
        modulations.final.reshape(count, passes, batch, tokens, 2 * width),
        jnp.pad(matrix(head.embed), ((0, room), (0, 0))),
        vector(head.embed_bias),
        matrix(head.fc1),
        vector(head.fc1_bias),
        matrix(head.fc2),
        vector(head.fc2_bias),
        vector(head.norm_scale),
        vector(head.norm_bias),
        last(matrix(head.out)),
        last(vector(head.out_bias)),
        jnp.zeros(batch, jnp.int32),
    ]
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    shapes = [
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        f32((batch, tokens, wide)),
        f32((batch, max(vectors, 1))),
        f32((batch, passes, tokens, width)),  # h
        jax.ShapeDtypeStruct((batch, passes, tokens, width), dtype),  # SiLU(fc1(·))
        f32((batch, slots, 2, passes, tokens)),  # mean of h's columns, squared deviations
        f32((batch, slots, 2, passes, tokens)),  # of u's
        f32((batch, programs, passes, tokens, wide)),  # shares of the prediction
    ]
    whole = pl.BlockSpec(memory_space=pl.ANY)
    results = pl.pallas_call(
        functools.partial(
            _kernel,
            guidance=guidance,
            columns=columns,
            noisy=noise is not None,
            # The interpreter has no warps, and no barrier.
            barrier=(lambda: None) if interpret else plgpu.debug_barrier,
        ),
        grid=(batch * programs,),
        in_specs=[whole] * len(inputs),
        out_specs=[whole] * len(shapes),
        out_shape=shapes,
        input_output_aliases={len(inputs) - 1: 0},
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=2),
        interpret=interpret,
        name="diffusion_sampler",
    )(*inputs)
    x = results[1][..., :values].reshape(whole_shape)
    if outside is not None:
        outside = dataclasses.replace(outside, weights=results[2][:, :known])
    return x, outside


def _load(ref: Any, *index: Any, **options: Any) -> Array:
    """`ref[index]` with Triton's options, whose interpreter takes no Python integers."""
    index = tuple(jnp.asarray(i, jnp.int32) if isinstance(i, int) else i for i in index)
    return plgpu.load(ref.at[index], **options)


def _kernel(
    coefficients: Any,
    scalars: Any,
    valid: Any,
    x_start: Any,
    noise: Any,
    weights_start: Any,
    gram: Any,
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
    counter_start: Any,
    counter: Any,
    x_end: Any,
    weights_end: Any,
    hidden: Any,
    inner: Any,
    hidden_sums: Any,
    inner_sums: Any,
    shares: Any,
    *,
    guidance: Guidance,
    columns: int,
    noisy: bool,
    barrier: Callable[[], None],
) -> None:
    """One sample's columns, all steps; references in the order of `sample`.

    `barrier` has the warps of a program wait for each other.
    """
    del counter_start  # is `counter`
    depth, count, passes, _, tokens, _ = modulation.shape
    width, dtype = hidden.shape[-1], inner.dtype
    programs = width // columns
    me = pl.program_id(0) % programs
    b = pl.program_id(0) // programs
    mine = pl.ds(me * columns, columns)
    slots = hidden_sums.shape[1]
    everyone, present = pl.ds(0, slots), jnp.arange(slots) < programs
    # What other programs wrote is in the second-level cache, not in the first.
    shared = functools.partial(_load, cache_modifier=".cg")
    dot = functools.partial(plgpu.dot, allow_tf32=False)

    def wait(arrived: Array) -> Array:
        """Returns when all programs of this sample have come as often as this one."""
        if programs == 1:
            # Nobody to wait for, but each warp reads what the others of its program wrote.
            barrier()
            return arrived
        arrived = arrived + programs
        barrier()
        plgpu.atomic_add(counter, (b,), 1)
        jax.lax.while_loop(
            lambda seen: seen < arrived,
            lambda seen: plgpu.atomic_add(counter, (b,), 0),
            jnp.zeros((), jnp.int32),
        )
        barrier()
        return arrived

    def publish(sums: Any, g: int, u: Float[Array, "n c"]) -> None:
        """This program's share of the mean and the variance of rows."""
        mean = jnp.sum(u, axis=1) / columns
        sums[b, me, 0, g] = mean
        sums[b, me, 1, g] = jnp.sum((u - mean[:, None]) ** 2, axis=1)

    def statistics(sums: Any, g: int, epsilon: float) -> tuple[Array, Array]:
        """Mean and 1/deviation of rows: of the shares' means, and around them."""
        mask = present[:, None] & jnp.ones((1, tokens), bool)
        means, squares = (shared(sums, b, everyone, i, g, mask=mask, other=0.0) for i in range(2))
        mean = jnp.sum(means, axis=0) / programs
        between = jnp.where(mask, (means - mean[None]) ** 2, 0.0)
        variance = (jnp.sum(squares, axis=0) + columns * jnp.sum(between, axis=0)) / width
        return mean[:, None], jax.lax.rsqrt(variance + epsilon)[:, None]

    def part(ref: Any, index: tuple[Any, ...], offset: Any, size: int) -> Float[Array, "n k"]:
        """`size` columns of a sample's rows, float32."""
        return _load(ref, *index, slice(None), pl.ds(offset, size)).astype(jnp.float32)

    def over_depth(left: Any, right: Any) -> Float[Array, "n c"]:
        """Σ left(columns)·right(rows), a few columns and rows at a time."""
        chunk = min(_DEPTH, width)

        def body(i: Array, total: Array) -> Array:
            return total + dot(left(i * chunk, chunk), right(pl.ds(i * chunk, chunk)))

        zeros = jnp.zeros((tokens, columns), jnp.float32)
        return jax.lax.fori_loop(0, width // chunk, body, zeros)

    def block(layer: Array, step: Array, arrived: Array) -> Array:
        for g in range(passes):
            mean, factor = statistics(hidden_sums, g, 1e-6)
            rows = (layer, step, g, b)

            def modulated(
                offset: Array,
                size: int,
                g: int = g,
                rows: Any = rows,
                mean: Array = mean,
                factor: Array = factor,
            ) -> Array:
                h = shared(hidden, b, g, slice(None), pl.ds(offset, size))
                scale = part(modulation, rows, offset, size)
                shift = part(modulation, rows, width + offset, size)
                return ((h - mean) * factor * (1 + scale) + shift).astype(dtype)

            u = over_depth(modulated, lambda k: fc1[layer, k, mine]) + fc1_bias[layer, mine][None]
            inner[b, g, :, mine] = (u * jax.nn.sigmoid(u)).astype(dtype)
        arrived = wait(arrived)
        outputs = []
        for g in range(passes):
            read = lambda offset, size, g=g: shared(inner, b, g, slice(None), pl.ds(offset, size))  # noqa: E731
            u = over_depth(read, lambda k: fc2[layer, k, mine]) + fc2_bias[layer, mine][None]
            publish(inner_sums, g, u)
            outputs.append(u)
        arrived = wait(arrived)
        for g, u in enumerate(outputs):
            mean, factor = statistics(inner_sums, g, 1e-5)
            u = (u - mean) * factor * norm_scale[layer, mine][None] + norm_bias[layer, mine][None]
            gate = part(modulation, (layer, step, g, b), 2 * width + me * columns, columns)
            h = hidden[b, g, :, mine] + gate * u
            publish(hidden_sums, g, h)
            hidden[b, g, :, mine] = h
        return wait(arrived)

    def step_body(step: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        x, weights, arrived = carry
        h = dot(x.astype(dtype), embed[:, mine]) + embed_bias[mine][None]
        for g in range(passes):
            publish(hidden_sums, g, h)
            hidden[b, g, :, mine] = h
        arrived = wait(arrived)
        arrived = jax.lax.fori_loop(0, depth, lambda i, seen: block(i, step, seen), arrived)
        for g in range(passes):
            mean, factor = statistics(hidden_sums, g, 1e-6)
            scale = part(final, (step, g, b), me * columns, columns)
            shift = part(final, (step, g, b), width + me * columns, columns)
            v = (hidden[b, g, :, mine] - mean) * factor * (1 + scale) + shift
            shares[b, me, g] = dot(v.astype(dtype), out[mine, :])
        arrived = wait(arrived)
        predictions = [
            jax.lax.fori_loop(
                0,
                programs,
                lambda p, total, g=g: total + shared(shares, b, p, g),
                jnp.zeros_like(x),
            )
            + out_bias[...][None]
            for g in range(passes)
        ]
        keep, move, noise_scale = (coefficients[i, step] for i in range(3))
        guided = predictions[0]
        factor = jnp.ones((), jnp.float32)
        if passes > 1:
            cond, uncond, base = predictions[0], predictions[1], predictions[-1]
            guided = uncond + scalars[0] * (cond - base)
            if guidance.renormalized:
                lanes = jnp.arange(weights.shape[0])
                product = jnp.sum(gram[b] * weights[None], axis=1)
                beyond = jnp.sum(product * weights)
                counts = (valid[...] > 0)[:, None]
                norm2 = lambda a: jnp.sum(jnp.where(counts, a * a, 0.0)) + beyond  # noqa: E731
                factor = jnp.sqrt(norm2(cond) / norm2(guided))
                factor = jnp.minimum(jnp.maximum(factor, guidance.renorm), 1.0)
                guided = guided * factor
                its_vector = lanes == 1 + step + scalars[1].astype(jnp.int32)
                added = jnp.where(its_vector, noise_scale, 0.0)
                weights = weights * (keep + move * factor) + added
            if guidance.image_scale:
                guided = guided + guidance.image_scale * (base - uncond)
        x = keep * x + move * guided
        if noisy:
            x = x + noise_scale * noise[step, b]
        return x, weights, arrived

    vectors = weights_end.shape[1] if guidance.renormalized else 1
    weights = weights_start[b] if guidance.renormalized else jnp.zeros((vectors,), jnp.float32)
    carry = (x_start[b], weights, jnp.zeros((), jnp.int32))
    x, weights, _ = jax.lax.fori_loop(0, count, step_body, carry)

    @pl.when(me == 0)
    def _end() -> None:
        x_end[b] = x
        weights_end[b] = weights
