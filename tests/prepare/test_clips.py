"""Clips out of real files: the right frames, cut at shots, cropped, and bad files named."""

import math

import numpy as np
import pytest
from PIL import Image
from videos import moving_square, write_video

from nova_jax.errors import NovaError
from nova_jax.prepare.clips import (
    ArrayFrame,
    ClipConfig,
    Unusable,
    find_shots,
    nearest_size,
    perceptual_hash,
    read_clips,
)
from nova_jax.prepare.manifest import Item

CONFIG = ClipConfig(sizes=((24, 32), (32, 24)), frames=(4, 9), stride=2, clips_per_video=8)


def item(path, **changes):
    return Item(path=path, name=path.name, caption="x", **changes)


def numbered(count, size=(48, 64)):
    """Frames whose gray says which one they are, slowly brighter."""
    values = np.linspace(60, 160, count).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, *size, 3)).copy()


def numbers(clip, count):
    """Which of the `numbered` frames a clip holds."""
    means = clip.frames.mean((1, 2, 3))
    return np.round((means - 60) / 100 * (count - 1)).astype(int).tolist()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif", ".mov"])
def test_every_second_frame_is_taken_of_every_kind_of_file(tmp_path, suffix):
    path = write_video(tmp_path / f"v{suffix}", moving_square(18), fps=20)
    (clip,) = read_clips(item(path), CONFIG)
    assert clip.frames.shape == (9, 24, 32, 3) and clip.frames.dtype == np.uint8
    assert clip.fps == pytest.approx(10, rel=0.02)
    assert clip.source_size == (48, 64) and clip.start == 0
    wanted = moving_square(18)[::2].reshape(9, 24, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(clip.frames - wanted).mean() < (20 if suffix == ".gif" else 8)
    assert 0.3 < clip.flow < 3  # the square moves one pixel a frame, half of the small picture's


def test_clips_follow_each_other_and_the_rest_makes_a_shorter_one(tmp_path):
    path = write_video(tmp_path / "v.mp4", numbered(44), fps=10)
    clips = read_clips(item(path), CONFIG)
    assert [len(clip.frames) for clip in clips] == [9, 9, 4]
    found = [n for clip in clips for n in numbers(clip, 44)]
    # A clip of 9 covers 17 frames; the next begins with the 18th.
    wanted = [*range(0, 17, 2), *range(17, 34, 2), *range(34, 41, 2)]
    assert np.abs(np.subtract(found, wanted)).max() <= 1
    one = ClipConfig(sizes=((24, 32),), frames=(9,), stride=2, clips_per_video=1)
    assert len(read_clips(item(path), one)) == 1


def test_start_and_end_are_kept(tmp_path):
    path = write_video(tmp_path / "v.mp4", numbered(40), fps=10)
    (clip,) = read_clips(item(path, start=2.0, end=3.0), CONFIG)
    assert clip.start == pytest.approx(2.0) and len(clip.frames) == 4
    assert np.abs(np.subtract(numbers(clip, 40), [20, 22, 24, 26])).max() <= 1


def test_no_clip_crosses_a_cut(tmp_path):
    other = moving_square(20)[..., ::-1].copy()
    other[:, :24] = 255 - other[:, :24]
    path = write_video(tmp_path / "v.mp4", np.concatenate([moving_square(10), other]), fps=10)
    clips = read_clips(item(path), CONFIG)
    assert [(len(clip.frames), round(clip.start, 1)) for clip in clips] == [(4, 0), (9, 1)]
    assert clips[0].frames[..., 1].mean() < 60 < 90 < clips[1].frames[..., 1].mean()


def shots(pictures):
    """Which of some pictures begin a shot."""
    frames = [ArrayFrame(np.asarray(picture), float(n)) for n, picture in enumerate(pictures)]
    found = list(find_shots(iter(frames), CONFIG))
    assert [frame for frame, _ in found] == frames
    return [n for n, (_, begins) in enumerate(found) if begins]


def gray(value):
    return np.full((36, 64, 3), value, np.uint8)


def test_fast_movement_and_a_slow_fade_are_no_cuts():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 36, 64, 3), np.uint8)
    assert not shots(noise)  # all frames differ, so none stands out
    fade = [gray(value) for value in range(0, 250, 5)]
    assert not shots(fade)
    assert shots([*fade, gray(60)]) == [50]


@pytest.mark.parametrize("lengths", [(1, 9), (9, 1), (2, 1), (1, 1), (6, 2, 6), (1, 7, 1)])
def test_cuts_are_found_up_to_the_ends_of_a_video(lengths):
    pictures = [gray(60 + 120 * (n % 2)) for n, length in enumerate(lengths) for _ in range(length)]
    assert shots(pictures) == np.cumsum(lengths[:-1]).tolist()


def test_shots_are_found_while_a_video_is_read():
    seen = []

    def frames():
        for n in range(1000):
            seen.append(n)
            yield ArrayFrame(gray(n % 50), float(n))

    for n, (frame, _) in enumerate(find_shots(frames(), CONFIG)):
        assert frame.time == n and len(seen) <= n + 3
    assert not list(find_shots(iter(()), CONFIG))


def test_each_clip_takes_the_size_of_the_nearest_aspect():
    sizes = ((480, 768), (768, 480), (512, 512))
    assert nearest_size((1080, 1920), sizes) == (480, 768)
    assert nearest_size((1920, 1080), sizes) == (768, 480)
    assert nearest_size((100, 110), sizes) == (512, 512)
    assert nearest_size((10, 10), ((64, 64), (512, 512))) == (512, 512)


def test_pictures_fill_their_size_and_are_upright(tmp_path):
    pixels = moving_square(1, (40, 90))[0]
    Image.fromarray(pixels).save(tmp_path / "p.png")
    (clip,) = read_clips(item(tmp_path / "p.png"), CONFIG)
    assert clip.frames.shape == (1, 24, 32, 3) and clip.flow == clip.fps == 0
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    (clip,) = read_clips(item(tmp_path / "turned.jpg"), CONFIG)
    assert clip.frames.shape == (1, 32, 24, 3) and clip.source_size == (90, 40)
    Image.new("RGBA", (64, 48), (255, 0, 0, 128)).save(tmp_path / "clear.png")
    assert read_clips(item(tmp_path / "clear.png"), CONFIG)[0].frames[..., 0].min() == 255


def test_perceptual_hashes_stay_when_a_picture_is_changed_a_little():
    rng = np.random.default_rng(0)
    picture = np.asarray(
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((96, 72), 3)
    )
    brighter = np.clip(picture * 0.9 + 10, 0, 255).astype(np.uint8)
    small = np.asarray(Image.fromarray(picture).resize((48, 36)))
    one = perceptual_hash(picture)
    assert max((one ^ perceptual_hash(p)).bit_count() for p in (brighter, small)) <= 4
    assert (one ^ perceptual_hash(picture[:, ::-1].copy())).bit_count() > 12


def test_files_that_cannot_be_used_say_why(tmp_path):
    whole = write_video(tmp_path / "v.mp4", moving_square(30)).read_bytes()

    def reason(name, data, config=CONFIG, **changes):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Unusable) as caught:
            read_clips(item(tmp_path / name, **changes), config)
        return str(caught.value)

    assert "cannot be decoded" in reason("noise.mp4", b"no video at all" * 99)
    assert "cannot be decoded" in reason("cut.mp4", whole[: len(whole) // 3])
    assert "cannot be decoded" in reason("noise.png", b"no picture" * 9)
    assert "too short" in reason("v2.mp4", whole, ClipConfig(sizes=((24, 32),)))
    assert "no frames" in reason("v3.mp4", whole, start=99.0)
    assert "max_pixels" in reason("v4.mp4", whole, ClipConfig(max_pixels=1000))
    Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
    data = (tmp_path / "large.png").read_bytes()
    assert "max_pixels" in reason("p.png", data, ClipConfig(max_pixels=1000))
    assert "cannot be decoded" in reason("p2.png", data[: len(data) // 2])


def test_clips_before_damage_are_kept_and_the_damage_is_named(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (200, 48, 64, 3), np.uint8)
    path = write_video(tmp_path / "v.mkv", frames)
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data), 50):
        data[at] ^= 255
    path.write_bytes(data)
    many = ClipConfig(sizes=((24, 32),), frames=(5,), clips_per_video=99)
    with pytest.raises(Unusable, match="damaged, clips before it are used: ") as caught:
        read_clips(item(path), many)
    assert 0 < len(caught.value.clips) < 20
    assert {clip.frames.shape for clip in caught.value.clips} == {(5, 24, 32, 3)}


def test_headers_are_not_believed(tmp_path):
    """A file whose headers promise another number of frames, duration and rate."""
    path = write_video(tmp_path / "v.mp4", moving_square(18), fps=20)
    data = bytearray(path.read_bytes())
    at = data.index(b"mvhd") + 20
    data[at : at + 4] = (10 * 3600 * 1000).to_bytes(4, "big")  # ten hours
    at = data.index(b"mdhd") + 20
    data[at : at + 4] = (2**31 - 1).to_bytes(4, "big")
    path.write_bytes(data)
    (clip,) = read_clips(item(path), CONFIG)
    assert len(clip.frames) == 9 and clip.fps == pytest.approx(10, rel=0.02)
    with pytest.raises(Unusable, match="too short: 9 frames"):
        read_clips(item(path), ClipConfig(sizes=((24, 32),), frames=(33,)))


def test_a_mutated_video_gives_clips_or_a_reason(tmp_path):
    path = write_video(tmp_path / "v.mp4", moving_square(18))
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        data = bytearray(whole)
        for at in random.integers(len(data), size=3):
            data[at] = random.integers(256)
        path.write_bytes(data)
        try:
            for clip in read_clips(item(path), CONFIG):
                assert clip.frames.shape[1:] in ((24, 32, 3), (32, 24, 3))
                assert math.isfinite(clip.fps) and math.isfinite(clip.flow)
        except Unusable:
            refused += 1
    assert 5 < refused < 60


@pytest.mark.parametrize(
    "settings",
    [{"sizes": ()}, {"sizes": ((0, 8),)}, {"frames": ()}, {"stride": 0}, {"shot_ratio": 0.5}],
)
def test_impossible_settings_are_named(settings):
    with pytest.raises(NovaError, match=next(iter(settings))):
        ClipConfig(**settings)
