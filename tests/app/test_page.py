"""The served app without a browser: many people at once, and what it refuses."""

import json
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import closing_page
import jax
import numpy as np
import pytest
from serving import app, assert_same

from nova_jax import media
from nova_jax.app import inputs
from nova_jax.live import play
from nova_jax.pipeline import NovaPipeline

pytest.importorskip("gradio", reason="the app needs gradio")
import httpx  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

PEOPLE, EACH = 20, 5
SAME = (5.0, 2, 3, 1.5)  # the model's own options


@pytest.fixture(scope="module")
def served(untrained, tmp_path_factory):
    log = tmp_path_factory.mktemp("app") / "log"
    with app(untrained, log, "--rows=4") as address:
        yield address, log


@pytest.fixture
def client(served, tmp_path) -> Client:
    return connect(served[0], tmp_path)


def connect(address: str, folder: Path) -> Client:
    """A client with its own session, which waits as long as a busy machine takes."""
    patience = {"timeout": 600}
    return Client(address, verbose=False, download_files=folder, httpx_kwargs=patience)


def ask(client, api, *own, prompt="a red one", seed=1, fresh=False, negative="", options=SAME):
    """The page after a request: screen, gallery, files, command, Python, seed."""
    return client.predict(*own, prompt, seed, fresh, negative, *options, api_name=api)


def test_twenty_people_ask_a_hundred_times(served, untrained, tmp_path):
    """Nothing is lost or mixed up: everyone has exactly the pictures of their own requests."""
    found: dict[tuple[int, int], Path] = {}
    failures: list[BaseException] = []

    def person(number: int) -> None:
        try:
            client = connect(served[0], tmp_path / str(number))
            for request in range(EACH):
                prompt, seed = f"person {number} asks", 100 * number + request
                answer = ask(client, "/text_to_picture", 1, prompt=prompt, seed=seed)
                assert f"{prompt} · seed {seed}" in answer[0]
                assert f"--seed={seed} " in answer[3] and f"'{prompt}'" in answer[3]
                (file,) = answer[2]
                found[number, request] = Path(file)
                assert len(answer[1]) == request + 1  # one's own gallery
        except BaseException as error:
            failures.append(error)

    people = [threading.Thread(target=person, args=[number]) for number in range(PEOPLE)]
    for thread in people:
        thread.start()
    for thread in people:
        thread.join()
    assert not failures
    contents = {path.read_bytes() for path in found.values()}
    assert len(found) == PEOPLE * EACH == len(contents)
    pipeline = NovaPipeline.from_checkpoint(untrained, devices=jax.devices()[:1])
    for (number, request), path in found.items():
        seed = 100 * number + request
        session = pipeline.start(f"person {number} asks", num_frames=1, seed=seed)
        (frames,) = play(session, 1, rows=4)
        assert_same(media.read_image(path), media.enlarge(frames[0, 0]))


def test_what_somebody_has_made_goes_on(client):
    first = ask(client, "/text_to_video", 3)
    assert [Path(file).suffix for file in first[2]] == [".mp4", ".gif"]
    more = ask(client, "/continue_video", None, 3, 2, prompt="a blue two", seed=2)
    assert more[0].count("<video") == 2 and len(more[1]) == 3
    assert "--prompt_schedule='0:a red one;3@2:a blue two'" in more[3]
    assert len(media.read_video(more[2][0])) == 6


def test_a_file_is_the_beginning(client, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    file = media.save(tmp_path / "picture.png", media.encode_png(picture))
    begun = ask(client, "/picture_to_video", handle_file(file), 3)
    assert "--image=picture.png" in begun[3]
    given = next(file for file in begun[2] if file.endswith("picture.png"))
    assert np.array_equal(media.read_image(given), picture)


@pytest.mark.parametrize(
    ("own", "changes", "message"),
    [
        ((1,), {"prompt": " "}, "the prompt is empty; say what to show"),
        ((1,), {"prompt": "a" * 1001}, "the prompt has 1001 characters"),
        ((1,), {"seed": 2**32}, "Value 4294967296 is greater than maximum value 4294967295"),
        ((2,), {"seed": 2**32 - 1}, "seed is 4294967296; it must be at least 0 and at most"),
        ((5,), {}, "Value 5 is greater than maximum value 4"),
        ((1,), {"options": (5.0, 2, 3, 99)}, "Value 99 is greater than maximum value 10"),
        ((1,), {"options": (5.0, 2.5, 3, 1.5)}, "sets of a frame is 2.5; it must be int"),
    ],
)
def test_bad_input_is_one_line(client, own, changes, message):
    with pytest.raises(AppError, match=message) as refused:
        ask(client, "/text_to_picture", *own, **changes)
    assert "Traceback" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/a.png", "https://example.com/a.png"])
def test_nothing_is_fetched(client, place):
    with pytest.raises(AppError, match="Files are uploaded, not fetched"):
        given = {"path": place, "url": place, "meta": {"_type": "gradio.FileData"}}
        ask(client, "/picture_to_video", given, 3)


def test_files_are_no_others(client, tmp_path):
    with pytest.raises(AppError) as refused:
        given = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
        ask(client, "/picture_to_video", given, 3)
    assert "root:" not in str(refused.value)
    (tmp_path / "fake.png").write_text("no picture")
    with pytest.raises(AppError, match="The file cannot be read"):
        ask(client, "/picture_to_video", handle_file(tmp_path / "fake.png"), 3)
    (tmp_path / "fake.mp4").write_text("no video")
    with pytest.raises(AppError, match="it is damaged or no video"):
        ask(client, "/continue_video", handle_file(tmp_path / "fake.mp4"), 3, 1)


def test_large_files_are_refused(served):
    file = {"files": ("a.png", bytes(inputs.LARGEST_FILE + 1))}
    answer = httpx.post(f"{served[0]}/gradio_api/upload", files=file, timeout=600)
    assert answer.status_code == 413


def test_prompts_are_text_and_nothing_else(client):
    prompt = "<img src=x onerror=alert(1)>"
    screen = ask(client, "/text_to_picture", 1, prompt=prompt)[0]
    assert "<img src=x" not in screen and "&lt;img src=x onerror=alert(1)&gt;" in screen
    with pytest.raises(AppError) as refused:
        ask(client, "/continue_video", None, 3, 1, prompt=f"{prompt};")
    assert "<img" not in str(refused.value)


def test_the_page_asks_for_nothing_from_elsewhere(served):
    with urllib.request.urlopen(f"{served[0]}/config") as answer:
        config = json.loads(answer.read())
    assert config["analytics_enabled"] is False


def test_a_page_that_is_closed_stops_its_requests(untrained, tmp_path):
    """Its rows are for others then."""
    program = [sys.executable, closing_page.__file__, str(untrained), str(tmp_path)]
    subprocess.run(program, check=True, timeout=600)


def test_what_is_missing_or_taken_is_one_line(served, untrained):
    hidden = "import runpy, sys; sys.modules['gradio'] = None; sys.argv = ['app']; "
    hidden += "runpy.run_module('nova_jax.app', run_name='__main__', alter_sys=True)"
    taken = [f"--checkpoint={untrained}", f"--port={served[0].rpartition(':')[2]}"]
    for command, message in (
        (["-c", hidden], "the app needs gradio: pip install 'nova_jax[app]'"),
        (["-m", "nova_jax.app", *taken], "cannot be served; give another --port or --host"),
    ):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.count("\n") == 1
