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
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from nova_jax.app.group import LOOK, Group
from nova_jax.app.inputs import NOTHING, Given
from nova_jax.app.jobs import Job, Take
from nova_jax.app.recipe import Recipe
from nova_jax.errors import NovaError
from nova_jax.live import Cue, turn
from nova_jax.pipeline import NovaPipeline
from nova_jax.sampling.steps import Partial
from nova_jax.session import Session

logger = logging.getLogger(__name__)

#: Kinds of requests that are drawn beside each other.
POOLS = 3
#: Kinds of requests whose programs are kept in memory.
PROGRAMS = 16


class _Stopped(Exception):
    """Nobody wants the picture any more."""


class Studio:
    """A model at work for many people.

    Args:
        pipeline: the model.
        named: what names it, as flags of `nova_jax.generate`; see `Recipe`.
        rows: videos that are drawn together; a frame takes as long for one as for all.
        waiting: most requests that wait.
        each: most requests of one person that wait or are drawn.

    Raises:
        NovaError: memory is short for so many rows.
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
        self._check_memory()
        self._waiting: collections.deque[Job] = collections.deque()
        self._groups: list[Group] = []
        self._open: list[Job] = []
        self._paces: dict[Any, float | None] = {}  # of the kinds whose programs are kept
        self._changed, self._closing = threading.Condition(threading.RLock()), False
        self._encoding = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
        self._thread.start()

    @property
    def takes_text(self) -> bool:
        """Whether prompts are texts, and not class labels."""
        return self.pipeline.config.num_classes is None

    def submit(self, jobs: Sequence[Job]) -> None:
        """Lets jobs of one person wait for their turn, all of them or none.

        Raises:
            NovaError: they are too many, or too many wait.
        """
        with self._changed:
            self.check_room(jobs[0].owner, len(jobs))
            self._waiting += jobs
            self._open += jobs
            self._changed.notify_all()

    def check_room(self, owner: str, count: int) -> None:
        """Raises a `NovaError` if so many more jobs of somebody cannot wait."""
        with self._changed:
            mine, waiting = sum(job.owner == owner for job in self._open), len(self._waiting)
        if mine + count > self._each:
            raise NovaError(
                f"{mine} of yours are not done and {count} asked for, of at most {self._each}; "
                "wait for them, or stop them"
            )
        if waiting + count > self._most:
            raise NovaError(f"{waiting} requests wait already; try again in a minute")

    def draw(
        self,
        owner: str,
        prompt: str,
        seed: int,
        frames: int,
        given: Given = NOTHING,
        **options: Any,
    ) -> Job:
        """A job that makes a video or, of one frame, a picture; `submit` lets it wait.

        Args:
            owner: who asks.
            prompt, seed: of the request.
            frames: F, those that are given among them.
            given: what it begins with.
            **options: of `NovaPipeline.start`.

        Raises:
            NovaError: something does not fit the model.
        """
        recipe = self._recipe(prompt, seed, frames, given, options, rows=self.rows)
        asked = {"seed": seed, "num_frames": frames, **given.arrays, **options}
        with self._encoding:
            session = self.pipeline.start(self._prompt(prompt), **asked)
        assert session.frames is not None
        return Job(owner, recipe, session, files=given.files, frames=session.frames)

    def go_on(self, owner: str, take: Take, prompt: str, seed: int, latent_frames: int) -> Job:
        """A job that goes on from a finished video, which stays as it is.

        Raises:
            NovaError: the finished one cannot go on, or see `draw`.
        """
        if take.session is None or take.session.state.slots < 3:
            raise NovaError("a picture does not go on; make a video of it under picture to video")
        if any(";" in each for each in (prompt, take.recipe.prompt)):
            raise NovaError('prompts that follow each other have no ";"; write a comma')
        with self._encoding:
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
        return Job(owner, recipe, session, **made)

    def paint(self, owner: str, prompt: str, seed: int, given: Given, **options: Any) -> Job:
        """A job that paints a part of a picture anew.

        Raises:
            NovaError: see `draw`.
        """
        recipe = self._recipe(prompt, seed, 1, given, options)
        call = {"prompt": self._prompt(prompt), "seed": seed, **given.arrays, **options}
        with self._encoding:
            self.pipeline.check_memory(self.pipeline.request(**call))
        return Job(owner, recipe, None, files=given.files, call=call)

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

    def _check_memory(self) -> None:
        """Raises a `NovaError` if there is no room for all rows at once."""
        prompts: Any = ["" if self.takes_text else 0] * self.rows
        whole: Any = {"batch_size": self.rows, "max_latent_length": self.pipeline.config.frames}
        try:
            self.pipeline.check_memory(self.pipeline.request(prompts, **whole))
        except NovaError as error:
            raise NovaError(f"{self.rows} rows are too many: {error}") from error

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
                self._paces[group.kind] = group.pace
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

    def _group_for(self, session: Session) -> Group | None:
        """Where a session finds a place; None while there is none."""
        kind = session.sampling, session.state.slots
        for group in self._groups:
            if group.kind == kind:
                return group if group.pool.free else None
        if len(self._groups) >= POOLS:
            return None
        self._groups.append(Group(self.pipeline, self.rows, kind, self._pace(kind)))
        return self._groups[-1]

    def _pace(self, kind: Any) -> float | None:
        """Seconds of a frame of a kind; forgets compiled programs when there are too many."""
        if kind not in self._paces and len(self._paces) >= PROGRAMS:
            jax.clear_caches()
            self._paces.clear()
        return self._paces.setdefault(kind, None)

    def _paint(self, job: Job) -> None:
        """Paints a picture by a call."""
        looked = 0.0

        def on_step(partial: Partial) -> None:
            nonlocal looked
            if job.stopping:
                raise _Stopped
            job.progress = (0, partial.step, partial.steps)
            if time.monotonic() - looked > LOOK:
                job.filling, looked = partial.pixels(self.pipeline.codec)[0], time.monotonic()

        kind, started = ("painted", *sorted(job.recipe.options.items())), time.monotonic()
        known = kind in self._paces
        job.state, job.pace = "drawing", self._pace(kind)
        try:
            output = self.pipeline(**job.call, on_step=on_step, disable_progress_bar=True)
            job.parts.append(output.frames[0])
            job.finish()
            self._paces[kind] = time.monotonic() - started if known else None
        except _Stopped:
            job.finish()
        except NovaError as error:
            job.finish(error)
        except Exception as error:  # a bug
            logger.exception("painting failed")
            job.finish(error)
