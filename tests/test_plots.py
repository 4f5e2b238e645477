"""Plots are pictures of their lines, and say what they need."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from nova_jax.errors import NovaError
from nova_jax.plots import Line, encode_plot


def test_panels_show_their_lines_and_bands():
    y = np.array([1.0, 0.5, 0.7])
    band = Line([1, 2, 3], y, "mean", (y - 0.1, y + 0.1))
    panels = {f"panel {number}": [Line([1, 2, 3], y / 2), band] for number in range(5)}
    shown = dict.fromkeys(panels, (0.0, 2.0))
    data = encode_plot(panels, "title", "frame", shown, mark=(2.0, "middle"))
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] > pixels.shape[0] > 500
    blue = pixels[..., 2] - pixels[..., 0] > 100
    quarters = np.array_split(blue, 4, axis=1)
    found = [part.any() for part in quarters]
    assert all(found), "a line in each panel of the first row"
    assert quarters[0][len(blue) // 2 :].any(), "and in the one below"


def test_without_matplotlib_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NovaError, match=r"pip install 'nova_jax\[plots\]'"):
        encode_plot({"y": [Line([1], [1])]}, "title", "frame", {"y": (0.0, 1.0)})
