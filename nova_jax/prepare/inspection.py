"""Prepared data for a person to look at: one HTML page that opens from disk.

Numbers, histograms as SVG, decoded clips, and clips that look alike. Everything is in the page
itself; nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nova_jax import media
from nova_jax.autoencoders.interface import VideoCodec
from nova_jax.autoencoders.pixels import to_uint8
from nova_jax.data.latents import sample_latents
from nova_jax.data.records import Records
from nova_jax.files import write_whole

PAGE = "inspect.html"
_MOST = 20_000  # records that numbers are taken of
_SHEET, _STRIP, _SIDE, _VIDEOS = 24, 4, 96, 3  # clips, frames of each, their least side; MP4s
#: Perceptual hashes of 64 bits that differ in no more are of pictures that look alike.
ALIKE = 4

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .9rem .15rem 0; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem; } img, video { max-width: 100%; }
figure { margin: 0; } figcaption { color: #555; font-size: .85rem; } svg text { font-size: 11px; }
.pair { display: flex; gap: .5rem; margin: .4rem 0; align-items: center; }
"""


def write_page(directory: Path, codec: VideoCodec | None) -> Path:
    """Writes ``inspect.html`` into a prepared directory and returns its path.

    Args:
      directory: what `nova_jax.prepare` has finished.
      codec: decodes latents; None leaves them out. Pixels need none.

    Raises:
      NovaError: the directory is damaged.
    """
    records = Records(directory)
    metadata = records.metadata
    records.verify()
    count = len(records)
    chosen = _spread(count, _MOST)
    rows: list[dict[str, Any]] = []
    for start in tqdm(range(0, len(chosen), 64), unit="batch", desc="reading", dynamic_ncols=True):
        for record in records.read(chosen[start : start + 64]):
            rows.append(_facts(record))
    look = _decoder(records, codec)

    name = html.escape(directory.resolve().name)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{name}</title><style>{_STYLE}</style>",
        f"<h1>{name}</h1>",
        _summary(records, len(rows)),
    ]
    parts += ["<h2>Shapes</h2>", _shapes(records)]
    parts += ["<h2>Numbers</h2>", '<div class="plots">', *_plots(rows), "</div>"]
    sizes = Counter(f"{row['width']}×{row['height']}" for row in rows if row["width"])
    if sizes:
        parts += ["<h2>Resolutions of the sources</h2>", _table(sizes.most_common(12))]
    if metadata.skipped:
        parts += ["<h2>Skipped inputs</h2>", _table(sorted(metadata.skipped.items()))]
    if look is None:
        parts.append(
            "<p>No clips are shown: give --checkpoint, whose autoencoder decodes them.</p>"
        )
    else:
        parts += ["<h2>Clips</h2>", *_sheets(records, look), "<h2>Videos</h2>"]
        parts += _videos(records, look) or ["<p>There are none.</p>"]
    parts += ["<h2>Clips that look alike</h2>", *_alike(records, chosen, rows, look)]
    path = directory / PAGE
    write_whole(path, "\n".join([*parts, "</html>"]))
    return path


Look = Callable[[int], tuple[dict[str, Any], np.ndarray]]


def _decoder(records: Records, codec: VideoCodec | None) -> Look | None:
    """What gives a record and its frames, uint8 [F, H, W, 3]."""
    encoding = records.metadata.encoding
    if encoding is not None and codec is None:
        return None

    def look(index: int) -> tuple[dict[str, Any], np.ndarray]:
        (record,) = records.read([index])
        if codec is None or encoding is None:
            return record, record["frames"]
        latents = sample_latents(record | {"encoding": encoding}, None)
        return record, np.asarray(to_uint8(codec.decode(latents[None])))[0]

    return look


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    """What the page counts of a record."""
    return {
        **{name: record[name] for name in ("flow", "fps", "height", "width", "phash", "source")},
        "words": len(record["caption"].split()),
        "short_words": len(record["short_caption"].split()),
        "rows": len(record["text"]) if "text" in record else None,
        "video": (record["moments"] if "moments" in record else record["frames"]).shape[0] > 1,
    }


def _summary(records: Records, looked_at: int) -> str:
    metadata = records.metadata
    size = sum(shard.bytes for shard in metadata.shards)
    lines = [
        ("records", f"{len(records):,} of {metadata.kind}"),
        ("shards", f"{len(metadata.shards)}, {size / 1e6:,.1f} MB, all checksums right"),
    ]
    if metadata.encoding is not None:
        encoding = metadata.encoding
        lines.append(("encoders", f"of {encoding.source}; text cut at {encoding.text_length} rows"))
    if looked_at < len(records):
        lines.append(("numbers below", f"of {looked_at:,} records, evenly spread"))
    cells = "".join(f"<tr><th>{n}</th><td>{html.escape(v)}</td></tr>" for n, v in lines)
    return f"<table>{cells}</table>"


def _shapes(records: Records) -> str:
    head = "<tr><th>frames</th><th>pixels</th><th>latents</th><th>records</th></tr>"
    body = "".join(
        f"<tr><td>{bucket.frames}</td><td>{bucket.size[0]}×{bucket.size[1]}</td>"
        f"<td>{'×'.join(map(str, bucket.latent))}</td>"
        f'<td class="n">{len(records.of_bucket(number)):,}</td></tr>'
        for number, bucket in enumerate(records.metadata.buckets)
    )
    return f"<table>{head}{body}</table>"


def _table(rows: Iterable[tuple[str, int]]) -> str:
    cells = (f'<tr><td>{html.escape(n)}</td><td class="n">{c:,}</td></tr>' for n, c in rows)
    return f"<table>{''.join(cells)}</table>"


def _plots(rows: Sequence[dict[str, Any]]) -> list[str]:
    videos = [row for row in rows if row["video"]]
    brief = [row["short_words"] for row in rows if row["short_words"]]
    plots = [
        ("motion score, pixels a frame", [row["flow"] for row in videos]),
        ("frames per second", [row["fps"] for row in videos]),
        ("words of the caption", [row["words"] for row in rows]),
        ("words of the short caption", brief),
        ("rows of text features", [row["rows"] for row in rows if row["rows"] is not None]),
        ("clips of a source", list(Counter(row["source"] for row in rows).values())),
    ]
    return [histogram(name, values) for name, values in plots if values]


def histogram(name: str, values: Sequence[float], bins: int = 24) -> str:
    """Bars as SVG, with the median below."""
    whole = all(float(value).is_integer() for value in values)
    low, high = float(min(values)), float(max(values))
    if whole and high - low < bins:
        edges = np.arange(low, high + 2) - 0.5
    else:
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counts, edges = np.histogram(values, edges)
    width, height = 300, 110
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * c / counts.max():.1f}" '
        f'width="{max(step - 1, 0.5):.1f}" height="{height * c / counts.max():.1f}" '
        f'fill="#4477aa"><title>{edges[i]:.4g} to {edges[i + 1]:.4g}: {c}</title></rect>'
        for i, c in enumerate(counts)
    )
    plot = (
        f'<svg width="{width}" height="{height + 16}" role="img">{bars}'
        f'<text x="0" y="{height + 13}">{low:.4g}</text>'
        f'<text x="{width}" y="{height + 13}" text-anchor="end">{high:.4g}</text></svg>'
    )
    median, most = np.median(values), counts.max()
    return _figure(plot, f"{name}; median {median:.4g}, most in one bar {most:,}")


def _sheets(records: Records, look: Look) -> list[str]:
    """A contact sheet of each shape, with clips from all over it."""
    figures = []
    buckets = records.metadata.buckets
    for number, bucket in enumerate(buckets):
        indices = records.of_bucket(number)
        share = max(_SHEET // len(buckets), 4)
        strips, captions = [], []
        for place in _spread(len(indices), share):
            record, frames = look(int(indices[place]))
            strips.append(_thumbnails(frames[_spread(len(frames), _STRIP)]))
            captions.append(record["caption"] or f"label {record['label']}")
        sheet = media.contact_sheet(strips, captions, 2 if bucket.frames > 1 else 6)
        figures.append(_figure(_image(sheet), bucket.name))
    return figures


def _thumbnails(frames: np.ndarray) -> np.ndarray:
    """Frames whose short side is about `_SIDE`."""
    short = min(frames.shape[1:3])
    if short < _SIDE:
        return media.enlarge(frames, _SIDE)
    height, width = (round(side * _SIDE / short) for side in frames.shape[1:3])
    return np.stack([media.fit_image(frame, (height, width)) for frame in frames])


def _videos(records: Records, look: Look) -> list[str]:
    buckets = enumerate(records.metadata.buckets)
    indices = [i for n, b in buckets if b.frames > 1 for i in records.of_bucket(n).tolist()]
    figures = []
    for place in _spread(len(indices), _VIDEOS):
        record, frames = look(indices[place])
        film = media.encode_mp4(media.enlarge(frames), record["fps"] or 12.0)
        video = f'<video controls loop muted src="{_data("video/mp4", film)}"></video>'
        label = f"{record['caption']} ({record['source']}, {record['start']:.1f} s)"
        figures.append(_figure(video, label))
    return figures


def _alike(
    records: Records, chosen: np.ndarray, rows: Sequence[dict[str, Any]], look: Look | None
) -> list[str]:
    hashes = np.array([row["phash"] for row in rows], np.int64).astype(np.uint64)
    pairs = alike(hashes)
    if not pairs:
        return ["<p>None.</p>"]
    parts = [
        f"<p>{len(pairs):,} pairs whose middle frames differ in {ALIKE} of 64 bits or less"
        f"{', the first of which are shown' if len(pairs) > 12 else ''}:</p>"
    ]
    for one, other in pairs[:12]:
        names = " and ".join(html.escape(rows[i]["source"]) for i in (one, other))
        images = ""
        if look is not None:
            for i in (one, other):
                frames = look(int(chosen[i]))[1]
                images += _image(_thumbnails(frames[len(frames) // 2][None])[0])
        parts.append(f'<div class="pair">{images}<span>{names}</span></div>')
    return parts


def alike(hashes: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of places of 64-bit hashes that differ in `ALIKE` bits or less; 0 stands for none.

    Of five parts of the bits, two such hashes share at least one: only those that do are compared.
    """
    found: set[tuple[int, int]] = set()
    for shift in range(0, 64, 13):  # the last part has 12 bits
        part = (hashes >> np.uint64(shift)) & np.uint64((1 << 13) - 1)
        order = np.argsort(part, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            group = group[hashes[group] != 0]
            for place, one in enumerate(group[:-1]):
                others = group[place + 1 :]
                near = np.bitwise_count(hashes[others] ^ hashes[one]) <= ALIKE
                found.update((min(one, o), max(one, o)) for o in others[near].tolist())
    return sorted((int(a), int(b)) for a, b in found)


def _spread(count: int, most: int) -> np.ndarray:
    """Up to `most` of the numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _image(pixels: np.ndarray) -> str:
    return f'<img alt="" src="{_data("image/png", media.encode_png(pixels))}">'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
