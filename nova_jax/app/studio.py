"""What draws: one model, one thread that it runs in, and whoever waits for it.

Requests of many people fill the rows of a `nova_jax.pool.SessionPool`: they advance together, by
one compiled program. Requests that are drawn otherwise (other options, another length) have a pool
of their own beside it. Parts of pictures are painted anew by a call between two frames.

All public methods may be called from any thread.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nova_jax import media
from nova_jax.app.inputs import NOTHING, Files, Given
from nova_jax.app.recipe import Recipe
from nova_jax.errors import NovaError
from nova_jax.live import Cue, turn
from nova_jax.pipeline import NovaPipeline
from nova_jax.pool import SessionPool
from nova_jax.sampling.steps import Partial
from nova_jax.session import Session

logger = logging.getLogger(__name__)

#: Seconds between two looks at a frame that fills.
LOOK = 0.2
#: Kinds of requests that are drawn beside each other.
POOLS = 3
#: Kinds of requests whose programs are kept in memory.
PROGRAMS = 16


class _Stopped(Exception):
    """Nobody wants the picture any more."""


@dataclasses.dataclass(frozen=True, eq=False)
class Take:
    """A finished video or picture.

    Attributes:
        recipe: what made it.
        files: what it was made from, see `Given`.
        clip: its frames.
        session: from which it goes on; None for what was painted.
        parts: its frames as they came, which others follow.
    """

    recipe: Recipe
    files: Files
    clip: media.Clip
    session: Session | None
    parts: tuple[media.Clip, ...]


class Job:
    """A video or a picture while it is made.

    Attributes:
        owner: who asked for it.
        recipe: what was asked for.
        files: what it is made from, see `Given`.
        session: what draws it; None for what is painted by a call.
        call: arguments of that call.
        parts: pixel frames, as they came.
        filling: the frame that fills; None where nobody looked yet.
        step: AR steps that were made of it, and all.
        pace: seconds of a frame; None for the first one of a kind, whose program is compiled.
        state: "waiting", "drawing" or "done".
        error: why there is none.
    """

    def __init__(
        self,
        owner: str,
        recipe: Recipe,
        session: Session | None,
        *,
        files: Files,
        frames: int = 1,
        parts: tuple[media.Clip, ...] = (),
        call: Mapping[str, Any] | None = None,
    ) -> None:
        self.owner, self.recipe, self.files, self.session = owner, recipe, files, session
        self.call = dict(call or {})
        self.first = 0 if session is None else session.frame
        self.frames = frames
        self.parts: list[media.Clip] = list(parts)
        self.filling: media.Picture | None = None
        self.step: tuple[int, int] = (0, 1)
        self.pace: float | None = None
        self.state = "waiting"
        self.error: Exception | None = None
        self.stopping = False

    @property
    def frame(self) -> int:
        """Latent frames that there are."""
        return 0 if self.session is None else self.session.frame

    @property
    def share(self) -> float:
        """What is done of it, from 0 to 1."""
        now = self.frame - self.first + self.step[0] / self.step[1]
        return min(1.0, now / max(1, self.frames - self.first))

    @property
    def seconds_left(self) -> float | None:
        """About; None where that is not known yet."""
        if self.pace is None:
            return None
        return self.pace * (self.frames - self.first) * (1 - self.share)

    def stop(self) -> None:
        """Ends it with the frame that is drawn now; what is there is kept."""
        self.stopping = True

    def finish(self, error: Exception | None = None) -> None:
        """Nothing more comes."""
        if error is None and not self.parts:
            error = NovaError("stopped before a frame was there; ask again")
        self.error, self.filling, self.state = error, None, "done"

    def take(self) -> Take:
        """What was made.

        Raises:
            NovaError: why nothing was.
        """
        if self.error is not None:
            raise self.error
        recipe, rest = self.recipe, []
        if self.session is not None:
            if self.frame < self.frames:
                recipe = dataclasses.replace(recipe, stopped=self.frame)
            # Of a copy: what goes on from here has the decoder's window as it is.
            rest = [part[0] for part in self.session.fork().show(None)]
        clip = np.concatenate([*self.parts, *rest])
        return Take(recipe, self.files, clip, self.session, tuple(self.parts))


class _Group:
    """Jobs that one pool advances."""

    def __init__(self, pipeline: NovaPipeline, rows: int) -> None:
        self.pool = SessionPool(pipeline, rows, on_step=self._look)
        self.jobs: dict[Session, Job] = {}
        self._pipeline, self._looked = pipeline, 0.0
        self._pace: float | None = None

    def join(self, job: Job) -> None:
        assert job.session is not None
        self.pool.join(job.session)
        self.jobs[job.session] = job
        job.state, job.pace = "drawing", self._pace

    def advance(self) -> None:
        """Draws a frame of each job; those that are done or failed are in it no more."""
        started, warm = time.monotonic(), self._pace is not None or self._looked > 0
        self._leave()
        if not self.jobs:
            return
        error: NovaError | None = None
        try:
            for session, frames in self.pool.frames():
                self.jobs[session].parts.append(frames[0])
        except NovaError as failure:
            error = failure
        if warm:
            self._pace = time.monotonic() - started
        for session, job in list(self.jobs.items()):
            job.step, job.filling, job.pace = (0, 1), None, self._pace
            if session not in self.pool.members:
                del self.jobs[session]
                job.finish(error)
        self._leave()

    def _leave(self) -> None:
        for session, job in list(self.jobs.items()):
            if job.stopping or job.frame >= job.frames:
                self.pool.leave(session)
                del self.jobs[session]
                job.finish()

    def _look(self, partial: Partial) -> None:
        """Shows all jobs their frames as they are."""
        now, members = time.monotonic(), self.pool.members
        pixels = None
        if now - self._looked > LOOK:
            pixels, self._looked = partial.pixels(self._pipeline.codec), now
        for row, session in enumerate(members):
            job = self.jobs[session]
            job.step = (partial.step, partial.steps)
            if pixels is not None:
                job.filling = pixels[row]


class Studio:
    """A model at work for many people.

    Args:
        pipeline: the model.
        named: what names it, as flags of `nova_jax.generate`; see `Recipe`.
        rows: videos that are drawn together; a frame takes as long for one as for all.
        waiting: most requests that wait.
        each: most requests of one person that wait or are drawn.
    """

    def __init__(
        self,
        pipeline: NovaPipeline,
        named: Mapping[str, Any] | None = None,
        *,
        rows: int = 4,
        waiting: int = 64,
        each: int = 4,
    ) -> None:
        self.pipeline, self.named, self.rows = pipeline, dict(named or {}), rows
        self._most, self._each = waiting, each
        self._waiting: collections.deque[Job] = collections.deque()
        self._groups: list[_Group] = []
        self._open: list[Job] = []
        self._kinds: set[Any] = set()
        self._changed, self._closing = threading.Condition(), False
        self._encoding = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
        self._thread.start()

    @property
    def takes_text(self) -> bool:
        """Whether prompts are texts, and not class labels."""
        return self.pipeline.config.num_classes is None

    def draw(
        self,
        owner: str,
        prompt: str,
        seed: int,
        frames: int,
        given: Given = NOTHING,
        **options: Any,
    ) -> Job:
        """Asks for a video or, of one frame, a picture.

        Args:
            owner: who asks.
            prompt, seed: of the request.
            frames: F, those that are given among them.
            given: what it begins with.
            **options: of `NovaPipeline.start`.

        Raises:
            NovaError: something does not fit the model, or too many wait.
        """
        recipe = self._recipe(prompt, seed, frames, given, options, rows=self.rows)
        asked = {"seed": seed, "num_frames": frames, **given.arrays, **options}
        with self._encoding:
            self._check_room(owner)
            session = self.pipeline.start(self._prompt(prompt), **asked)
        assert session.frames is not None
        job = Job(owner, recipe, session, files=given.files, frames=session.frames)
        return self._ask(job)

    def go_on(self, owner: str, take: Take, prompt: str, seed: int, latent_frames: int) -> Job:
        """Asks for a video that goes on from a finished one, which stays as it is.

        Raises:
            NovaError: the finished one cannot go on, or see `draw`.
        """
        if take.session is None or take.session.state.slots < 3:
            raise NovaError("a picture does not go on; make a video of it under picture to video")
        with self._encoding:
            self._check_room(owner)
            session, first = take.session.fork(), take.session.frame
            cue, total = Cue(first, prompt, seed), first + latent_frames
            turn(session, cue)
        options, slots = dict(take.recipe.options), session.state.slots
        if total > slots:
            options["window"] = slots
        recipe = dataclasses.replace(
            take.recipe,
            cues=(*take.recipe.cues, cue),
            frames=self.pipeline.codec.pixel_frames(max(total, slots)),
            options=options,
            stopped=total if total < slots else None,
        )
        made: Any = {"files": take.files, "frames": total, "parts": take.parts}
        return self._ask(Job(owner, recipe, session, **made))

    def paint(self, owner: str, prompt: str, seed: int, given: Given, **options: Any) -> Job:
        """Asks for a picture, a part of which is painted anew.

        Raises:
            NovaError: see `draw`.
        """
        recipe = self._recipe(prompt, seed, 1, given, options)
        call = {"prompt": self._prompt(prompt), "seed": seed, **given.arrays, **options}
        with self._encoding:
            self._check_room(owner)
            self.pipeline.check_memory(self.pipeline.request(**call))
        return self._ask(Job(owner, recipe, None, files=given.files, call=call))

    def of(self, owner: str) -> list[Job]:
        """What somebody waits for."""
        with self._changed:
            return [job for job in self._open if job.owner == owner]

    def before(self, job: Job) -> int:
        """Requests that wait in front of a waiting one."""
        with self._changed:
            return self._waiting.index(job) if job in self._waiting else 0

    def close(self) -> None:
        """Ends all work after the frames that are drawn now."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _recipe(
        self, prompt: str, seed: int, frames: int, given: Given, options: Any, **more: Any
    ) -> Recipe:
        names = {what: name for what, (name, _) in given.files.items()}
        cues = (Cue(0, prompt, seed),)
        return Recipe(cues, frames, options, names, self.named, takes_text=self.takes_text, **more)

    def _prompt(self, prompt: str) -> str | int:
        if self.takes_text:
            return prompt
        if not prompt.isdecimal():
            raise NovaError(f"this model takes class numbers as prompts, not {prompt!r}")
        return int(prompt)

    def _check_room(self, owner: str) -> None:
        with self._changed:
            mine, waiting = sum(job.owner == owner for job in self._open), len(self._waiting)
        if mine >= self._each:
            raise NovaError(f"{mine} requests of yours are not done yet; wait for them or stop them")
        if waiting >= self._most:
            raise NovaError(f"{waiting} requests wait already; try again in a minute")

    def _ask(self, job: Job) -> Job:
        with self._changed:
            self._waiting.append(job)
            self._open.append(job)
            self._changed.notify_all()
        return job

    def _work(self) -> None:
        """What the thread does."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or self._groups)
                painting = [] if self._closing else self._admit()
                if self._closing:
                    for job in self._open:
                        job.finish(NovaError("the app is closing; ask again when it is back"))
                    return
            for job in painting:
                self._paint(job)
            for group in list(self._groups):
                try:
                    group.advance()
                except Exception as error:  # a bug, which takes this pool along and no other
                    logger.exception("a pool failed")
                    for job in group.jobs.values():
                        job.finish(error)
                    group.jobs.clear()
            with self._changed:
                self._groups = [group for group in self._groups if group.jobs]
                self._open = [job for job in self._open if job.state != "done"]

    def _admit(self) -> list[Job]:
        """Lets those who wait in, in the order in which they came; gives those that are painted."""
        painting: list[Job] = []
        for job in [job for job in self._waiting if job.stopping]:
            self._waiting.remove(job)
            job.finish()
        while self._waiting:
            job = self._waiting[0]
            if job.session is None:
                painting.append(job)
            elif (group := self._group_for(job.session)) is not None:
                group.join(job)
            else:
                break
            self._waiting.popleft()
        return painting

    def _group_for(self, session: Session) -> _Group | None:
        """Where a session finds a place; None while there is none."""
        for group in self._groups:
            if group.pool.takes(session):
                return group
        if len(self._groups) >= POOLS:
            return None
        self._count_kind((session.sampling, session.state.slots))
        self._groups.append(_Group(self.pipeline, self.rows))
        return self._groups[-1]

    def _count_kind(self, kind: Any) -> None:
        """Forgets compiled programs when there are too many of them."""
        if kind not in self._kinds and len(self._kinds) >= PROGRAMS:
            jax.clear_caches()
            self._kinds.clear()
        self._kinds.add(kind)

    def _paint(self, job: Job) -> None:
        """Paints a picture by a call."""
        looked = 0.0

        def on_step(partial: Partial) -> None:
            nonlocal looked
            if job.stopping:
                raise _Stopped
            job.step = (partial.step, partial.steps)
            if time.monotonic() - looked > LOOK:
                job.filling, looked = partial.pixels(self.pipeline.codec)[0], time.monotonic()

        job.state = "drawing"
        self._count_kind(("painted", str(sorted(job.recipe.options.items()))))
        try:
            output = self.pipeline(**job.call, on_step=on_step, disable_progress_bar=True)
            job.parts.append(output.frames[0])
            job.finish()
        except _Stopped:
            job.finish()
        except NovaError as error:
            job.finish(error)
        except Exception as error:  # a bug
            logger.exception("painting failed")
            job.finish(error)
