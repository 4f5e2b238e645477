"""Every implementation of the sampling loop against the definition, step by step, in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from jax.experimental.pallas import tpu as pltpu
from small import make

from nova_jax.errors import NovaError
from nova_jax.kernels.diffusion_sampler import api, gpu, reference, tpu
from nova_jax.kernels.diffusion_sampler.reference import Guidance, Outside, Work
from nova_jax.sampling.schedules import DDPMSchedule, FlowMatchingSchedule

#: Of memory that nobody has written it reads NaN; copies are under way until they are waited for.
TPU_INTERPRETER = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
VMEM = 2**27  # v5e, v6e
REAL_SAMPLE = tpu.sample
CONFIG = dataclasses.replace(small.CONFIG, diffusion_head="mlp_d2w128")


def tiled(**changes):
    """The TPU kernel with another tiling than this much VMEM asks for."""

    def run(work):
        real = tpu.choose_tiling
        try:
            tpu.choose_tiling = lambda **sizes: dataclasses.replace(real(**sizes), **changes)
            return REAL_SAMPLE(work, vmem=VMEM, interpret=TPU_INTERPRETER)
        finally:
            tpu.choose_tiling = real

    return run


def in_groups(work):
    """As where VMEM does not hold all tokens."""
    batch, tokens, _ = work.state[0].shape
    return tiled(groups=batch * tokens // 16, tile=16)(work)


IMPLEMENTATIONS = {
    "xla": reference.sample,
    "tpu, weights resident": tiled(),
    "tpu, weights streamed": tiled(resident=False, buffers=2),
    "tpu, in groups": in_groups,
    "gpu": functools.partial(gpu.sample, interpret=True),
}
# Guidance, DDPM, samples, tokens, tokens with padding.
CASES = {
    "one token": (Guidance(1), False, 1, 1, 16),
    "guided, odd": (Guidance(2), False, 2, 23, 32),
    "ddpm": (Guidance(2), True, 1, 16, 16),
    "renormalized": (Guidance(2, renorm=0.3), False, 3, 5, 16),
    "everything": (Guidance(3, renorm=0.3, image_scale=1.5), True, 2, 9, 16),
    "several tiles": (Guidance(2), False, 3, 48, 48),
}
# Where weights live and how rows are taken changes nothing else, and renormalized tokens are not
# taken in groups.
PAIRS = [
    (name, case)
    for name in IMPLEMENTATIONS
    for case in CASES
    if name not in ("tpu, weights streamed", "tpu, in groups") or case in ("ddpm", "several tiles")
]


@pytest.fixture(scope="module")
def head():
    return make(CONFIG).diffusion_head


def by_definition(head, features, x, outside_x, steps, guidance, scale, count, noise):
    """Step by step, on whole frames: the tokens outside the set are carried along."""
    passes = guidance.passes
    for s in range(len(steps.time)):
        condition = features + head.embed_step(jnp.asarray(steps.time[s : s + 1]))[None]
        predictions = [
            head(x, condition[p * len(x) : (p + 1) * len(x)])[:, :count] for p in range(passes)
        ]
        guided = predictions[0]
        outside = outside_x
        if passes > 1:
            cond, uncond, base = predictions[0], predictions[1], predictions[-1]
            guided = uncond + scale * (cond - base)
            if guidance.renormalized:
                norm = lambda a, outside_x=outside_x: jnp.linalg.norm(  # noqa: E731
                    jnp.concatenate([a, outside_x], axis=1), axis=(1, 2), keepdims=True
                )
                factor = jnp.clip(norm(cond) / norm(guided), guidance.renorm, 1.0)
                guided, outside = guided * factor, outside * factor
            if guidance.image_scale:
                guided = guided + guidance.image_scale * (base - uncond)
        keep, move, noise_scale = steps.keep[s], steps.move[s], steps.noise_scale[s]
        new = keep * x[:, :count] + move * guided
        outside_x = keep * outside_x + move * outside
        if noise is not None:
            new = new + noise_scale * noise[s][:, :count]
            outside_x = outside_x + noise_scale * noise[s][:, x.shape[1] :]
        x = x.at[:, :count].set(new)
    return x[:, :count], outside_x


@pytest.mark.parametrize(("implementation", "case"), PAIRS)
def test_meets_the_definition(head, implementation, case, capsys):
    guidance, ddpm, batch, count, padded = CASES[case]
    schedule = DDPMSchedule() if ddpm else FlowMatchingSchedule()
    steps = schedule.sampling_steps(4)
    keys = jax.random.split(jax.random.key(batch * count), 4)
    rest, values = 7, CONFIG.token_dim
    x = jax.random.normal(keys[0], (batch, padded, values))
    outside_x = jax.random.normal(keys[1], (batch, rest, values))
    features = jax.random.normal(keys[2], (guidance.passes * batch, padded, head.width))
    noise = None
    if ddpm:
        noise = jax.random.normal(keys[3], (4, batch, padded + rest, values))
    wanted, wanted_outside = by_definition(
        head, features, x, outside_x, steps, guidance, 2.5, count, noise
    )
    # Whatever the padding holds must not reach a token.
    poison = (jnp.arange(padded) >= count)[None, :, None]
    x, features = (jnp.where(poison, jnp.nan, array) for array in (x, features))
    outside = None
    if guidance.renormalized:
        vectors = [outside_x] if noise is None else [outside_x, *noise[:, :, padded:]]
        vectors = jnp.stack(vectors)
        gram = jnp.einsum("vbnp,wbnp->bvw", vectors, vectors)
        outside = Outside(jnp.zeros(gram.shape[:2]).at[:, 0].set(1.0), gram)

    @nnx.jit
    def run(head):
        work = Work(
            head.weights(),
            head.modulations(features, jnp.asarray(steps.time)),
            (x, outside),
            steps,
            guidance,
            scale=2.5,
            valid=(jnp.arange(padded) < count).astype(jnp.float32),
            noise=None if noise is None else noise[:, :, :padded],
        )
        return IMPLEMENTATIONS[implementation](work)

    got, got_outside = run(head)
    got.block_until_ready()
    assert "RACE" not in capsys.readouterr().out  # what the TPU's interpreter says of one
    assert jnp.abs(got[:, :count] - wanted).max() < 1e-5 * jnp.abs(wanted).max()
    if guidance.renormalized:
        norm2 = jnp.sum(wanted_outside**2, axis=(1, 2))
        np.testing.assert_allclose(got_outside.norm2, norm2, rtol=1e-5)


ON_TPU = {"rows": 64, "passes": 2, "width": 1536, "depth": 6, "values": 16, "noise": False}
ON_TPU |= {"dtype": "bfloat16", "vmem": VMEM}
ON_GPU = {"tokens": 32, "batch": 1, "width": 1280, "dtype": "bfloat16", "processors": 132}
ON_GPU |= {"shared": gpu.shared_memory(9.0)}
TPU, GPU = (tpu.choose_tiling, ON_TPU), (gpu.choose_columns, ON_GPU)


def test_weights_live_where_there_is_room():
    assert tpu.choose_tiling(**ON_TPU).resident
    assert not tpu.choose_tiling(**ON_TPU | {"vmem": 2**26}).resident


def test_a_gpu_has_all_programs_at_once():
    assert gpu.choose_columns(**ON_GPU | {"processors": 108}) == 16
    assert gpu.choose_columns(**ON_GPU | {"batch": 20}) == 256


@pytest.mark.parametrize(
    ("kernel", "changes", "message"),
    [
        (TPU, {"vmem": 2**23}, "MiB of VMEM for 64 tokens of width 1536, and there are 8"),
        (TPU, {"dtype": "float16"}, "TPUs computes in bfloat16 or float32, not float16"),
        (TPU, {"width": 192}, "multiple of 128 and tokens of at most 128 values, not 192"),
        (TPU, {"values": 256}, "of at most 128 values, not 1536 and 256"),
        (GPU, {"batch": 40}, "cannot put 40 samples of width 1280 on 132 multiprocessors"),
        (
            GPU,
            {"batch": 20, "tokens": 64, "dtype": "float32", "shared": gpu.shared_memory(8.9)},
            "needs 128 KiB of shared memory for 20 samples of 64 tokens in float32, and .* 99;",
        ),
        (GPU, {"tokens": 96}, "at most 64 tokens of a sample, not 96; use more AR steps"),
        (GPU, {"dtype": "float64"}, "computes in bfloat16, float16, float32, not float64"),
        (GPU, {"width": 96}, "width is a multiple of 64, not 96"),
    ],
)
def test_what_a_kernel_cannot_do_is_named_with_what_can(kernel, changes, message):
    choose, known = kernel
    with pytest.raises(NovaError, match=message) as error:
        choose(**known | changes)
    assert 'sampler "xla"' in str(error.value)


def test_a_sampler_that_is_not_known_or_does_not_run_here_is_named():
    with pytest.raises(NovaError, match=r"sampler 'fast' is not known; choose auto, xla, pallas"):
        api.checked("fast")
    with pytest.raises(NovaError, match='sampler "pallas" runs on GPUs and TPUs, this is cpu'):
        api.checked("pallas")
    with pytest.raises(
        NovaError, match=r"capability 8.0 or more \(A100 and later\), this one has 0"
    ):
        api.checked("pallas", backend="gpu")
    assert api.checked("pallas", backend="tpu") == "pallas"
    assert api.checked("auto") == "auto"


class Interpreted:
    """A kernel's module, for a machine that it does not run on."""

    def __init__(self, kernel, **options):
        self.padded_tokens = kernel.padded_tokens
        self.sample = functools.partial(kernel.sample, interpret=True, **options)


@pytest.mark.parametrize(
    "kernel", [Interpreted(tpu, vmem=VMEM), Interpreted(gpu)], ids=["tpu", "gpu"]
)
@pytest.mark.parametrize("limit", [1, 2**28], ids=["one step at a time", "all at once"])
def test_steps_are_split_where_their_modulations_are_large(head, kernel, limit, monkeypatch):
    """The same numbers, and from the kernels too, whose tokens are padded on the way."""
    steps, guidance = DDPMSchedule().sampling_steps(4), Guidance(2, renorm=0.3)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 5, CONFIG.token_dim))
    noise = jax.random.normal(keys[1], (4, *x.shape))
    features = jax.random.normal(keys[2], (4, 5, head.width))
    outside = Outside(jnp.eye(1, 5).repeat(2, 0), 30 * jnp.eye(5)[None].repeat(2, 0))
    options = {"scale": 2.0, "count": 4, "noise": noise}

    def run(head, implementation="xla"):
        work = (head.weights(), head.modulations, features, (x, outside), steps, guidance)
        return api.sample(*work, **options, implementation=implementation)

    whole, rest = nnx.jit(run)(head)
    monkeypatch.setattr(api, "MODULATION_BYTES", limit)
    monkeypatch.setitem(api._KERNELS, "cpu", lambda: kernel)
    split, split_rest = nnx.jit(functools.partial(run, implementation="pallas"))(head)
    assert split.shape == whole.shape
    np.testing.assert_allclose(split[:, :4], whole[:, :4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(split_rest.weights, rest.weights, rtol=1e-5)


def test_many_tokens_are_taken_in_parts(head):
    steps, guidance = FlowMatchingSchedule().sampling_steps(2), Guidance(2)
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (1, 128, CONFIG.token_dim))
    features = jax.random.normal(keys[1], (2, 128, head.width))

    def run(head, sample):
        modulations = head.modulations(features, jnp.asarray(steps.time))
        work = Work(head.weights(), modulations, (x, None), steps, guidance, 2.0, jnp.ones(128))
        return sample(work)[0]

    wanted = nnx.jit(lambda head: run(head, reference.sample))(head)
    got = nnx.jit(lambda head: run(head, functools.partial(gpu.sample, interpret=True)))(head)
    assert jnp.abs(got - wanted).max() < 1e-5 * jnp.abs(wanted).max()
