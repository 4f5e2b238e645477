"""What happens on the page: every event asks the studio and shows how far it is.

What does not fit is one line in a corner, the library's own; of anything else the log says more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import html
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
import numpy as np

from nova_jax import media
from nova_jax.app import screen
from nova_jax.app.gallery import Item, Shelf
from nova_jax.app.inputs import Given, check_prompt, read_picture
from nova_jax.app.jobs import Job, Take
from nova_jax.app.studio import Studio
from nova_jax.config import Range, Seed, convert, shown
from nova_jax.errors import NovaError

logger = logging.getLogger(__name__)

#: Pictures or futures of one request.
MOST = 4
#: Seconds between two updates of what somebody sees.
REFRESH = 0.25
#: Short side in pixels of a picture that is drawn on.
CANVAS = 512
#: What a request updates on the page, in this order.
UPDATED = ("screen", "gallery", "files", "command", "python", "seed")


@dataclasses.dataclass(frozen=True)
class Control:
    """An option that people may change; its range is that of the release's own apps."""

    label: str
    kind: Any
    least: float
    most: float
    step: float


def _control(label: str, kind: Any, least: float, most: float, step: float) -> Control:
    return Control(label, Annotated[kind, Range(least, most)], least, most, step)


CONTROLS = {
    "guidance_scale": _control("Guidance", float, 1, 10, 0.1),
    "num_inference_steps": _control("Sets of a frame", int, 1, 128, 1),
    "num_diffusion_steps": _control("Diffusion steps", int, 1, 100, 1),
    "motion_flow": _control("Motion", float, 1, 10, 0.1),
}

Update = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What all tabs ask for."""

    prompt: str
    seed: int
    options: dict[str, Any]


class Events:
    """What the page's events do.

    Args:
        studio: what draws.
        folder: where files lie that are downloaded.
        free: whether people may change how samples are drawn.
    """

    def __init__(self, studio: Studio, folder: Path, *, free: bool = True) -> None:
        self.studio, self.folder, self.free = studio, folder, free
        pipeline = studio.pipeline
        self.own: dict[str, float] = {
            "guidance_scale": pipeline.sampling.guidance.scale,
            "num_inference_steps": pipeline.sampling.num_inference_steps,
            "num_diffusion_steps": pipeline.sampling.num_diffusion_steps,
            "motion_flow": pipeline.motion_flow,
        }
        own = pipeline.config.frames
        latent = [own, 2 * own, 4 * own] if pipeline.sampling.window else [own, (own + 1) // 2]
        #: Latent frames that are looked back at where a file goes on.
        self.window = pipeline.sampling.window or max(3, own)
        #: Frames to choose from: few programs draw them all.
        self.lengths = [pipeline.codec.pixel_frames(frames) for frames in latent]

    async def text_to_picture(
        self, request: gr.Request, pictures: int, shelf: Shelf, *given: Any
    ) -> AsyncIterator[Update]:
        """Pictures of a prompt, of a seed and of those that follow it."""

        def ask(owner: str, asked: Asked, seed: int) -> Job:
            return self.studio.draw(owner, asked.prompt, seed, 1, **asked.options)

        async for update in self._run(request, ask, pictures, shelf, given):
            yield update

    async def text_to_video(
        self, request: gr.Request, frames: int, shelf: Shelf, *given: Any
    ) -> AsyncIterator[Update]:
        """A video of a prompt."""

        def ask(owner: str, asked: Asked, seed: int) -> Job:
            length = self._length(frames)
            return self.studio.draw(owner, asked.prompt, seed, length, **asked.options)

        async for update in self._run(request, ask, 1, shelf, given):
            yield update

    async def picture_to_video(
        self, request: gr.Request, image: str | None, frames: int, shelf: Shelf, *given: Any
    ) -> AsyncIterator[Update]:
        """A video that begins with a picture."""

        def ask(owner: str, asked: Asked, seed: int) -> Job:
            first = Given.image(read_picture(image), self.studio.pipeline.size)
            length = self._length(frames)
            return self.studio.draw(owner, asked.prompt, seed, length, first, **asked.options)

        async for update in self._run(request, ask, 1, shelf, given):
            yield update

    async def continue_video(
        self,
        request: gr.Request,
        video: str | None,
        frames: int,
        futures: int,
        shelf: Shelf,
        *given: Any,
    ) -> AsyncIterator[Update]:
        """A video that goes on, in one or several futures: a file, or the chosen one."""
        codec = self.studio.pipeline.codec
        read = functools.cache(Given.video)

        def ask(owner: str, asked: Asked, seed: int) -> Job:
            more = codec.latent_frames(self._length(frames))
            if video is None:
                return self.studio.go_on(owner, shelf.chosen.take, asked.prompt, seed, more)
            first = read(video)
            total = codec.pixel_frames(codec.latent_frames(len(first.arrays["video"])) + more)
            options = {"window": self.window, **asked.options}
            return self.studio.draw(owner, asked.prompt, seed, total, first, **options)

        async for update in self._run(request, ask, futures, shelf, given):
            yield update

    async def repaint_picture(
        self, request: gr.Request, canvas: dict[str, Any] | None, shelf: Shelf, *given: Any
    ) -> AsyncIterator[Update]:
        """A picture, of which what is marked is painted anew."""

        def ask(owner: str, asked: Asked, seed: int) -> Job:
            painting = _painting(canvas, self.studio.pipeline.size)
            return self.studio.paint(owner, asked.prompt, seed, painting, **asked.options)

        async for update in self._run(request, ask, 1, shelf, given):
            yield update

    def stop(self, request: gr.Request) -> None:
        """Ends all that somebody waits for; what is there is kept."""
        for job in self.studio.of(_owner(request)):
            job.stop()

    def choose(self, shelf: Shelf, chosen: gr.SelectData) -> Update:
        """Shows one of somebody's takes."""
        return self._show([shelf.choose(int(chosen.index))])

    def take_over(self, shelf: Shelf) -> tuple[str, int, bool]:
        """Prompt and seed of the chosen one, and that no other seed is taken."""
        cue = _chosen(shelf).take.recipe.cues[-1]
        return cue.prompt, cue.seed or 0, False

    def last_picture(self, shelf: Shelf) -> str:
        """The last frame of the chosen one, as a file."""
        item = _chosen(shelf)
        frame = media.enlarge(item.take.clip[-1])
        return str(media.save(item.preview.parent / "last_frame.png", media.encode_png(frame)))

    def canvas(self, shelf: Shelf) -> np.ndarray:
        """The last frame of the chosen one, large enough to be drawn on."""
        return media.enlarge(_chosen(shelf).take.clip[-1], CANVAS)

    async def _run(
        self,
        request: gr.Request,
        ask: Callable[[str, Asked, int], Job],
        count: Any,
        shelf: Shelf,
        given: Sequence[Any],
    ) -> AsyncIterator[Update]:
        """Asks for so many, shows them while they are made, and keeps them."""
        owner, jobs = _owner(request), list[Job]()
        try:
            asked = self._asked(*given)
            count = convert(Annotated[int, Range(1, MOST)], count, "how many")
            self.studio.check_room(owner, count)  # before anything is read
            for number in range(count):
                seed = convert(Seed, asked.seed + number, "seed")
                jobs.append(await asyncio.to_thread(ask, owner, asked, seed))
            self.studio.submit(jobs)
            async for update in self._watch(jobs):
                yield update
            made = [job.take() for job in jobs if job.error is None]
            if made:
                items = [await asyncio.to_thread(self._save, take) for take in made]
                shelf.add(items)
                yield self._show(items, gallery=shelf.previews(), seed=asked.seed)
            for job in jobs:
                job.take()  # says why there is none
        except NovaError as error:
            raise _told(error) from error
        except Exception as error:
            logger.exception("a request failed")
            raise gr.Error("The app failed; its log says why.", print_exception=False) from error
        finally:
            for job in jobs:
                job.stop()

    async def _watch(self, jobs: Sequence[Job]) -> AsyncIterator[Update]:
        """The screen, whenever there is something new to see, until all is done."""
        before = ""
        while any(job.state != "done" for job in jobs):
            if before != (now := await asyncio.to_thread(screen.live, self.studio, jobs)):
                yield _update(screen=now)
            before = now
            await asyncio.sleep(REFRESH)

    def _asked(
        self, prompt: str, seed: float, fresh: bool, negative: str | None, *values: float
    ) -> Asked:
        """The request of any tab; only what is not the model's own is among its options."""
        options: dict[str, Any] = {}
        for (name, control), value in zip(CONTROLS.items(), values, strict=True):
            if self.free and value != self.own[name]:
                options[name] = convert(control.kind, value, control.label.lower())
        if self.free and negative and negative.strip():
            options["negative_prompt"] = check_prompt(negative, "negative prompt")
        chosen = secrets.randbelow(2**31) if fresh else convert(Seed, seed, "seed")
        return Asked(check_prompt(prompt), chosen, options)

    def _length(self, frames: Any) -> int:
        if frames not in self.lengths:
            raise NovaError(f"{shown(frames)} frames; take one of {self.lengths}")
        return int(frames)

    def _save(self, take: Take) -> Item:
        return Item.save(take, self.folder, self.studio.pipeline.fps)

    def _show(self, items: Sequence[Item], **more: Any) -> Update:
        """Finished takes on the screen, their files, and how the first one is made again."""
        recipe = items[0].take.recipe
        return _update(
            screen=screen.finished(items),
            files=[str(file) for item in items for file in item.files],
            command=recipe.command(),
            python=recipe.python(),
            **more,
        )


def _update(**changes: Any) -> Update:
    """What changes on the page, and that the rest of it stays."""
    return tuple(changes.get(name, gr.skip()) for name in UPDATED)


def _chosen(shelf: Shelf) -> Item:
    try:
        return shelf.chosen
    except NovaError as error:
        raise _told(error) from error


def _told(error: NovaError) -> gr.Error:
    """The line in a corner; it is shown as HTML, and may hold what somebody wrote."""
    return gr.Error(html.escape(str(error), quote=False), title="", print_exception=False)


def _owner(request: gr.Request) -> str:
    """Who asks: one open page."""
    return str(request.session_hash)


def _painting(canvas: dict[str, Any] | None, size: tuple[int, int]) -> Given:
    """What was drawn on a canvas: the picture, and where something is above it.

    Raises:
        NovaError: there is no picture, or nothing is above it.
    """
    if canvas is None or canvas.get("background") is None:
        raise NovaError("no picture is given; upload one, or take one of yours")
    picture = np.asarray(canvas["background"])[..., :3]
    marked = np.zeros(picture.shape[:2], bool)
    for layer in canvas["layers"]:
        marked |= np.asarray(layer)[..., 3] > 0
    return Given.painting(picture, marked, size)
