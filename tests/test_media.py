"""Files are read back by decoders that are not the ones that wrote them."""

import io
import struct
import subprocess
import zlib

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from nova_jax import media
from nova_jax.errors import NovaError


@pytest.fixture
def clip() -> np.ndarray:
    """A white square that steps to the right, 4 frames of 20x24 pixels."""
    frames = np.zeros((4, 20, 24, 3), np.uint8)
    for t in range(4):
        frames[t, 6:12, 2 + 4 * t : 8 + 4 * t] = (255, 40, 40)
    return frames


def decode(file) -> tuple[np.ndarray, float]:
    video = cv2.VideoCapture(str(file))
    frames = []
    while (step := video.read())[0]:
        frames.append(cv2.cvtColor(step[1], cv2.COLOR_BGR2RGB))
    return np.stack(frames), video.get(cv2.CAP_PROP_FPS)


def test_mp4_keeps_frames_rate_and_colors(clip, tmp_path):
    large = media.enlarge(clip, 160)
    assert large.shape == (4, 160, 192, 3)
    file = media.save(tmp_path / "clip.mp4", media.encode_mp4(large, 6))
    frames, fps = decode(file)
    assert fps == pytest.approx(6)
    assert frames.shape == large.shape
    assert np.abs(frames.astype(int) - large).mean() < 4


def test_mp4_is_of_the_kind_that_every_player_reads(clip, tmp_path):
    file = media.save(tmp_path / "clip.mp4", media.encode_mp4(clip, 6))
    described = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", file], capture_output=True, text=True
    ).stderr
    assert "h264" in described and "yuv420p" in described


def test_odd_sizes_are_padded_to_even_ones(clip, tmp_path):
    file = media.save(tmp_path / "odd.mp4", media.encode_mp4(clip[:, :19, :21], 2.5))
    frames, fps = decode(file)
    assert frames.shape == (4, 20, 22, 3) and fps == pytest.approx(2.5)


def test_gif_repeats_for_ever_at_its_rate(clip):
    with Image.open(io.BytesIO(media.encode_gif(clip, 5))) as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (4, 0, 200)
        gif.seek(2)
        assert np.abs(np.asarray(gif.convert("RGB"), int) - clip[2]).max() < 10


def test_png_is_lossless(clip):
    picture = cv2.imdecode(np.frombuffer(media.encode_png(clip[1]), np.uint8), cv2.IMREAD_COLOR)
    assert (picture[..., ::-1] == clip[1]).all()


def test_enlarging_repeats_pixels_and_leaves_large_pictures_alone(clip):
    assert media.enlarge(clip, 41).shape == (4, 60, 72, 3)
    assert (media.enlarge(clip, 41)[:, ::3, 2::3] == clip).all()
    assert media.enlarge(clip, 20) is clip


def test_saving_never_overwrites(tmp_path):
    names = [media.save(tmp_path / "new" / "a-2.gif", bytes([n])).name for n in range(3)]
    assert names == ["a-2.gif", "a-2-2.gif", "a-2-3.gif"]
    assert [(tmp_path / "new" / name).read_bytes() for name in names] == [b"\0", b"\1", b"\2"]


def test_a_clip_is_saved_by_its_length(clip, tmp_path):
    path = tmp_path / "v1.5 of it"
    assert media.save_clip(path, clip[:1], 6).name == "v1.5 of it.png"
    assert media.save_clip(path, clip, 6).name == "v1.5 of it.mp4"
    assert media.save_clip(path, clip, 6, gif=True).name == "v1.5 of it.gif"


def test_pictures_are_fitted_without_distortion(tmp_path):
    """A gray picture with a red square in its middle, wide and with transparency."""
    wide = np.full((40, 120, 4), 128, np.uint8)
    wide[10:30, 50:70] = (255, 0, 0, 255)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    picture = media.read_image(tmp_path / "wide.png")
    assert picture.shape == (40, 120, 3)
    fitted = media.fit_image(picture, (20, 20))
    red = np.argwhere(fitted[..., 1] < 30)
    assert fitted.shape == (20, 20, 3)
    assert (red.min(0) == [5, 5]).all() and (red.max(0) == [14, 14]).all()


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n then nothing", b"GIF89a"])
def test_what_is_no_picture_is_named(tmp_path, content):
    file = tmp_path / "some.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(NovaError, match=r"some\.png (does not exist|cannot be read); "):
        media.read_image(file)


@pytest.mark.parametrize(
    ("suffix", "dtype", "white"),
    [("png", np.uint16, 65535), ("tif", np.uint16, 65535), ("tif", np.int32, 65535),
     ("tif", np.float32, 1.0)],
)  # fmt: skip
def test_deep_pictures_keep_their_brightness(tmp_path, suffix, dtype, white):
    values = (np.linspace(0, 1, 64 * 48).reshape(48, 64) * white).astype(dtype)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    picture = media.read_image(tmp_path / f"deep.{suffix}")
    assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8
    assert np.abs(picture / 255 - (values / white)[..., None]).max() <= 0.5 / 255 + 1e-6


def test_a_deep_picture_that_does_not_say_what_is_white_is_refused(tmp_path):
    for number, values in enumerate([[[0, 65536]], [[-1, 3]]]):
        Image.fromarray(np.array(values, np.int32)).save(tmp_path / f"{number}.tif")
        with pytest.raises(NovaError, match="values beyond 0 to 65535; save it with 8 bits"):
            media.read_image(tmp_path / f"{number}.tif")
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(NovaError, match="values beyond 0 to 1; save it with 8 bits"):
        media.read_image(tmp_path / "nan.tif")


@pytest.mark.parametrize("side", [10_000, 20_000])  # a warning of Pillow's, and an error
def test_a_picture_of_too_many_pixels_is_refused(tmp_path, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))
    with pytest.raises(NovaError, match=r"huge\.png has more than \d+ pixels; give a smaller one"):
        media.read_image(tmp_path / "huge.png")


@pytest.mark.parametrize("gif", [False, True])
def test_videos_are_read_back(clip, tmp_path, gif):
    path = media.save_clip(tmp_path / "50% off: -clip", clip, 8.0, gif=gif)
    read = media.read_video(path)
    assert read.shape == clip.shape and read.dtype == np.uint8
    assert np.abs(read.astype(int) - clip).mean() < (0.1 if gif else 6)


def test_frames_are_read_in_the_order_of_their_numbers(clip, tmp_path):
    for number, frame in zip([1, 2, 10, 100], clip, strict=True):
        media.save(tmp_path / f"frame_{number}.png", media.encode_png(frame))
    np.testing.assert_array_equal(media.read_video(tmp_path), clip)
    media.save(tmp_path / "large.png", media.encode_png(media.enlarge(clip[0])))
    with pytest.raises(NovaError, match="differ in size"):
        media.read_video(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("some.mp4", None, "does not exist; check"),
        ("some.mp4", b"", "cannot be read"),
        ("some.gif", b"GIF89a", "cannot be read"),
        ("some.txt", b"words", "is no video; give"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(NovaError, match=rf"{name} {message}"):
        media.read_video(tmp_path / name)


def test_a_damaged_video_is_not_read_in_part(clip, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    path = media.save_clip(tmp_path / "clip", noise, 8.0)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(NovaError, match=r"clip\.mp4 cannot be read: it is damaged"):
        media.read_video(path)


def test_videos_that_do_not_fit_into_memory_are_refused(clip, tmp_path, monkeypatch):
    path = media.save_clip(tmp_path / "clip", media.enlarge(clip), 8.0)
    monkeypatch.setattr(media, "LARGEST_VIDEO", 100_000)
    with pytest.raises(NovaError, match="shorten it"):
        media.read_video(path)


def test_contact_sheet_shows_every_frame_in_reading_order(clip):
    clips = np.stack([clip, clip[::-1], clip // 2])
    sheet = media.contact_sheet(clips, ["one", "two", "x" * 500], columns=2)
    left, top, gap = media.MARGIN, media.MARGIN, 2
    for t in range(4):
        x = left + t * (24 + gap)
        assert (sheet[top : top + 20, x : x + 24] == clip[t]).all()
    second = sheet[top : top + 20, sheet.shape[1] // 2 :]
    assert (second == 255).all(-1).any() and (second[..., 0] > second[..., 1] + 100).any()
    below = sheet[top + 20 : top + 42, left : left + 40]
    assert (below < 100).any(), "the caption is drawn under its clip"


def test_file_names_are_short_and_plain():
    assert media.file_name('A "red" seven: left/right!') == "a-red-seven-left-right"
    assert media.file_name("") == "no-prompt" and len(media.file_name("word " * 99)) <= 80
    assert media.file_name("!?…") == media.file_name("\0\udce9") == "no-prompt"


@pytest.mark.parametrize("letter", ["𐐀", "あ", "é", "x"])
def test_file_names_have_room_on_disk(letter, clip, tmp_path):
    name = media.file_name(letter * 92)
    assert set(name) == {letter.lower()} and len(name.encode()) <= 200 and len(name) <= 80
    path = media.save_clip(tmp_path / f"{name}_seed4294967295_2147483647", clip, 6)
    assert path.read_bytes()


def test_a_file_is_whole_to_its_last_byte(tmp_path):
    clip = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
    for name, data in (
        ("a.png", media.encode_png(clip[0])),
        ("a.mp4", media.encode_mp4(clip, 8)),
    ):
        file = tmp_path / name
        assert not media.is_whole(file)
        file.write_bytes(data)
        assert media.is_whole(file)
        for wrong in (data[:-1], data[: len(data) // 2], b"", data + b"more", b"\0" * len(data)):
            file.write_bytes(wrong)
            assert not media.is_whole(file), len(wrong)
    damaged = bytearray(media.encode_png(clip[0]))
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "b.png").write_bytes(damaged)
    assert not media.is_whole(tmp_path / "b.png")
