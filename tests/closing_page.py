"""Closes a page whose video is far from done: `python tests/closing_page.py MODEL FOLDER`.

In a process of its own, for Gradio's threads leave event loops and sockets open. Fails if the video
is still drawn minutes later.
"""

import sys
import time
from pathlib import Path

from serving import free_port

FRAMES = 3000


def main(model: str, folder: str) -> None:
    import httpx

    from nova_jax.app import page
    from nova_jax.app.events import Events
    from nova_jax.app.studio import Studio
    from nova_jax.pipeline import NovaPipeline

    class Endless(Events):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.lengths = [FRAMES]

    page.Events = Endless
    pipeline = NovaPipeline.from_checkpoint(model)
    pipeline.sampling = pipeline.sampling_with(window=3)
    studio, port = Studio(pipeline, rows=1), free_port()
    built = page.build(studio, Path(folder))
    page.launch(built, "127.0.0.1", port, block=False)
    api, mine = f"http://127.0.0.1:{port}/gradio_api", {"session_hash": "closing"}
    (event,) = (i for i, event in built.fns.items() if event.api_name == "text_to_video")
    given = [FRAMES, None, "a red one", 1, False, "", 5.0, 2, 3, 1.5]
    httpx.post(f"{api}/queue/join", json={"data": given, "fn_index": event, **mine}, timeout=60)
    with httpx.stream("GET", f"{api}/queue/data", params=mine, timeout=600) as events:
        next(line for line in events.iter_lines() if f" of {FRAMES}" in line)
        (job,) = studio.of("closing")
    deadline = time.monotonic() + 240
    while job.state != "done":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert job.stopping and job.frame < FRAMES and not studio.of("closing")
    built.close()
    studio.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
