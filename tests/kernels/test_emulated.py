"""The sampler's kernel for GPUs as it is compiled for them, executed without one.

All programs of the grid run, warp by warp, in an order that a seed chooses, under a memory model
that lets others see a store only after a release. Interpretation of the kernel, which
test_diffusion_sampler.py has, knows neither several programs nor warps.
"""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from emulated import Case, execute, launch_of, ptx_of

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("jax_plugins") is None
        or importlib.util.find_spec("jax_plugins.xla_cuda13") is None,
        reason="needs the CUDA plugin of JAX (jax-cuda13-plugin, Python 3.12 or newer); no GPU",
    ),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, for the emulator"),
]

# Programs a sample: many, which wait for each other at a counter; and one, whose warps wait at a
# barrier.
CASES = {
    "many programs, everything": Case(
        dtype="bfloat16", guidance=(3, 0.9, 0.3), noise=True, steps=2, device="h100"
    ),
    "one program a sample": Case(processors=2, guidance=(2, 0.9, None), steps=2),
}
# Of the largest value.
TOLERANCE = {"float32": 2e-6, "bfloat16": 3e-2}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> Path:
    program = tmp_path_factory.mktemp("emulator") / "emulator"
    source = Path(__file__).parent / "ptx" / "emulator.cpp"
    subprocess.run(["g++", "-O2", "-std=c++20", "-o", str(program), str(source)], check=True)
    return program


@pytest.fixture(scope="module", params=CASES)
def compiled(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernel")
    case = CASES[request.param]
    patch = pytest.MonkeyPatch()
    wanted, launch = launch_of(case, folder, patch)
    return case, ptx_of(case, folder), wanted, launch


def error(case: Case, made: np.ndarray, wanted: np.ndarray) -> float:
    rows = case.valid > 0
    return float(np.abs(made - wanted)[:, rows].max() / np.abs(wanted[:, rows]).max())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_compiled_kernel_gives_what_the_reference_gives(emulator, compiled, seed):
    case, ptx, wanted, launch = compiled
    made, said = execute(emulator, ptx, launch, case, seed)
    assert made is not None, said
    assert error(case, made, wanted) <= TOLERANCE[case.dtype]


def test_a_kernel_that_does_not_wait_is_found(emulator, compiled):
    """Neither programs nor warps may go on before what they read is written."""
    case, ptx, wanted, launch = compiled
    if case.processors is None:
        assert "gpu.acq_rel" in ptx
        broken = ptx.replace("gpu.acq_rel", "gpu.relaxed")
    else:
        assert "bar.sync" in ptx or "barrier" in ptx
        broken = ptx.replace("bar.sync \t0;", ";").replace("bar.sync 0;", ";")
        assert broken != ptx
    made, said = execute(emulator, broken, launch, case, 0)
    assert made is None or error(case, made, wanted) > TOLERANCE[case.dtype]


def test_a_copy_that_is_not_waited_for_is_found(emulator, compiled):
    case, ptx, wanted, launch = compiled
    waits = [line for line in ptx.splitlines() if "cp.async.wait_group" in line]
    if not waits:
        pytest.skip("this kernel copies nothing asynchronously")
    broken = "\n".join(line for line in ptx.splitlines() if "cp.async.wait_group" not in line)
    made, said = execute(emulator, broken, launch, case, 0)
    assert made is None and "nobody w" in said, said
