"""Training on records of pixels, and the page that shows them."""

import base64
import pickle
import re

import numpy as np
import pytest
from PIL import Image
from prepared import make_records
from videos import moving_square, write_video

from nova_jax.autoencoders.pixels import PixelCodec, to_float
from nova_jax.data.pipeline import ClipDataset, DataConfig
from nova_jax.data.raw import RawConfig, RawSource
from nova_jax.data.records import Records
from nova_jax.data.transforms import Encode
from nova_jax.errors import NovaError
from nova_jax.prepare.clips import ClipConfig
from nova_jax.prepare.inspection import PAGE, alike, histogram, write_page
from nova_jax.prepare.manifest import read_manifest
from nova_jax.prepare.preparation import PrepareConfig, prepare
from nova_jax.text.hashed_words import HashedTextEncoder


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Four clips of 3 frames, of which two look alike, and two pictures."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("raw")
    for n in range(4):
        frames = moving_square(6, (40, 64), hue=min(n, 2))
        write_video(source / f"v{n}.mp4", frames if n else frames[:, ::-1].copy(), fps=8)
    for n in range(2):
        Image.fromarray(moving_square(1, hue=n)[0]).save(source / f"p{n}.png")
    for path in list(source.iterdir()):
        path.with_suffix(".txt").write_text(f"it is {path.stem} & <more>")
    clips = ClipConfig(sizes=((20, 32),), frames=(3,))
    prepare(*read_manifest(source), out, PrepareConfig(clips=clips), None)
    return out


CONFIG = dict(size=(20, 32), frames=3)


def test_pixels_become_batches_as_digits_do(directory):
    config = RawConfig(path=str(directory), held_out=1, **CONFIG)
    source = RawSource(config)
    assert len(source) == 3 and len(pickle.loads(pickle.dumps(source))) == 3
    encode = Encode(codec=PixelCodec(), text_encoder=HashedTextEncoder(dim=16), text_length=8)
    data = ClipDataset(source, lambda count: RawSource(config, count), encode, {})
    settings = DataConfig(batch_size=2, image_batch_size=2, video_fraction=0.5, prefetch=0)
    stream = data.batches(settings)
    shapes = {next(stream)["latents"].shape for _ in range(4)}
    assert shapes == {(2, 3, 20, 32, 3), (2, 1, 20, 32, 3)}
    frames = [record["frames"] for record in Records(directory).read(range(6))]
    videos = [clip for clip in frames if len(clip) == 3]
    (held_out,) = data.held_out(settings, 1)
    (wanted,) = PixelCodec().encode(to_float(videos[-1])[None])
    for clip in held_out["latents"]:  # there is one, so it is there twice
        np.testing.assert_array_equal(clip, wanted)
    np.testing.assert_array_equal(source.images().batch([0])["frames"][0, 0], videos[0][1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"frames": 5}, "no clips of 5x20x32, only of 1x20x32, 3x20x32"),
        ({"held_out": 4}, "held_out 4 leaves no record"),
        ({"path": "nowhere"}, "no metadata.json"),
    ],
)
def test_raw_records_that_do_not_fit_are_named(directory, changes, named):
    with pytest.raises(NovaError, match=named):
        RawSource(RawConfig(**(CONFIG | {"path": str(directory)} | changes)))


# FFmpeg is started by a fork, which JAX warns of; the child runs no JAX.
@pytest.mark.filterwarnings("ignore:os.fork")
def test_the_page_shows_numbers_clips_and_what_looks_alike(directory):
    page = write_page(directory, None).read_text()
    assert "6 of raw" in page and "all checksums right" in page
    assert "it is v1 &amp; &lt;more&gt;" in page and "<more>" not in page
    kinds = re.findall(r"data:(image/png|video/mp4);base64,([A-Za-z0-9+/=]+)", page)
    films = [base64.b64decode(data) for kind, data in kinds if kind == "video/mp4"]
    assert len(films) == 3 and all(film[4:8] == b"ftyp" for film in films)
    pictures = [base64.b64decode(data) for kind, data in kinds if kind == "image/png"]
    assert len(pictures) >= 4 and all(data.startswith(b"\x89PNG") for data in pictures)
    assert "v2.mp4 and v3.mp4" in page and "v0.mp4 and" not in page
    assert "http" not in page


def test_latents_without_their_autoencoder_still_have_numbers(tmp_path):
    directory = make_records(tmp_path / "data", [((2, 6, 6), 5), ((1, 6, 6), 3)])
    page = write_page(directory, None).read_text()
    assert "8 of latents" in page and "give --checkpoint" in page and "<video" not in page
    shard = next(directory.glob("*-00000"))
    data = bytearray(shard.read_bytes())
    data[500] ^= 1
    shard.write_bytes(data)
    with pytest.raises(NovaError, match="00000 is damaged"):
        write_page(directory, None)
    assert PAGE == "inspect.html"


def test_alike_hashes_are_all_found():
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 1 << 63, 300, dtype=np.uint64)
    for place in range(0, 60, 2):  # up to four bits changed
        bits = rng.choice(64, place // 2 % 5, replace=False)
        hashes[place + 1] = hashes[place] ^ np.uint64(sum(1 << int(b) for b in bits))
    hashes[[200, 201]] = 0
    slow = [
        (i, j)
        for i in range(300)
        for j in range(i + 1, 300)
        if hashes[i] and hashes[j] and (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 4
    ]
    assert alike(hashes) == slow and len(slow) >= 30


def test_histograms_count_everything_once():
    for values in ([3, 3, 5], [0.1, 0.2, 0.2, 9.5], [7.0]):
        counts = re.findall(r": (\d+)</title>", histogram("x", values))
        assert sum(map(int, counts)) == len(values)
