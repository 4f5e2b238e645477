"""A video or a picture while it is made, and when it is finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nova_jax import media
from nova_jax.app.inputs import Files
from nova_jax.app.recipe import Recipe
from nova_jax.errors import NovaError
from nova_jax.session import Session

#: Frames of a clip.
Part = UInt8[np.ndarray, "_ h w 3"]


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
    parts: tuple[Part, ...]


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
        progress: latent frames that there are, AR steps of the next one, and all of its steps.
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
        parts: tuple[Part, ...] = (),
        call: Mapping[str, Any] | None = None,
    ) -> None:
        self.owner, self.recipe, self.files, self.session = owner, recipe, files, session
        self.call = dict(call or {})
        self.first = 0 if session is None else session.frame
        self.frames = frames
        self.parts: list[Part] = list(parts)
        self.filling: media.Picture | None = None
        self.progress = (self.first, 0, 1)
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
        frame, step, steps = self.progress
        return min(1.0, (frame - self.first + step / steps) / max(1, self.frames - self.first))

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
