"""The page: on the left what is asked for, on the right what is drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio_client.utils import is_http_url_like
from PIL import Image

from nova_jax.app import inputs, screen
from nova_jax.app.events import CANVAS, CONTROLS, MOST, Events
from nova_jax.app.gallery import Shelf
from nova_jax.app.studio import Studio

Upload = TypeVar("Upload", gr.Image, gr.File, gr.ImageEditor)

#: The system's own fonts: nothing is fetched.
THEME = gr.themes.Soft(
    primary_hue="indigo",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
CSS = f"""{screen.CSS}
.nova-side {{ gap: 12px; }}
.nova-tabs button[role=tab] {{ padding: 0 10px; }}
.nova-yours .grid-container {{ padding-top: 28px; }}
.nova-files .label-clear-button, .nova-yours .caption-label, footer {{ display: none !important; }}
"""


def build(
    studio: Studio, folder: Path, examples: list[str] | None = None, *, free: bool = True
) -> gr.Blocks:
    """The page of a studio.

    Args:
        studio: what draws.
        folder: for files that are shown, uploaded and downloaded.
        examples: prompts to begin with.
        free: whether people may change how samples are drawn.

    Returns:
        The page, to be launched with `launch`.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    Image.MAX_IMAGE_PIXELS = inputs.LARGEST_PICTURE
    events = Events(studio, folder, free=free)
    with gr.Blocks(title="NOVA", analytics_enabled=False, delete_cache=(3600, 4 * 3600)) as page:
        shelf = gr.State(Shelf(), delete_callback=Shelf.clear)
        with gr.Row():
            with gr.Column(scale=1, min_width=400, elem_classes="nova-side"):
                gr.HTML(_title(studio))
                prompt = gr.Textbox(
                    label="Prompt",
                    placeholder="What to show",
                    lines=2,
                    max_length=inputs.LONGEST_PROMPT,
                    value=examples[0] if examples else "",
                )
                if examples:
                    gr.Examples(examples[1:], prompt, label="Or")
                with gr.Tabs(elem_classes="nova-tabs"):
                    tabs = _tabs(events)
                common = [shelf, prompt, *_options(events)]
            with gr.Column(scale=1, min_width=400, elem_classes="nova-side"):
                result = _result()
        _connect(events, tabs, common, result)
    return page


def launch(page: gr.Blocks, host: str, port: int, *, block: bool) -> None:
    """Serves a page, to this machine or to others, and asks nobody else for anything.

    Raises:
        OSError: the port is not free.
    """
    page.queue(max_size=256, default_concurrency_limit=64)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not block,
        quiet=True,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=inputs.LARGEST_FILE,
        theme=THEME,
        css=CSS,
    )


def _title(studio: Studio) -> str:
    pipeline = studio.pipeline
    height, width = pipeline.size
    return (
        "<h2>NOVA</h2>Videos frame by frame, each frame set of tokens by set of tokens. This model "
        f"makes {width} × {height} pixels, {pipeline.fps:g} frames a second."
    )


def _tabs(events: Events) -> dict[str, Any]:
    """A tab for each way to begin; gives what is in them."""
    video, parts = events.studio.pipeline.config.is_video, {}

    def lengths(label: str) -> gr.Radio:
        return gr.Radio(events.lengths, value=events.lengths[0], label=label)

    def draw() -> gr.Button:
        return gr.Button("Draw", variant="primary")

    with gr.Tab("Text → picture"):
        parts["pictures"] = gr.Slider(1, MOST, 1, step=1, label="Pictures")
        parts["text_to_picture"] = draw()
    with gr.Tab("Text → video", visible=video):
        parts["frames"] = lengths("Frames")
        parts["text_to_video"] = draw()
    with gr.Tab("Picture → video", visible=video):
        parts["image"] = _only_uploads(
            gr.Image(
                label="First frame",
                type="filepath",
                image_mode=None,
                height=240,
                sources=["upload", "clipboard"],
                buttons=[],
            )
        )
        parts["take_image"] = gr.Button("Take the last frame of the chosen one", size="sm")
        parts["image_frames"] = lengths("Frames")
        parts["picture_to_video"] = draw()
    with gr.Tab("Continue", visible=video):
        gr.Markdown("The chosen one of yours goes on under the prompt above.")
        parts["video"] = _only_uploads(
            gr.File(label="Or a video file", file_types=["video", ".gif"], height=120)
        )
        parts["more_frames"] = lengths("More frames")
        parts["futures"] = gr.Slider(1, MOST, 1, step=1, label="Futures")
        parts["continue_video"] = draw()
    with gr.Tab("Repaint"):
        parts["canvas"] = _only_uploads(
            gr.ImageEditor(
                label="Mark what is to change",
                image_mode="RGBA",
                sources=["upload", "clipboard"],
                transforms=[],
                layers=False,
                format="png",
                canvas_size=(CANVAS, CANVAS),
                brush=gr.Brush(default_size=60, colors=["#ff2d78"], color_mode="fixed"),
                buttons=[],
            )
        )
        parts["take_canvas"] = gr.Button("Take the last frame of the chosen one", size="sm")
        parts["repaint_picture"] = draw()
    return parts


def _options(events: Events) -> list[Any]:
    """What all tabs have."""
    with gr.Row(equal_height=True):
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
        fresh = gr.Checkbox(True, label="Another one each time")
    with gr.Accordion("How it is drawn", open=False, visible=events.free):
        negative = gr.Textbox(
            "",
            label="Negative prompt",
            placeholder="What to stay away from",
            max_length=inputs.LONGEST_PROMPT,
        )
        with gr.Group():
            controls = [
                gr.Slider(each.least, each.most, events.own[name], step=each.step, label=each.label)
                for name, each in CONTROLS.items()
            ]
        gr.Markdown("Values that are new to the app compile a program first, and others wait.")
    return [seed, fresh, negative, *controls]


def _result() -> dict[str, Any]:
    """What is drawn, its files, how it is made again, and everything of one person."""
    parts: dict[str, Any] = {}
    parts["screen"] = gr.HTML(
        screen.empty("What is drawn appears here, set of tokens by set."), label="Screen"
    )
    with gr.Row():
        parts["stop"] = gr.Button("Stop, and keep what is there", size="sm")
        parts["take_over"] = gr.Button("Take over prompt and seed", size="sm")
    parts["gallery"] = gr.Gallery(
        label="Yours",
        columns=5,
        fit_columns=False,
        height=190,
        elem_classes="nova-yours",
        object_fit="contain",
        allow_preview=False,
        format="png",
        interactive=False,
        buttons=[],
    )
    parts["files"] = gr.File(
        label="Files", file_count="multiple", interactive=False, elem_classes="nova-files"
    )
    with gr.Accordion("The same again, to the byte", open=False):
        code: dict[str, Any] = {"wrap_lines": True, "show_line_numbers": False, "lines": 1}
        parts["command"] = gr.Code(label="Command", language="shell", **code)
        parts["python"] = gr.Code(label="Python", language="python", **code)
    return parts


def _connect(
    events: Events, tabs: dict[str, Any], common: list[Any], result: dict[str, Any]
) -> None:
    """What happens when."""
    shelf, prompt, seed, fresh, *_ = common
    names = ("screen", "gallery", "files", "command", "python")
    shown = [*(result[name] for name in names), seed]
    hidden: Any = {"show_progress": "hidden"}
    slow: Any = {"concurrency_limit": None, **hidden}
    for name, own in {
        "text_to_picture": ["pictures"],
        "text_to_video": ["frames"],
        "picture_to_video": ["image", "image_frames"],
        "continue_video": ["video", "more_frames", "futures"],
        "repaint_picture": ["canvas"],
    }.items():
        asked = [*(tabs[part] for part in own), *common]
        tabs[name].click(getattr(events, name), asked, shown, api_name=name, **slow)
    quick: Any = {"queue": False, **hidden}
    result["stop"].click(events.stop, api_name="stop", **quick)
    quick["api_visibility"] = "private"
    result["gallery"].select(events.choose, shelf, shown, **quick)
    result["take_over"].click(events.take_over, shelf, [prompt, seed, fresh], **quick)
    tabs["take_image"].click(events.last_picture, shelf, tabs["image"], **quick)
    tabs["take_canvas"].click(events.canvas, shelf, tabs["canvas"], **quick)


def _only_uploads(part: Upload) -> Upload:
    """Has a part of the page take files that were uploaded, and no addresses to fetch them from.

    What is no picture is said in one line.
    """
    move, read = part.async_move_resource_to_block_cache, part.preprocess

    async def moved(place: Any) -> Any:
        if isinstance(place, str) and is_http_url_like(place):
            raise gr.Error("Files are uploaded, not fetched.", print_exception=False)
        return await move(place)

    def preprocess(payload: Any) -> Any:
        try:
            return read(payload)
        except gr.Error:
            raise
        except Exception as error:
            told = "The file cannot be read; give a PNG, JPEG or WebP picture."
            raise gr.Error(told, print_exception=False) from error

    part.async_move_resource_to_block_cache = moved
    part.preprocess = preprocess
    return part
