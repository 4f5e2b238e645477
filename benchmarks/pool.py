"""Times sessions that advance together against the same sessions each alone.

    python benchmarks/pool.py --sessions=8 --frames=16 --rounds=5

The shipped model, one video a session, latent frames alone; compilation is left out. Each round
times, in an order that turns with the rounds: the sessions in a pool; one after another, each with
all its frames; and round robin, a frame of each in turn. FLOPs are those of the matrix products
that the result needs, see `nova_jax.models.flops`; the machine's peak is measured on a large one.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import app, flags
from peak import measured_peak

from nova_jax.models import flops
from nova_jax.pipeline import NovaPipeline
from nova_jax.pool import SessionPool
from nova_jax.sampling.state import apart, join
from nova_jax.session import Session

SESSIONS = flags.DEFINE_integer("sessions", 8, "Sessions, and rows of the pool.")
FRAMES = flags.DEFINE_integer("frames", 16, "Latent frames of each session in a round.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds of each way.")


def in_a_pool(pipeline: NovaPipeline, sessions: list[Session], frames: int) -> None:
    """All sessions at once."""
    pool = SessionPool(pipeline, rows=len(sessions))
    for session in sessions:
        pool.join(session)
    for _ in range(frames):
        jax.block_until_ready(pool.step())


def one_after_another(pipeline: NovaPipeline, sessions: list[Session], frames: int) -> None:
    """Each session with all its frames."""
    for session in sessions:
        for latents in session.latents(frames):
            jax.block_until_ready(latents)


def round_robin(pipeline: NovaPipeline, sessions: list[Session], frames: int) -> None:
    """A frame of each session in turn."""
    for turn in zip(*(session.latents(frames) for session in sessions), strict=True):
        jax.block_until_ready(turn)


WAYS = {"in a pool": in_a_pool, "one after another": one_after_another, "round robin": round_robin}


def milliseconds(function: Callable[[], object], calls: int = 20) -> float:
    """Median of a call."""
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def flops_of_a_frame(pipeline: NovaPipeline) -> float:
    """Of one sample."""
    config, sampling = pipeline.config, pipeline.sampling
    work = flops.of_generation(
        config,
        batch=1,
        passes=sampling.guidance.passes,
        slots=sampling.slots(pipeline.frames),
        sets=sampling.sets(config.num_tokens, 1),
        diffusion_steps=sampling.num_diffusion_steps,
        condition_tokens=config.condition_tokens,
    )
    return sum(work.values())


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    pipeline, count, frames = NovaPipeline.from_checkpoint(), SESSIONS.value, FRAMES.value

    def started() -> list[Session]:
        return [pipeline.start("a red seven moves to the left", seed=i) for i in range(count)]

    for way in WAYS.values():
        way(pipeline, started(), 2)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    names = list(WAYS)
    for turn in range(ROUNDS.value):
        for name in names[turn % 3 :] + names[: turn % 3]:
            sessions = started()
            began = time.perf_counter()
            WAYS[name](pipeline, sessions, frames)
            seconds[name].append(time.perf_counter() - began)
    work, peak = flops_of_a_frame(pipeline), measured_peak(jnp.dtype("float32"))
    print(f"device {jax.devices()[0].device_kind}, JAX {jax.__version__}")
    print(f"a frame {work / 1e9:.2f} GFLOP; measured peak {peak / 1e9:.0f} GFLOP/s")
    print(f"{'way':18} {'frames/s':>9} {'least':>7} {'most':>7} {'GFLOP/s':>8} {'pool is':>8}")
    for name, spent in seconds.items():
        rates = [count * frames / one for one in spent]
        rate = statistics.median(rates)
        # Of neighbors, since a machine's speed varies.
        times = [one / pool for one, pool in zip(spent, seconds["in a pool"], strict=True)]
        print(
            f"{name:18} {rate:9.1f} {min(rates):7.1f} {max(rates):7.1f} {rate * work / 1e9:8.0f} "
            f"{statistics.median(times):7.2f}x"
        )
    states = [session.state for session in sessions]
    joined = join(states)
    print(f"join {milliseconds(lambda: join(states)):.2f} ms a step", end=", ")
    print(f"apart {milliseconds(lambda: apart(joined)):.2f} ms")


if __name__ == "__main__":
    app.run(main)
