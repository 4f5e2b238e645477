"""`sampler="auto"` where there is a kernel: both are run, and the faster one that is right is kept.

The kernel stands in for the device's own: interpreted it is slow, and plain JAX is as fast as XLA,
being the same. What is measured is real; who wins is made certain by waiting.
"""

import dataclasses
import functools
import json
import logging
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import CONFIG, conditions, make

from nova_jax.distributed.mesh import MeshConfig, SampleParallelism, make_mesh
from nova_jax.errors import NovaError
from nova_jax.kernels.device import Target, target
from nova_jax.kernels.diffusion_sampler import api, gpu, reference, tuning
from nova_jax.kernels.diffusion_sampler.reference import Guidance, Outside
from nova_jax.sampling.guidance import GuidanceConfig
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import DDPMSchedule, FlowMatchingSchedule
from nova_jax.sampling.video import generate


@pytest.fixture(scope="module")
def head():
    return make(CONFIG).diffusion_head


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """An empty memory, and a folder of its own."""
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nova_jax" / "samplers"


@pytest.fixture
def kernel(monkeypatch):
    """What this machine has for a kernel; the reference, told apart by a count of its traces."""

    def put(change=lambda state: state, slow=False):
        traced, real = [], reference.sample

        def sample(work):
            traced.append(work)
            x, outside = real(after_waiting(work) if slow else work)
            return change(x), outside

        module = SimpleNamespace(sample=sample, padded_tokens=lambda tokens: tokens + 2)
        monkeypatch.setitem(api._KERNELS, "cpu", lambda: module)
        return traced

    return put


def after_waiting(work):
    """The same work, which takes 50 ms more."""

    def wait(x):
        time.sleep(0.05)
        return x

    x, outside = work.state
    return dataclasses.replace(work, state=(jax.pure_callback(wait, x, x), outside))


def slow_reference(monkeypatch):
    real = reference.sample
    monkeypatch.setattr(tuning.reference, "sample", lambda work: real(after_waiting(work)))


def draw(head, tokens=5, implementation="auto"):
    steps, guidance = DDPMSchedule().sampling_steps(4), Guidance(2, renorm=0.3)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, tokens, CONFIG.token_dim))
    noise = jax.random.normal(keys[1], (4, *x.shape))
    features = jax.random.normal(keys[2], (4, tokens, head.width))
    outside = Outside(jnp.eye(1, 5).repeat(2, 0), 30 * jnp.eye(5)[None].repeat(2, 0))
    options = dict(scale=2.0, count=tokens - 1, noise=noise, implementation=implementation)

    def run(head):
        work = (head.weights(), head.modulations, features, (x, outside), steps, guidance)
        return api.sample(*work, **options)[0]

    return nnx.jit(run)(head)[:, : tokens - 1]


def kept(folder):
    return [json.loads(path.read_text()) for path in folder.glob("*.json")]


def test_the_faster_one_is_kept_on_disk_and_compiled(head, here, kernel, monkeypatch):
    wanted = draw(head, implementation="xla")
    traced = kernel()
    with monkeypatch.context() as patch:
        slow_reference(patch)
        np.testing.assert_allclose(draw(head), wanted, rtol=1e-5, atol=1e-5)
    (found,) = kept(here)
    assert found["sampler"] == "pallas" and found["xla"] > 0.05 > found["pallas"]
    assert found["error"] < 1e-5
    assert len(traced) == 2  # by the trial, and by what asked
    assert len(traced[1].valid) == 7 and traced[1].valid.shape == traced[0].valid.shape
    # Another process looks at the disk, and tries nothing.
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(tuning, "_tried", pytest.fail)
    np.testing.assert_allclose(draw(head), wanted, rtol=1e-5, atol=1e-5)
    assert len(traced) == 3


def test_the_slower_one_is_left_away(head, here, kernel):
    traced = kernel(slow=True)
    draw(head)
    (found,) = kept(here)
    assert found["sampler"] == "xla" and found["pallas"] > 0.05 and len(traced) == 1
    # Another shape is tried for itself.
    draw(head, tokens=6)
    assert len(kept(here)) == 2 and len(traced) == 2


@pytest.mark.parametrize(
    "change", [lambda x: x * 1.1, lambda x: x.at[0, 0, 0].set(jnp.nan)], ids=["wrong", "nan"]
)
def test_a_kernel_that_is_wrong_is_not_used_however_fast(
    head, here, kernel, change, monkeypatch, caplog
):
    wanted = draw(head, implementation="xla")
    kernel(change)
    with monkeypatch.context() as patch:
        slow_reference(patch)
        got = draw(head)
    assert bool(jnp.isfinite(got).all())
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert "numbers differ from the reference" in caplog.text
    assert kept(here)[0]["sampler"] == "xla"


def test_a_device_that_is_busy_is_not_waited_for(head, here, kernel, monkeypatch, caplog):
    kernel(slow=True)
    monkeypatch.setattr(tuning, "TIME_LIMIT", 0.01)
    draw(head)
    assert "took more than 0.01 s; is the device busy? NOVA_JAX_TUNE=off" in caplog.text
    assert not kept(here)
    time.sleep(0.2)  # what is under way comes to its end


def test_what_the_kernel_cannot_do_is_left_to_xla(head, here, monkeypatch, caplog):
    """The real kernel for GPUs, which says that this machine is none."""
    monkeypatch.setitem(api._KERNELS, "cpu", lambda: gpu)
    with caplog.at_level(logging.INFO):
        draw(head)
    assert "sampler: XLA's program, as" in caplog.text and not kept(here)


def test_trials_can_be_switched_off(head, here, kernel, monkeypatch):
    traced = kernel()
    monkeypatch.setenv("NOVA_JAX_TUNE", "off")
    draw(head)
    draw(head, implementation="xla")
    assert not traced and not kept(here)
    monkeypatch.setenv("NOVA_JAX_TUNE", "yes")
    with pytest.raises(NovaError, match="NOVA_JAX_TUNE is 'yes'; set it to on or off"):
        draw(head)


def test_what_is_compiled_for_other_machines_is_not_tried(kernel, here):
    traced = kernel()
    with target(Target("tpu")):
        assert not tuning.is_on()
    assert tuning.is_on() and not traced


def test_a_damaged_note_is_measured_again(head, here, kernel):
    kernel(slow=True)
    draw(head)
    (note,) = here.glob("*.json")
    note.write_text('{"sampler": "fastest"}')
    tuning._known.clear()
    draw(head)
    assert kept(here)[0]["sampler"] == "xla"


@pytest.mark.parametrize("whole", [True, False])
def test_a_whole_generation_asks_once_for_each_set_size(here, kernel, whole):
    """Also on several devices with a model each; where one is split, there is XLA alone."""
    traced, model = kernel(slow=True), make(CONFIG)
    # Another schedule, another program: none is there from the other case.
    sampling = SamplingConfig(2, 2 + whole, GuidanceConfig(scale=3.0))
    draw = functools.partial(
        generate,
        *(model, FlowMatchingSchedule(), conditions(2)),
        frames=1,
        keys=jax.random.split(jax.random.key(9), 2),
    )
    wanted = draw(config=sampling)
    assert len(kept(here)) == len(traced) > 0
    mesh = make_mesh(jax.devices()[:2], MeshConfig() if whole else MeshConfig(tensor=2))
    before = len(traced)
    got = draw(config=sampling, parallelism=SampleParallelism(mesh, whole=whole))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert (len(traced) > before) == whole  # one sample a device is another shape
