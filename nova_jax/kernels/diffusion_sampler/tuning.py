"""Which implementation of the sampling loop is faster here: both are run, once for each shape.

`sampler="auto"` asks on GPUs and TPUs, while a program that samples is traced. The kernel has to
meet the numbers of the reference and to be faster, else it is the reference that is compiled. What
was found is kept on disk for each kind of device, shape and version, and not measured again. On a
device that others keep busy a trial that takes too long counts as lost, and is not kept.
"""

import dataclasses
import hashlib
import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import nova_jax
from nova_jax.errors import NovaError
from nova_jax.files import cache_folder, read_json, write_whole
from nova_jax.kernels import device
from nova_jax.kernels.diffusion_sampler import reference
from nova_jax.kernels.diffusion_sampler.reference import State, Work

logger = logging.getLogger(__name__)

Choice = Literal["xla", "pallas"]
Kernel = Callable[[Work], State]
# Of each array of a `Work` a `jax.ShapeDtypeStruct`.
WorkShapes = Any

#: "off" has `sampler="auto"` be XLA's program without any trial.
VARIABLE = "NOVA_JAX_TUNE"
#: Seconds that a trial may take on the device, compilation apart.
TIME_LIMIT = 20.0
#: Timed runs of each, after one that is not.
ROUNDS = 5
#: Largest difference to the reference, of its largest value, that rounding explains: products of
#: float32 are of TensorFloat-32 on GPUs, 10 bits as float16 has, and bfloat16 has 7.
TOLERANCES = {"float32": 1e-2, "float16": 1e-2, "bfloat16": 6e-2}

# What this process knows, by `key_of`.
_known: dict[str, Choice] = {}


@dataclasses.dataclass(frozen=True)
class Trial:
    """What running both found.

    Attributes:
        error: largest difference of the kernel to the reference, of the reference's largest value.
        xla, pallas: seconds of each, the median.
    """

    error: float
    xla: float
    pallas: float


def is_on() -> bool:
    """Whether implementations are tried here.

    Not where programs are compiled for other machines, and not among several processes, which must
    compile the same program and may measure differently.

    Raises:
        NovaError: the environment variable is neither "on" nor "off".
    """
    setting = os.environ.get(VARIABLE, "on").lower()
    if setting not in ("on", "off"):
        raise NovaError(f"{VARIABLE} is {setting!r}; set it to on or off")
    return setting == "on" and device.target.value is None and jax.process_count() == 1


def faster(kernel: Kernel, exact: WorkShapes, padded: WorkShapes) -> Choice:
    """The faster implementation, from memory, from disk, or by a trial.

    Args:
        kernel: what "pallas" means here.
        exact: the work's shapes.
        padded: those with tokens padded as the kernel asks for it.
    """
    key = key_of(padded, exact.valid.shape[0])
    if key not in _known:
        _known[key] = _from_disk(key) or _by_trial(key, kernel, exact, padded)
    return _known[key]


def key_of(padded: WorkShapes, tokens: int) -> str:
    """The name of a shape on a kind of device, under the versions that compile for it."""
    one = jax.local_devices()[0]
    shapes = [str(leaf) for leaf in jax.tree.leaves(padded)]
    versions = (nova_jax.__version__, jax.__version__, one.client.platform_version)
    told = repr((one.device_kind, versions, shapes, tokens, padded.guidance, padded.head.unroll))
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _file(key: str) -> Any:
    return cache_folder() / "samplers" / f"{key}.json"


def _from_disk(key: str) -> Choice | None:
    try:
        found = read_json(_file(key), "it is measured again")["sampler"]
    except (NovaError, OSError, KeyError):
        return None
    return found if found in ("xla", "pallas") else None


def _by_trial(key: str, kernel: Kernel, exact: WorkShapes, padded: WorkShapes) -> Choice:
    try:
        trial = _tried(kernel, exact, padded)
    except NovaError as error:  # what the kernel cannot do
        logger.info("sampler: XLA's program, as %s", error)
        return "xla"
    except Exception as error:
        logger.warning("sampler: XLA's program, as the kernel failed: %s", error)
        return "xla"
    if trial is None:
        logger.warning(
            "sampler: XLA's program, as a trial of both took more than %g s; is the device busy? "
            "%s=off leaves trials out",
            *(TIME_LIMIT, VARIABLE),
        )
        return "xla"
    dtype = str(padded.modulations.final.dtype)
    agree = trial.error <= TOLERANCES[dtype]
    choice: Choice = "pallas" if agree and trial.pallas < trial.xla else "xla"
    if not agree:
        logger.warning(
            "sampler: XLA's program, as the kernel's numbers differ from the reference by %.1e of "
            "the largest (%s: at most %.0e); please report it with this device, %s",
            *(trial.error, dtype, TOLERANCES[dtype], jax.local_devices()[0].device_kind),
        )
    told = {"sampler": choice, **dataclasses.asdict(trial)}
    try:
        _file(key).parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(key), json.dumps(told))
    except OSError as error:
        logger.info("sampler: what was measured is not kept: %s", error)
    logger.info("sampler: %s (XLA %.2g s, Pallas %.2g s)", choice, trial.xla, trial.pallas)
    return choice


def _tried(kernel: Kernel, exact: WorkShapes, padded: WorkShapes) -> Trial | None:
    """Runs both; None if the device does not get done in time."""
    result: list[Trial | Exception] = []
    compiled, stopped = threading.Event(), threading.Event()

    def run() -> None:
        try:
            result.append(_measured(kernel, exact, padded, compiled, stopped))
        except Exception as error:
            result.append(error)
        compiled.set()

    # A program is being traced in this thread. Of another one nothing becomes a part of it, and it
    # can be left alone if the device does not answer.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    compiled.wait()
    thread.join(TIME_LIMIT)
    stopped.set()
    if not result:
        return None
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _measured(
    kernel: Kernel,
    exact: WorkShapes,
    padded: WorkShapes,
    compiled: threading.Event,
    stopped: threading.Event,
) -> Trial:
    """Numbers and seconds of both, in turn."""
    tokens = exact.valid.shape[0]
    full = _example(padded, tokens)
    less = jax.tree.map(lambda x, like: x[tuple(map(slice, like.shape))], full, exact)
    programs = {
        name: (jax.jit(function).lower(work).compile(), work)
        for name, function, work in (
            ("wanted", reference.sample, full),
            ("xla", reference.sample, less),
            ("pallas", kernel, full),
        )
    }
    compiled.set()
    made: dict[str, jax.Array] = {}
    spent: dict[str, list[float]] = {}
    for _ in range(1 + ROUNDS):
        for name, (program, work) in programs.items():
            if stopped.is_set():
                raise TimeoutError
            began = time.perf_counter()
            made[name] = jax.block_until_ready(program(work))[0]
            spent.setdefault(name, []).append(time.perf_counter() - began)
    wanted, got = (np.asarray(made[name])[:, :tokens] for name in ("wanted", "pallas"))
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    seconds = (statistics.median(spent[name][1:]) for name in ("xla", "pallas"))
    return Trial(float(np.nan_to_num(error, nan=1e30, posinf=1e30)), *seconds)


def _example(shapes: WorkShapes, tokens: int) -> Work:
    """Work of these shapes, with values of the sizes that a trained model has."""
    rng = np.random.default_rng(0)

    def normal(like: Any, scale: float = 1.0) -> jax.Array:
        values = rng.standard_normal(like.shape, np.float32)
        return jnp.asarray(scale * values, like.dtype)

    head = jax.tree.map(
        lambda like: normal(like, like.shape[-2] ** -0.5 if like.ndim > 1 else 0.1), shapes.head
    )
    norms = jnp.ones_like(head.norm_scale), 0.1 * jnp.ones_like(head.norm_bias)
    head = dataclasses.replace(head, norm_scale=norms[0], norm_bias=norms[1])
    x, outside = shapes.state
    if outside is not None:
        gram = jnp.broadcast_to(100.0 * jnp.eye(outside.gram.shape[-1]), outside.gram.shape)
        outside = dataclasses.replace(outside, weights=normal(outside.weights), gram=gram)
    count = len(shapes.steps.time)
    columns = dict(time=500.0, keep=1.0, move=1.0 / count, noise_scale=0.1)
    steps = dataclasses.replace(
        shapes.steps, **{name: jnp.full(count, value) for name, value in columns.items()}
    )
    return dataclasses.replace(
        shapes,
        head=head,
        modulations=jax.tree.map(lambda like: normal(like, 0.3), shapes.modulations),
        state=(normal(x), outside),
        steps=steps,
        scale=jnp.asarray(3.0),
        valid=(jnp.arange(len(shapes.valid)) < tokens).astype(jnp.float32),
        first=jnp.asarray(0),
        noise=None if shapes.noise is None else normal(shapes.noise),
    )
