"""How fast prepared latents become batches, and in how much memory.

    python benchmarks/latents.py [--records=512] [--batch=32] [--workers=0]

Writes records of random 480p pictures as `nova_jax.prepare` does (moments 8 x 60 x 96 and two
captions of 64 x 2560, float16: 0.75 MB each) to a temporary directory, and reads them as training
does: shuffled, latents drawn, captions chosen, padded to 256 rows.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from nova_jax.data.latents import LatentsConfig, LatentsDataset, SourceConfig
from nova_jax.data.pipeline import DataConfig
from nova_jax.data.records import (
    Bucket,
    Encoding,
    Metadata,
    Records,
    Shard,
    ShardWriter,
    shard_name,
    write_metadata,
)
from nova_jax.models.config import NovaConfig

BUCKET = Bucket(frames=1, size=(480, 768), latent=(1, 60, 96))
CAPTION, TEXT_DIM, SHARD = 64, 2560, 128
MODEL = NovaConfig(
    latent_size=(60, 96),
    temporal_encoder="vit_d16w1024",
    spatial_decoder="vit_d32w1024",
    diffusion_head="mlp_d3w1280",
    text_dim=TEXT_DIM,
    text_length=256,
)


def write(directory: Path, count: int) -> None:
    """Writes `count` records of random numbers."""
    encoding = Encoding(
        source="", channels=4, moments=8, scale=(0.18215,) * 4, shift=(0.0,) * 4,
        codec_probe=(), text_probe=(), text_dim=TEXT_DIM, text_length=256,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shards = []
    for number, first in enumerate(range(0, count, SHARD)):
        writer = ShardWriter(directory / shard_name(number), encoding)
        for n in range(first, min(first + SHARD, count)):
            moments, text, short = (
                rng.standard_normal(shape, np.float32).astype(np.float16)
                for shape in ((1, 60, 96, 8), (CAPTION, TEXT_DIM), (CAPTION, TEXT_DIM))
            )
            writer.write(
                dict(
                    moments=moments, text=text, short_text=short, caption="c", short_caption="s",
                    label=-1, flow=0.0, fps=0.0, source=str(n), start=0.0, height=480, width=768,
                    phash=n,
                )
            )  # fmt: skip
        shards.append(Shard(file=shard_name(number), bucket=0, **writer.close()))
    write_metadata(
        directory,
        Metadata(
            kind="latents", buckets=(BUCKET,), shards=tuple(shards), encoding=encoding, skipped={}
        ),
    )


def share(directory: Path, index: int, count: int) -> list[str]:
    """Which records process `index` of `count` is given in an epoch, by their source."""
    source = SourceConfig(path=str(directory))
    dataset = LatentsDataset(LatentsConfig(sources=(source,), held_out=0), MODEL)
    records, batch = Records(directory), 8 * count
    pool = dataset._pool(dataset.main, held_out=False)
    read, pool_read = [], type(pool).read

    def noted(pool, places):  # what the dataset reads is what training sees
        read.extend(np.asarray(places).tolist())
        return pool_read(pool, places)

    type(pool).read = noted
    config = DataConfig(batch_size=batch, prefetch=0)
    with contextlib.closing(dataset.batches(config, index, count)) as batches:
        for _ in range(len(records) // batch):
            next(batches)
    return [record["source"] for record in records.read(read)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=8.0, help="of streaming to time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        began = time.perf_counter()
        write(directory, args.records)
        written = time.perf_counter() - began
        size = sum(path.stat().st_size for path in directory.iterdir()) / 1e6
        print(
            f"written: {args.records} records, {size:.0f} MB, {args.records / written:.0f} a second"
        )
        source = SourceConfig(path=str(directory))
        dataset = LatentsDataset(LatentsConfig(sources=(source,), held_out=0), MODEL)
        config = DataConfig(batch_size=args.batch, prefetch=0)
        print(f"{'':24}{'samples/s':>10}{'MB/s':>8}{'CPU ms each':>13}{'most memory held, MB':>22}")
        settings = {"one thread, on demand": {}, "prefetch 4": {"prefetch": 4}}
        if args.workers:
            settings[f"{args.workers} workers"] = {"prefetch": 2, "num_workers": args.workers}
        for name, changes in settings.items():
            changed = dataclasses.replace(config, **changes)
            with contextlib.closing(dataset.batches(changed)) as batches:
                for _ in range(4):
                    next(batches)
                start, count, busy = time.perf_counter(), 0, time.process_time()
                while (elapsed := time.perf_counter() - start) < args.seconds:
                    next(batches)
                    count += args.batch
            rate, busy = count / elapsed, (time.process_time() - busy) / count * 1e3
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            bandwidth = rate * size / args.records
            print(f"{name:24}{rate:>10.0f}{bandwidth:>8.0f}{busy:>13.2f}{peak:>22.0f}")

        with multiprocessing.get_context("spawn").Pool(4) as pool:
            parts = pool.starmap(share, [(directory, index, 8) for index in range(8)])
        seen = sorted(name for part in parts for name in part)
        whole = len(seen) == len(set(seen)) == args.records // 64 * 64
        print(f"8 processes, one epoch: every record {'once' if whole else 'NOT once'}")


if __name__ == "__main__":
    main()
