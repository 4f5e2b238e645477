"""Small prepared directories, made on the spot."""

import numpy as np

from nova_jax.data.records import (
    Bucket,
    Encoding,
    Metadata,
    Shard,
    ShardWriter,
    shard_name,
    write_metadata,
)

ENCODING = Encoding(
    source="somewhere",
    channels=3,
    moments=6,
    scale=(2.0, 2.0, 2.0),
    shift=(0.5, 0.5, 0.5),
    codec_probe=(1.0, 2.0),
    text_probe=(3.0,),
    text_dim=16,
    text_length=8,
)


def make_records(directory, shards, encoding=ENCODING, first=0):
    """Writes a prepared directory of numbered records, shard by shard.

    Record n has moments of mean n, log-variance -40 (none), n % 5 rows of text of value n and, if
    n is even, one row of short text of value -n. `shards` are (latent, number of records).
    """
    directory.mkdir()
    buckets = sorted({Bucket(frames=t, size=(h, w), latent=(t, h, w)) for (t, h, w), _ in shards})
    written, start = [], first
    for number, ((t, h, w), count) in enumerate(shards):
        writer = ShardWriter(directory / shard_name(number), encoding)
        for n in range(start, start + count):
            moments = np.full((t, h, w, 6), n, np.float16)
            moments[..., 3:] = -40
            brief = "" if n % 2 else f"short {n}"
            writer.write(
                {
                    "moments": moments,
                    "text": np.full((n % 5, 16), n, np.float16),
                    "short_text": np.full((int(brief != ""), 16), -n, np.float16),
                    "caption": f"record {n}",
                    "short_caption": brief,
                    "label": n % 10,
                    "flow": n / 10,
                    "fps": 12.0 if t > 1 else 0.0,
                    "source": f"{n}.mp4",
                    "start": 0.0,
                    "height": h,
                    "width": w,
                    "phash": n,
                }
            )
        start += count
        bucket = buckets.index(Bucket(frames=t, size=(h, w), latent=(t, h, w)))
        written.append(Shard(file=shard_name(number), bucket=bucket, **writer.close()))
    write_metadata(
        directory,
        Metadata(
            kind="latents",
            buckets=tuple(buckets),
            shards=tuple(written),
            encoding=encoding,
            skipped={},
        ),
    )
    return directory
