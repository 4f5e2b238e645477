"""Sessions from the command line: prompts that change on time, files that grow with the video."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from nova_jax import media
from nova_jax.errors import NovaError
from nova_jax.pool import SessionPool
from nova_jax.session import Session


@dataclasses.dataclass(frozen=True)
class Cue:
    """A prompt, and the latent frame of the video, from 0, that it holds from.

    Attributes:
        frame, prompt: both.
        seed: what is drawn with from there on; None for what was drawn with before.
    """

    frame: int
    prompt: str
    seed: int | None = None


def read_schedule(text: str) -> list[Cue]:
    """Cues from "FRAME:PROMPT;FRAME@SEED:PROMPT...", in the order of frames.

    Raises:
        NovaError: it is not written so, or frames do not rise.
    """
    cues: list[Cue] = []
    for part in text.split(";"):
        start, _, prompt = part.strip().partition(":")
        number, at, seed = (text.strip() for text in start.partition("@"))
        if not (number.isdecimal() and prompt.strip() and (seed.isdecimal() if at else True)):
            raise NovaError(
                f'prompt_schedule has {part.strip()!r}; write it as "0:a red seven;16:a blue seven"'
            )
        cues.append(Cue(int(number), prompt.strip(), int(seed) if at else None))
    for one, other in itertools.pairwise(cues):
        if other.frame <= one.frame:
            raise NovaError(
                f"prompt_schedule has frame {other.frame} after frame {one.frame}; let frames rise"
            )
    return cues


def play(
    session: Session, count: int, cues: Sequence[Cue] = (), *, rows: int | None = None
) -> Iterator[UInt8[np.ndarray, "b F H W 3"]]:
    """Draws so many latent frames, under each prompt from its frame on; gives pixels as they come.

    Args:
        session: what goes on.
        count: latent frames.
        cues: prompts and seeds that change on the way.
        rows: draw in a pool of so many rows, as `nova_jax.app` does: the last bit of a sample
            depends on how many are made together.

    Raises:
        NovaError: a cue is for no frame that is drawn, or see `Session.stream`.
    """
    first, at = session.frame, {cue.frame: cue for cue in cues}
    if missed := next((frame for frame in at if not first <= frame < first + count), None):
        raise NovaError(
            f"prompt_schedule has frame {missed}; latent frames {first} to {first + count - 1} are "
            "drawn"
        )
    stream = session.latents(count) if rows is None else _pooled(session, rows)
    for frame in tqdm(range(first, first + count), unit="frame"):
        if frame in at:
            turn(session, at[frame])
        yield from session.show(next(stream))
    yield from session.show(None)


def turn(session: Session, cue: Cue) -> None:
    """Lets a session go on as a cue says, wherever it is."""
    session.prompt(cue.prompt if session.takes_text else int(cue.prompt))
    if cue.seed is not None:
        session.reseed(cue.seed)


def _pooled(session: Session, rows: int) -> Iterator[Float[jax.Array, "b h w c"]]:
    """Latent frames of a session that has a pool for itself, by the programs of one watched."""
    pool = SessionPool(session.pipeline, rows, on_step=lambda *_: None)
    pool.join(session)
    return (latents for ((_, latents),) in iter(pool.step, None))


class ClipFile:
    """An MP4 file that grows with its video, and can be played however far it has come.

    It is cut into fragments of a second, each whole in itself; nothing that exists is overwritten.

    Args:
        path: its name; with a number before the suffix if that exists.
        fps: frames per second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in media.numbered(path):
            try:
                open(name, "xb").close()
            except FileExistsError:
                continue
            self.path = name
            break
        self._fps = fps
        self._ffmpeg: subprocess.Popen[bytes] | None = None

    def write(self, frames: media.Clip) -> None:
        """Takes the frames that follow.

        Raises:
            OSError: ffmpeg fails.
        """
        even = media.even_sides(frames)
        if self._ffmpeg is None:
            self._ffmpeg = self._start(even.shape[1:3])
        assert self._ffmpeg.stdin is not None
        try:
            self._ffmpeg.stdin.write(even.tobytes())
            self._ffmpeg.stdin.flush()
        except BrokenPipeError:
            self.close()

    def _start(self, size: tuple[int, ...]) -> subprocess.Popen[bytes]:
        second = str(max(1, round(self._fps)))
        fragments = ["-g", second, "-movflags", "+frag_keyframe+empty_moov+default_base_moof"]
        command = [
            *media.raw_to_h264(size, self._fps), *fragments, "-flush_packets", "1", "-y",
            f"file:{self.path}",
        ]  # fmt: skip
        # In a group of its own: what interrupts this process leaves it to finish the file.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def close(self) -> None:
        """Finishes the file.

        Raises:
            OSError: ffmpeg fails.
        """
        if self._ffmpeg is None:
            return
        ffmpeg, self._ffmpeg = self._ffmpeg, None
        error = ffmpeg.communicate()[1]
        if ffmpeg.returncode:
            raise OSError(f"ffmpeg failed: {error.decode(errors='replace').strip()}")

    def __enter__(self) -> ClipFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
