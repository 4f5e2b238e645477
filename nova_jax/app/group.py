"""Jobs that advance together: what is drawn in one pool, whoever asked for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from nova_jax.app.jobs import Job
from nova_jax.errors import NovaError
from nova_jax.pipeline import NovaPipeline
from nova_jax.pool import SessionPool
from nova_jax.sampling.steps import Partial
from nova_jax.session import Session

#: Seconds between two looks at a frame that fills.
LOOK = 0.2


class Group:
    """Jobs that one pool advances.

    Attributes:
        kind: what tells its programs from others.
        pace: seconds of a frame; None before the first one, for which programs are compiled.
    """

    def __init__(self, pipeline: NovaPipeline, rows: int, kind: Any, pace: float | None) -> None:
        self.pool = SessionPool(pipeline, rows, on_step=self._look)
        self.jobs: dict[Session, Job] = {}
        self.kind, self.pace = kind, pace
        self._pipeline, self._looked, self._frames = pipeline, 0.0, 0

    def join(self, job: Job) -> None:
        """Takes a job in."""
        assert job.session is not None
        self.pool.join(job.session)
        self.jobs[job.session] = job
        job.state, job.pace = "drawing", self.pace

    def advance(self) -> None:
        """Draws a frame of each job; those that are done or failed are in it no more."""
        started = time.monotonic()
        self._leave()
        if not self.jobs:
            return
        error: NovaError | None = None
        try:
            for session, frames in self.pool.frames():
                self.jobs[session].parts.append(frames[0])
        except NovaError as failure:
            error = failure
        self._frames += 1
        if self._frames > 1:
            self.pace = time.monotonic() - started
        for session, job in list(self.jobs.items()):
            job.progress, job.filling, job.pace = (job.frame, 0, 1), None, self.pace
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

    def _look(self, partial: Partial, sessions: Sequence[Session]) -> None:
        """Shows jobs their frames as they are."""
        now = time.monotonic()
        pixels = None
        if now - self._looked > LOOK:
            pixels, self._looked = partial.pixels(self._pipeline.codec), now
        for row, session in enumerate(sessions):
            job = self.jobs[session]
            job.progress = (job.frame, partial.step, partial.steps)
            if pixels is not None:
                job.filling = pixels[row]
