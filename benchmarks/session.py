"""Times the frames of a session that goes on, and what it costs to watch them fill.

    python benchmarks/session.py --frames=550

One video of the shipped model. Prints the median time of a frame and the memory of the process
around frame 50 and around the last ones; then 32 frames with and without `on_step`, in turn.
"""

import itertools
import resource
import statistics
import time

import jax
from absl import app, flags

from nova_jax.pipeline import NovaPipeline

FRAMES = flags.DEFINE_integer("frames", 550, "Latent frames.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Of watched and unwatched calls.")
PROMPT = "a red seven moves slowly to the left"
AROUND = 40  # frames whose times a median is of


def main(_: list[str]) -> None:
    """Runs the benchmark."""
    pipeline = NovaPipeline.from_checkpoint()
    print(f"device {jax.devices()[0].device_kind}, JAX {jax.__version__}")
    session = pipeline.start(PROMPT)
    seconds, memory = [], []
    for _frame in session.stream(FRAMES.value):
        seconds.append(time.perf_counter())
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    took = [after - before for before, after in itertools.pairwise(seconds)]
    for middle in (50, FRAMES.value - AROUND // 2 - 1):
        some = took[middle - AROUND // 2 : middle + AROUND // 2]
        print(
            f"frame {middle:4}  {1e3 * statistics.median(some):6.1f} ms, median of {len(some)}; "
            f"peak memory so far {memory[middle]:.0f} MB"
        )
    calls = {"unwatched": {}, "watched": {"on_step": lambda _: None}}
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in range(ROUNDS.value + 1):
        for name, options in calls.items():
            began = time.perf_counter()
            pipeline(PROMPT, num_frames=32, disable_progress_bar=True, **options)
            if call:  # the first one compiles
                spent[name].append(time.perf_counter() - began)
    for name, times in spent.items():
        print(f"{name:10}  {1e3 * statistics.median(times) / 32:6.1f} ms a frame, of 32 frames")


if __name__ == "__main__":
    app.run(main)
