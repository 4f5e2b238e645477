"""The app as people see it: a real browser clicks through every tab, and looks nowhere else."""

import re
import shutil

import numpy as np
import pytest
from serving import app

from nova_jax import media

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium"),
]
pytest.importorskip("gradio", reason="the app needs gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

#: Milliseconds in which a request is done, on a busy machine.
PATIENCE = 240_000


@pytest.fixture(scope="module")
def address(untrained, tmp_path_factory):
    with app(untrained, tmp_path_factory.mktemp("app") / "log", "--rows=4") as address:
        yield address


@pytest.fixture
def page(address, tmp_path):
    """The page, and at the end that it asked nobody but the app for anything."""
    others, errors = [], []

    def own(route):
        mine = route.request.url.startswith((f"{address}/", "data:", "blob:"))
        if not mine:
            others.append(route.request.url)
        (route.continue_ if mine else route.abort)()

    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1360, "height": 1000}, accept_downloads=True)
        page.set_default_timeout(60_000)
        page.route("**/*", own)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/")
        page.get_by_role("tab", name="Text → picture").wait_for()
        yield page
        page.screenshot(path=tmp_path / "end.png", full_page=True)
        browser.close()
    assert others == [] and errors == []


def draw(page, tab, prompt):
    """Asks in a tab, and waits for what comes."""
    page.get_by_role("tab", name=tab).click()
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()


def drawn(page, prompt):
    caption = page.locator("figcaption", has_text=re.compile(f"{prompt} · seed"))
    caption.first.wait_for(timeout=PATIENCE)
    return caption.count()


def thumbnails(page, count):
    found = page.locator(".grid-container button.gallery-item, .grid-container .thumbnail-item")
    playwright.expect(found).to_have_count(count, timeout=60_000)
    return found


def download(page, suffix, folder):
    with page.expect_download() as started:
        page.locator(f'a[download$="{suffix}"]').first.click()
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def test_every_tab(page, tmp_path):
    """Shots of each are kept beside the test's files."""
    draw(page, "Text → picture", "a red one")
    assert drawn(page, "a red one") == 1
    page.screenshot(path=tmp_path / "picture.png", full_page=True)

    draw(page, "Text → video", "a blue two")
    assert drawn(page, "a blue two") == 1
    page.locator(".nova-screen video").wait_for()
    # It is played, in whole pixels, and loops.
    page.wait_for_function("document.querySelector('.nova-screen video').currentTime > 0")
    style = "getComputedStyle(document.querySelector('.nova-screen video')).imageRendering"
    assert page.evaluate(style) == "pixelated"
    video = download(page, ".mp4", tmp_path)
    assert media.read_video(video).shape == (3, 192, 192, 3)
    assert media.read_video(download(page, ".gif", tmp_path)).shape == (3, 192, 192, 3)
    page.screenshot(path=tmp_path / "video.png", full_page=True)

    page.get_by_role("tab", name="Picture → video").click()
    page.get_by_role("button", name="Take the last frame of the chosen one").click()
    page.locator("img[src*='last_frame']").wait_for()
    draw(page, "Picture → video", "a green three")
    assert drawn(page, "a green three") == 1
    given = download(page, "picture.png", tmp_path)
    assert media.read_image(given).shape == (16, 16, 3)  # in its own size again

    page.get_by_role("tab", name="Continue").click()
    page.get_by_label("Futures").last.fill("2")
    page.get_by_label("Futures").last.press("Enter")
    draw(page, "Continue", "a white four")
    assert drawn(page, "a white four") == 2
    page.screenshot(path=tmp_path / "continue.png", full_page=True)

    thumbnails(page, 5).last.click()
    assert drawn(page, "a red one") == 1
    page.get_by_role("button", name="Take over prompt and seed").click()
    playwright.expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red one")

    page.get_by_role("tab", name="Repaint").click()
    page.get_by_role("button", name="Take the last frame of the chosen one").click()
    canvas = page.locator("canvas:visible").first
    page.wait_for_timeout(2000)  # the picture fades in
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 20, middle[1] + 30, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.screenshot(path=tmp_path / "mask.png", full_page=True)
    draw(page, "Repaint", "a cyan five")
    assert drawn(page, "a cyan five") == 1
    mask = media.read_image(download(page, "mask.png", tmp_path))
    assert mask.shape == (16, 16, 3) and set(np.unique(mask)) == {0, 255}
    page.screenshot(path=tmp_path / "repaint.png", full_page=True)


def test_a_frame_fills_and_is_stopped(page, tmp_path):
    """What is seen on the way changes; what is there when it is stopped is kept."""
    page.get_by_text("How it is drawn").click()
    page.get_by_label("Diffusion steps").first.fill("100")
    page.get_by_label("Diffusion steps").first.press("Enter")
    page.get_by_role("tab", name="Text → video").click()
    page.get_by_label("Prompt", exact=True).fill("a red six")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("figcaption", has_text="frame 1 of 3, set").wait_for(timeout=PATIENCE)
    page.screenshot(path=tmp_path / "filling.png", full_page=True)
    page.get_by_role("button", name="Stop, and keep what is there").click()
    assert drawn(page, "a red six") == 1


def test_what_does_not_fit_is_a_line_in_a_corner(page, tmp_path):
    draw(page, "Text → picture", " ")
    toast = page.get_by_text("the prompt is empty; say what to show")
    toast.wait_for()
    page.screenshot(path=tmp_path / "toast.png")
    assert "Traceback" not in page.content()
    page.get_by_role("tab", name="Continue").click()
    page.get_by_label("Prompt", exact=True).fill("<b>bold</b>")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("you have made nothing yet; draw a picture or a video first").wait_for()
