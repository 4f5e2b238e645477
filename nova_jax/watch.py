"""Watching a frame fill from asynchronous code, such as that of an app.

async for seen in watch(pipeline, "a red seven moves to the left", seed=1):
    ...  # a Partial after each AR step, at the end the Output
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from nova_jax.sampling.steps import Partial

Made = TypeVar("Made")


class _Stopped(Exception):
    """Nobody looks any more."""


async def watch(
    call: Callable[..., Made], *arguments: Any, **options: Any
) -> AsyncGenerator[Partial | Made, None]:
    """What a call of a pipeline makes, and before it its frames after each AR step.

    The call runs in a thread of its own and waits for nobody: whoever looks less often than steps
    are made sees the latest one. When the looking ends, the call ends after its next step.

    Args:
        call: takes `on_step`, such as a `nova_jax.pipeline.NovaPipeline`.
        *arguments, **options: of the call.

    Raises:
        NovaError: as the call.
    """
    loop, changed, stop = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    latest: list[Partial] = []

    def on_step(partial: Partial) -> None:
        if stop.is_set():
            raise _Stopped
        latest[:] = [partial]
        loop.call_soon_threadsafe(changed.set)

    made = asyncio.create_task(asyncio.to_thread(call, *arguments, **options, on_step=on_step))
    made.add_done_callback(lambda _: changed.set())
    try:
        while not made.done():
            await changed.wait()
            changed.clear()
            if latest:
                yield latest.pop()
        yield made.result()
    finally:
        stop.set()
        if not made.done():
            await asyncio.wait([made])
        if not made.cancelled():
            made.exception()  # so that nobody is told of a `_Stopped` that nobody waits for
