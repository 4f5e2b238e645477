"""One process at a time where results go: it holds a lock file there, which says who it is.

Where files can be locked (local disks; NFS, Lustre and GPFS as they are mostly mounted) the kernel
refuses the lock to others, and takes it away when its owner ends, however that ends. Object stores
have no locks, and there are file systems that refuse them or keep them from other hosts. So the
owner also writes a sign of life every few seconds: what another host has left behind, or anybody
where nothing is locked, is free when none comes for a minute. Clocks are not compared.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import IO

from etils.epath import Path

from nova_jax.errors import NovaError

_BEAT, _DEAD_AFTER = 10.0, 60.0  # seconds between signs of life, and without one until death
_DYING = 3.0  # seconds that a process which was killed may take to end
_SETTLE = 2.0  # seconds after which two that wrote the file at once see who was last

logger = logging.getLogger(__name__)


@contextmanager
def hold(path: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a lock file, and removes it at the end; a process that is killed leaves it to the next.

    A process that gave no sign of life for so long that another one took its place is ended at
    once, with exit code 2: it must not write any more.

    Args:
        path: the lock file; its directory is made if it is missing, and goes if it stays empty.

    Raises:
        NovaError: another process holds it; nothing is changed then.
    """
    path = Path(path)
    new = not path.parent.exists()
    host = f" on {socket.gethostname()} since "
    me = f"process {os.getpid()}{host}{_now()}"
    locked = _kernel_lock(path)
    with locked or nullcontext():
        left = _read(path)
        if left and not (locked and host in left):
            _wait_for_silence(path, left)
        _write(path, me)
        if not locked:
            time.sleep(_SETTLE)
            if _owner(path) != me:
                raise _in_use(path)
        done = threading.Event()
        beat = threading.Thread(target=_give_signs_of_life, args=(path, me, done), daemon=True)
        beat.start()
        try:
            yield
        finally:
            done.set()
            beat.join()
            if _owner(path) == me:
                path.unlink()
                if new:
                    with suppress(OSError):  # there is something in it
                        os.rmdir(path.parent)


@contextmanager
def claim_share(out: os.PathLike[str], shard: tuple[int, int]) -> Iterator[None]:
    """Keeps other processes from shard (i, n) of the work in `out`; others of the n are free.

    Raises:
        NovaError: another process is at some of it; nothing is changed then.
    """
    index, count = shard
    with hold(Path(out) / f"lock-{index}-of-{count}"):
        for other in Path(out).glob("lock-*"):
            if not other.name.endswith(f"-of-{count}"):  # it overlaps with this shard
                with hold(other):
                    pass
        yield


def _kernel_lock(path: Path) -> IO[str] | None:
    """The file, locked until it is closed; None where files cannot be locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    while "://" not in str(path):
        file = open(path, "a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass  # what was opened has been removed by its owner
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                file.close()
                break
            if time.monotonic() > began + _DYING:
                file.close()
                raise _in_use(path) from error
            time.sleep(0.1)
        file.close()
    return None


def _wait_for_silence(path: Path, left: str) -> None:
    """Returns when the owner gives no sign of life.

    Raises:
        NovaError: it gave one.
    """
    who, began = left.partition("\n")[0], time.monotonic()
    logger.warning("%s was left by %s; is that alive? Watching it for a minute", path, who)
    while (found := _read(path)) and time.monotonic() < began + _DEAD_AFTER:
        if found != left:
            raise _in_use(path)
        time.sleep(_BEAT / 10)


def _give_signs_of_life(path: Path, me: str, done: threading.Event) -> None:
    while not done.wait(_BEAT):
        try:
            if (owner := _owner(path)) != me:
                print(f"error: {path} was taken by {owner or 'nobody'}, not me", file=sys.stderr)
                os._exit(2)
            _write(path, me)
        except Exception as error:  # of any storage; the next may succeed
            logger.warning("%s cannot be written: %s", path, error)


def _write(path: Path, me: str) -> None:
    text = f"{me}\nalive at {_now()}\n"
    if "://" in str(path):
        path.write_text(text)
        return
    with open(path, "r+") as file:  # stays the file that is locked, and is never empty
        file.write(text)
        file.truncate()


def _read(path: Path) -> str:
    with suppress(FileNotFoundError):
        return path.read_text()
    return ""


def holder(path: Path) -> str:
    """Who holds a lock file, since when, and the last sign of life; empty if nobody does.

    A process that was killed leaves them behind: then the last sign is an old one.
    """
    return ", ".join(_read(path).splitlines())


def _owner(path: Path) -> str:
    return _read(path).partition("\n")[0]


def _now() -> str:
    return datetime.now(UTC).isoformat(" ", "seconds")


def _in_use(path: Path) -> NovaError:
    return NovaError(
        f"{path.parent} is in use by {_owner(path) or 'a process that begins'}; let it end, stop "
        f"it, or choose another directory (if its host is gone for good, delete {path})"
    )
