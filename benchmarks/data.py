"""How fast the moving digits become batches, and where the time goes.

    python benchmarks/data.py [--batch=32] [--workers=0]

One core renders, measures and encodes; times of the parts are the best of several rounds. A clip's
motion score is measured once: the first pass over the data pays for it, later ones do not.
"""

import argparse
import contextlib
import time
from collections.abc import Callable

from nova_jax.autoencoders.pixels import PixelCodec, to_float
from nova_jax.data.motion import motion_score
from nova_jax.data.pipeline import DataConfig, make_iterator
from nova_jax.data.transforms import Encode
from nova_jax.digits.clips import DigitsConfig, DigitsSource
from nova_jax.text.hashed_words import HashedTextEncoder

TEXT_LENGTH = 16


def best(work: Callable[[], object], rounds: int = 20) -> float:
    """Seconds of the fastest round, after one to warm up."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="of steady streaming to time")
    args = parser.parse_args()

    source = DigitsSource(DigitsConfig())
    encode = Encode(codec=PixelCodec(), text_encoder=HashedTextEncoder(), text_length=TEXT_LENGTH)
    clips = source.batch(range(args.batch))
    parts = {
        "rendering and captions": best(lambda: source.batch(range(args.batch))),
        "optical flow": best(lambda: motion_score(clips["frames"])),
        "text encoding": best(lambda: encode.text_encoder.encode(clips["caption"], TEXT_LENGTH)),
        "pixels to latents": best(lambda: encode.codec.encode(to_float(clips["frames"]))),
    }

    def stream(source: DigitsSource, prefetch: int, workers: int, warm_up: int = 20) -> float:
        config = DataConfig(
            batch_size=args.batch, video_fraction=1.0, prefetch=prefetch, num_workers=workers
        )
        with contextlib.closing(make_iterator(source, config, encode)) as batches:
            for _ in range(warm_up):
                next(batches)
            start, count = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - start) < args.seconds:
                next(batches)
                count += 1
        return count / elapsed

    alone = stream(source, prefetch=0, workers=0)
    parts["batching (Grain)"] = max(1 / alone - sum(parts.values()), 0)
    print(f"{'part':<32}{'µs / clip':>10}{'share':>8}")
    for name, seconds in parts.items():
        print(f"{name:<32}{1e6 * seconds / args.batch:>10.1f}{seconds * alone:>8.0%}")
    print(f"\n{'stream of video batches':<32}{'clips/s':>10}{'batches/s':>11}")
    few = DigitsSource(DigitsConfig(num_clips=4096))
    rates = {
        "first pass": alone,
        "later passes": stream(few, prefetch=0, workers=0, warm_up=len(few) // args.batch + 1),
        "first pass, prefetch 4": stream(source, prefetch=4, workers=0),
    }
    if args.workers:
        name = f"first pass, {args.workers} worker processes"
        rates[name] = stream(source, prefetch=4, workers=args.workers)
    for name, rate in rates.items():
        print(f"{name:<32}{rate * args.batch:>10.0f}{rate:>11.1f}")


if __name__ == "__main__":
    main()
