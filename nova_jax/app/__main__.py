"""Draws videos and pictures in a browser: an app for one person or many at once.

    python -m nova_jax.app
    python -m nova_jax.app --checkpoint=runs/mine --port=8000
    python -m nova_jax.app --host=0.0.0.0 --rows=16 --nooptions

Needs `pip install 'nova_jax[app]'`. It serves this machine alone unless --host says otherwise, and
fetches nothing from anywhere; what people draw is gone when it ends. See docs/app.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from absl import flags

from nova_jax import cli
from nova_jax.config import Count, Range
from nova_jax.errors import NovaError
from nova_jax.shared_flags import ModelFlags

MODEL = ModelFlags()
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to serve; 0.0.0.0 serves other machines.")
PORT = cli.define("port", Annotated[int, Range(1, 65535)], 7860, "Port to serve.")
ROWS = cli.define(
    "rows", Count, 4, "Videos that are drawn together; one alone takes as long as all of them."
)
WAITING = cli.define("waiting", Count, 64, "Most requests that wait; more are refused.")
EACH = cli.define("each", Count, 4, "Most requests of one person at a time.")
OPTIONS = flags.DEFINE_bool(
    "options", True, "Let people change how it is drawn; each new way compiles a program."
)

# Of the shipped model.
EXAMPLES = [
    "a red seven moves slowly to the left",
    "the digit 3 in blue moves up and bounces",
    "a green zero races quickly to the lower right corner",
    "magenta eight, right and back",
]


def main() -> None:
    """Loads the model and serves the page until it is interrupted."""
    try:
        from nova_jax.app import page
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("gradio", "gradio_client"):
            raise NovaError("the app needs gradio: pip install 'nova_jax[app]'") from error
        raise
    from nova_jax.app.studio import Studio

    pipeline = MODEL.load()
    shipped = not MODEL.named.get("checkpoint")
    with tempfile.TemporaryDirectory(prefix="nova_app_") as folder:
        studio = Studio(
            pipeline, MODEL.named, rows=ROWS.value, waiting=WAITING.value, each=EACH.value
        )
        built = page.build(studio, Path(folder), EXAMPLES if shipped else None, free=OPTIONS.value)
        print(f"http://{HOST.value}:{PORT.value} (Ctrl-C ends it)", flush=True)
        try:
            page.launch(built, HOST.value, PORT.value, block=True)
        except OSError as error:
            raise NovaError(
                f"port {PORT.value} of {HOST.value} cannot be served; give another --port or --host"
            ) from error
        finally:
            studio.close()


if __name__ == "__main__":
    cli.run(main)
