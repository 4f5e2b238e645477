"""A pool of sessions that advance together: one batch, whatever frame each of them is at.

    pool = SessionPool(pipeline, rows=8)
    one = pool.join(pipeline.start("a red seven moves to the left", seed=1))
    two = pool.join(pipeline.start("a blue four moves up", seed=2))
    for session, frames in pool.frames(): ...    # the next pixels of each
    pool.leave(one)

All that a sample is made from is in its own row of the state, also the number of its frame. So
samples of different videos fill one batch, and each becomes what it becomes alone, up to rounding.
The batch has a fixed number of rows: who joins or leaves changes no shape, and compiles nothing.

Letters: B samples of a session, R rows of the pool, F pixel frames, H×W pixels, C latent channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Float, UInt8

from nova_jax.config import Count, convert
from nova_jax.distributed.mesh import batch_sharding, replicated
from nova_jax.errors import NovaError
from nova_jax.sampling.denoise import KeyedNoise
from nova_jax.sampling.state import VideoState, apart, join
from nova_jax.sampling.steps import Partial
from nova_jax.sampling.video import frame_by_frame
from nova_jax.session import Maker, Session

Tree = TypeVar("Tree")


class SessionPool:
    """Sessions of one pipeline that advance together, a latent frame at a time.

    Between two steps members are as free as outside: their prompts and seeds may change, they may
    be forked and saved. The first member says how frames are drawn and how many are looked back at;
    when all have left, the next one does.

    Args:
        pipeline: that the sessions are of.
        rows: R, most samples of all members together. A step costs as much with empty rows, which
            repeat the last sample.
        on_step: called after each AR step with a `nova_jax.sampling.steps.Partial` of all rows, and
            with the sessions that the first of them are of.

    Raises:
        NovaError: rows is no positive number.
    """

    def __init__(
        self,
        pipeline: Maker,
        rows: int = 8,
        on_step: Callable[[Partial, Sequence[Session]], None] | None = None,
    ) -> None:
        self.pipeline, self.rows = pipeline, convert(Count, rows, "rows")
        self.on_step = on_step
        self._members: list[Session] = []
        self._drawn: Sequence[Session] = []  # now, beside each other

    @property
    def members(self) -> tuple[Session, ...]:
        """The sessions, in the order in which they joined."""
        return tuple(self._members)

    @property
    def free(self) -> int:
        """Rows that nobody has."""
        return self.rows - sum(map(len, self._members))

    def join(self, session: Session) -> Session:
        """Takes a session in, at whatever frame it is.

        Returns:
            The session.

        Raises:
            NovaError: it is a member, it is too large or does not fit the others, or the pipeline's
                devices cannot share the rows.
        """
        if session in self._members:
            raise NovaError("the session is in the pool already; join its fork for another future")
        if session.pipeline is not self.pipeline:
            raise NovaError("the session is of another pipeline; join a pool of that one")
        if not isinstance(session.state.noise, KeyedNoise):
            raise NovaError("a session with given noise fills a batch of its own; stream it alone")
        if len(session) > self.free:
            raise NovaError(
                f"the session has {len(session)} samples, and {self.free} of the pool's "
                f"{self.rows} rows are free; let another session leave, or join another pool"
            )
        if self._members:
            _check_fit(session, self._members[0])
        else:
            self._prepare(session)
        self._members.append(session)
        return session

    def leave(self, session: Session) -> None:
        """Lets a session go, which may go on alone.

        Raises:
            NovaError: it is no member.
        """
        if session not in self._members:
            raise NovaError("the session is not in the pool; leave with one that joined")
        self._members.remove(session)

    def step(self) -> list[tuple[Session, Float[jax.Array, "b h w c"]]]:
        """Advances every member by one latent frame.

        Returns:
            Each member with its latents, float32 `[B, h, w, C]`, which `Session.show` takes.

        Raises:
            NovaError: a member has no place for more frames. It has left, and no other one was
                advanced: the next step goes on without it.
        """
        if not self._members:
            return []
        rows: dict[Session, list[VideoState]] = {}
        for session in self.members:
            try:
                rows[session] = apart(session.ready())
            except NovaError:
                self.leave(session)
                raise
        made: dict[Session, Any] = {}
        for group in self._groups():
            self._drawn, together = group, [row for session in group for row in rows[session]]
            drawn = iter(apart(self._program(self._joined(together), None)))
            made |= {session: join([next(drawn) for _ in rows[session]]) for session in group}
        results = []
        for session in self._members:
            own, frame = made[session]
            # A member goes back to its own devices, where it can be changed, or go on alone.
            home = session.state.frame.sharding
            session.advanced(_moved(own, home))
            results.append((session, _moved(frame, home)))
        return results

    def _groups(self) -> list[list[Session]]:
        """Members by the program of their next frame: that of first frames may be another one."""
        if self._members[0].sampling.later_inference_steps is None:
            return [self._members]
        groups = [[s for s in self._members if bool(s.frame) is later] for later in (False, True)]
        return [group for group in groups if group]

    def frames(self) -> Iterator[tuple[Session, UInt8[np.ndarray, "b F H W 3"]]]:
        """Advances every member by one latent frame, and gives pixels.

        As with `Session.stream`, a codec with windows in time gives the pixels of a window when it
        is full, and what a video begins with comes first: a member may be given not at all, or more
        than once.

        Raises:
            NovaError: see `step`; or some member's pixels are not finite: it has left, and the
                others were given first.
        """
        shown, failure = [], None
        for session, latents in self.step():
            try:
                shown += [(session, frames) for frames in session.show(latents)]
            except NovaError as error:
                self.leave(session)
                failure = error
        yield from shown
        if failure is not None:
            raise failure

    def _prepare(self, session: Session) -> None:
        """Makes the program for sessions like this one."""
        placement, sampling = self.pipeline.placement, session.sampling
        mesh, model = placement.shared(self.rows, sampling.sampler)
        self._everywhere, self._shared = replicated(mesh), batch_sharding(mesh)
        self._program = frame_by_frame(
            model,
            self._joined(apart(session.state)),
            self.pipeline.schedule,
            sampling,
            on_step=None if self.on_step is None else self._look,
            parallelism=placement.parallelism(mesh),
        )

    def _look(self, partial: Partial) -> None:
        assert self.on_step is not None
        self.on_step(partial, self._drawn)

    def _joined(self, rows: Sequence[VideoState]) -> VideoState:
        """The state of R rows, of which the last are repeated."""
        full = [*rows, *[rows[-1]] * (self.rows - len(rows))]
        return _moved(join(_moved(full, self._everywhere)), self._shared)


def _check_fit(session: Session, member: Session) -> None:
    """Raises a `NovaError` if two sessions cannot be advanced by one program."""
    one, other = (dataclasses.asdict(each.sampling) for each in (session, member))
    if names := [name for name in one if one[name] != other[name]]:
        raise NovaError(
            f"the session's frames are drawn otherwise than the pool's ({', '.join(names)}); join "
            "another pool"
        )
    if session.state.slots != member.state.slots:
        raise NovaError(
            f"the session has {session.state.slots} slots for frames, the pool's have "
            f"{member.state.slots}; join another pool, or start it with the same max_latent_length "
            "(num_frames)"
        )
    if _row(session.state) != _row(member.state):
        raise NovaError(
            "the session's conditions have other shapes or types than the pool's; join another pool"
        )


def _row(state: VideoState) -> Any:
    """Shapes and types of one sample's part of a state."""
    leaves, structure = jax.tree.flatten(state)
    return structure, [(leaf.shape[1:], leaf.dtype) for leaf in leaves]


def _moved(tree: Tree, sharding: Sharding) -> Tree:
    """Arrays moved to where they should lie; asking costs less than moving what is there."""
    leaves = jax.tree.leaves(tree)
    if all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf in leaves):
        return tree
    return jax.device_put(tree, sharding)
