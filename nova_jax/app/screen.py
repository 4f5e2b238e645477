"""What the app shows: frames while they fill, videos that loop, as HTML without any script.

Pictures are in the page itself, as data: nothing is fetched. Small ones are enlarged by the
browser, pixel by pixel.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from nova_jax import media
from nova_jax.app.gallery import Item
from nova_jax.app.jobs import Job
from nova_jax.app.studio import Studio

#: Side in pixels up to which pictures are shown pixel by pixel.
SMALL = 128
#: Frames in a film strip: the last ones.
STRIP = 16

CSS = """
.nova-screen { display: flex; flex-wrap: wrap; gap: 16px; justify-content: center;
  min-height: 340px; align-items: center; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); border-radius: 12px; padding: 16px; }
.nova-screen figure { margin: 0; flex: 1 1 200px; max-width: 420px; text-align: center; }
.nova-screen img, .nova-screen video { display: block; width: 100%; height: auto; margin: 0 auto;
  border-radius: 6px; background: #7f7f7f; }
.nova-screen .small { image-rendering: pixelated; }
.nova-strip { display: flex; gap: 3px; margin-top: 6px; min-height: 34px; overflow: hidden; }
.nova-screen .nova-strip img { width: auto; height: 34px; margin: 0; border-radius: 2px; }
.nova-bar { height: 4px; border-radius: 2px; background: var(--border-color-primary);
  margin-top: 8px; }
.nova-bar div { height: 4px; border-radius: 2px; background: var(--color-accent); }
.nova-screen figcaption { font-size: 13px; margin-top: 6px; color: var(--body-text-color-subdued);
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.nova-empty { color: var(--body-text-color-subdued); }
"""


def empty(text: str) -> str:
    """A screen with a sentence on it."""
    return f'<div class="nova-screen"><span class="nova-empty">{html.escape(text)}</span></div>'


def live(studio: Studio, jobs: Sequence[Job]) -> str:
    """Videos and pictures while they are made."""
    return _screen([_live(studio, job) for job in jobs])


def finished(items: Sequence[Item]) -> str:
    """Finished ones, side by side; videos loop."""
    return _screen([_finished(item) for item in items])


def status(studio: Studio, job: Job) -> str:
    """How far one is, in a line."""
    if job.state == "waiting":
        before = studio.before(job)
        return f"waiting, {before} before it" if before else "waiting for its turn"
    frame, made, steps = job.progress
    step = f"set {made} of {steps}"
    if job.frames - job.first > 1:
        step = f"frame {min(frame + 1, job.frames)} of {job.frames}, {step}"
    if job.stopping:
        return f"{step}; stopping after it"
    if (left := job.seconds_left) is None:
        return f"{step}; the first of its kind compiles its program"
    return f"{step}, about {left:.0f} s left" if left >= 1 else step


def _screen(figures: Sequence[str]) -> str:
    return f'<div class="nova-screen">{"".join(figures)}</div>'


def _live(studio: Studio, job: Job) -> str:
    parts = [frame for part in job.parts[-STRIP:] for frame in part][-STRIP:]
    now = job.filling
    if now is None:
        blank = np.full((*studio.pipeline.size, 3), 127, np.uint8)
        now = parts[-1] if parts else blank
    strip = ""
    if job.frames - job.first > 1:
        images = "".join(_image(frame, 64) for frame in parts)
        strip = f'<div class="nova-strip">{images}</div>'
    return (
        f"<figure>{_image(now)}{strip}"
        f'<div class="nova-bar"><div style="width:{100 * job.share:.0f}%"></div></div>'
        f"<figcaption>{html.escape(status(studio, job))}</figcaption></figure>"
    )


def _finished(item: Item) -> str:
    clip = item.take.clip
    caption = f"<figcaption>{html.escape(item.take.recipe.title)}</figcaption>"
    if len(clip) == 1:
        return f"<figure>{_image(clip[0])}{caption}</figure>"
    data = base64.b64encode(item.files[0].read_bytes()).decode()
    video = f'<video{_kind(clip[0])} src="data:video/mp4;base64,{data}" autoplay loop muted '
    return f"<figure>{video}playsinline controls></video>{caption}</figure>"


def _image(picture: media.Picture, most: int | None = None) -> str:
    """A picture, of at most so many pixels a side."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if most is not None:
        image.thumbnail((most, most))
    kind = "PNG" if max(image.size) <= SMALL else "JPEG"
    image.save(buffer, format=kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img{_kind(picture)} alt="" src="data:image/{kind.lower()};base64,{data}">'


def _kind(picture: media.Picture) -> str:
    return ' class="small"' if max(picture.shape[:2]) <= SMALL else ""
