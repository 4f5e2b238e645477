"""Pictures and videos on disk: read, enlarge for viewing, encode, lay out, save.

Frames are uint8 RGB, `[F, H, W, 3]` for a clip and `[H, W, 3]` for one picture. Encoders return
bytes, so that only `save` touches the disk and nothing is ever half written or overwritten.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import struct
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from nova_jax import files
from nova_jax.errors import NovaError

Picture = UInt8[np.ndarray, "h w 3"]
Clip = UInt8[np.ndarray, "f h w 3"]

MARGIN = 8  # pixels around everything on a contact sheet
#: Ticks a second of the clock of GIF files.
GIF_CLOCK = 100
#: Short side of the largest H.264 video that players read (level 6.2: 8192x4320).
LARGEST = 4320
# White by the modes of Pillow that have no 8 bits. PGM files of 16 bits have the mode of 32.
_WHITE = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I": 65535, "F": 1}
# The last chunk of PNG files: no bytes, its type, its checksum.
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".gif", ".avi", ".m4v")
LARGEST_VIDEO = 4 * 2**30  # bytes of all frames


def enlarge(
    frames: UInt8[np.ndarray, "*b _ _ 3"], short_side: int = 192
) -> UInt8[np.ndarray, "*b _ _ 3"]:
    """Repeats pixels by a whole factor until the short side has at least `short_side` pixels.

    Players blur small videos that they enlarge themselves. Large ones come back as they are.
    """
    factor = -(-short_side // min(frames.shape[-3:-1]))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2) if factor > 1 else frames


def encode_png(picture: Picture) -> bytes:
    """The bytes of a lossless PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def encode_gif(frames: Clip, fps: float) -> bytes:
    """The bytes of an endlessly repeating GIF file, whose clock ticks in hundredths of a second."""
    buffer = io.BytesIO()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=1000 / fps, loop=0)
    return buffer.getvalue()


def encode_mp4(frames: Clip, fps: float) -> bytes:
    """The bytes of an H.264 MP4 file that every player reads; the same ones of the same frames.

    Args:
        frames: of the clip.
        fps: frames per second.

    Raises:
        OSError: if ffmpeg fails.
    """
    even = even_sides(frames)
    # Not imageio's own writer: it runs Python between fork and exec, next to JAX's threads.
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "clip.mp4"
        # With several threads one file in some hundreds has other bytes, on a busy machine.
        coder = [*raw_to_h264(even.shape[1:3], fps), "-threads", "1"]
        command = [*coder, "-movflags", "+faststart", str(file)]
        done = subprocess.run(command, input=even.tobytes(), stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise OSError(f"ffmpeg failed: {done.stderr.decode(errors='replace').strip()}")
        return file.read_bytes()


def even_sides(frames: Clip) -> UInt8[np.ndarray, "f _ _ 3"]:
    """Frames as H.264 takes them: a last row or column is repeated where a side is odd."""
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def raw_to_h264(size: tuple[int, ...], fps: float) -> list[str]:
    """The command of ffmpeg, but for its output: raw RGB frames of (height, width) from a pipe."""
    shape = f"{size[1]}x{size[0]}"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", shape, "-r", f"{fps}", "-i", "-"]
    # Few colors and hard edges: cheap to keep almost lossless.
    h264 = ["-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p"]
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *raw, *h264]


def file_name(text: str) -> str:
    """A prompt as a file name: its words joined by dashes, at most 80 characters and 200 bytes.

    Names of files have 255 bytes, and what is put behind a prompt has room.
    """
    words = re.sub(r"\W+", "-", text.lower()).strip("-")[:80]
    return words.encode(errors="ignore")[:200].decode(errors="ignore") or "no-prompt"


def sample_name(prompt: str, seed: int, copy: int = 0) -> str:
    """What the file of a sample is called, without suffix; `copy` counts those of a request."""
    return f"{file_name(prompt)}_seed{seed}{f'_{copy}' if copy else ''}"


def save(path: Path, data: bytes) -> Path:
    """Writes a new file, which is there whole or not at all, and returns its path.

    It is `path`, or with a number before the suffix if that exists: `name-2.mp4`, `name-3.mp4`, ...
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.unfinished(path) as hidden:
        with open(hidden, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # some file systems say only now that they are full
        for name in numbered(path):
            try:
                files.publish(hidden, name)
                return name
            except FileExistsError:
                continue
    raise AssertionError("unreachable")


def numbered(path: Path) -> Iterator[Path]:
    """Names for a new file, to take the first one that is free: `path`, then with -2, -3, ..."""
    yield path
    for copy in itertools.count(2):
        yield path.with_stem(f"{path.stem}-{copy}")


def save_clip(path: Path, frames: Clip, fps: float, *, gif: bool = False) -> Path:
    """Writes a clip to a new file, named `path` and a suffix, and returns where that is.

    One frame becomes a PNG; several, of `fps` frames per second, become an MP4, or a GIF.
    """
    if len(frames) == 1:
        return save(path.with_name(f"{path.name}.png"), encode_png(frames[0]))
    if gif:
        return save(path.with_name(f"{path.name}.gif"), encode_gif(frames, fps))
    return save(path.with_name(f"{path.name}.mp4"), encode_mp4(frames, fps))


def read_image(path: str | os.PathLike[str]) -> Picture:
    """Reads a picture file of any kind; transparency is dropped.

    Raises:
      NovaError: The file is missing, is no picture, or one of hundreds of millions of pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(Path(path)) as image:
                return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise NovaError(f"image {path} does not exist; check the path") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = Image.MAX_IMAGE_PIXELS
        raise NovaError(f"image {path} has more than {most} pixels; give a smaller one") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise NovaError(f"image {path} cannot be read; give a PNG, JPEG or WebP file") from error


def to_rgb(image: Image.Image) -> Picture:
    """A picture of any mode as RGB, deep ones scaled from black to white; transparency is dropped.

    Raises:
      NovaError: Its mode does not say what is white, and its values go beyond what is usual.
    """
    if (white := _WHITE.get(image.mode)) is None:
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image, np.float64)
    if not ((values >= 0) & (values <= white)).all():
        raise NovaError(f"a picture has values beyond 0 to {white}; save it with 8 bits a channel")
    gray = np.round(values * (255 / white)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def read_video(path: str | os.PathLike[str], most: int | None = None) -> Clip:
    """Reads all frames of a video file, or of a directory of PNG frames in the order of numbers.

    Args:
      path: The file or directory.
      most: Bytes of all frames of a file, `LARGEST_VIDEO` by default.

    Raises:
      NovaError: It is missing, no video, damaged, or larger than `most`.
    """
    path = Path(path)
    most = LARGEST_VIDEO if most is None else most
    if path.is_dir():
        return _read_frames(path)
    if not path.exists():
        raise NovaError(f"video {path} does not exist; check the path")
    if path.suffix.lower() not in VIDEOS:  # ffmpeg makes videos of text files
        raise NovaError(f"{path} is no video; give one of the kinds {', '.join(VIDEOS)}")
    # Every frame as it is in the file, with its size in front of it.
    pictures = ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-"]
    source = ["-v", "error", "-xerror", "-i", f"file:{path}"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", *source, *pictures]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        data = process.stdout.read(most + 1)
        if len(data) > most:
            process.kill()
            raise NovaError(f"video {path} is over {most / 2**30:g} GB of frames; shorten it")
    header = re.match(rb"P6\n(\d+) (\d+)\n255\n", data)
    if process.returncode or header is None:
        raise NovaError(f"video {path} cannot be read: it is damaged or no video; make it anew")
    width, height = map(int, header.groups())
    frames = np.frombuffer(data, np.uint8).reshape(-1, header.end() + height * width * 3)
    return frames[:, header.end() :].reshape(-1, height, width, 3)


def _read_frames(directory: Path) -> Clip:
    def number(file: Path) -> list[tuple[str, int]]:
        """Sorts frame_9 before frame_10."""
        return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", file.stem)]

    frames = [read_image(file) for file in sorted(directory.glob("*.png"), key=number)]
    if not frames:
        raise NovaError(f"{directory} holds no PNG frames; check the path")
    if len({frame.shape for frame in frames}) > 1:
        raise NovaError(
            f"the PNG files in {directory} differ in size; they are no frames of a clip"
        )
    return np.stack(frames)


def fit_image(
    picture: np.ndarray,
    size: tuple[int, int],
    method: Image.Resampling = Image.Resampling.LANCZOS,
) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
    """Scales a picture to fill (height, width) and crops what is over about its center.

    Raises:
        NovaError: The picture is not uint8 RGB `[H, W, 3]`, or has no pixels.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise NovaError(
            f"a picture is uint8 [height, width, 3] with pixels in it, not {picture.dtype} "
            f"{list(picture.shape)}"
        )
    image = Image.fromarray(picture)
    return np.asarray(ImageOps.fit(image, size[::-1], method))


def contact_sheet(
    clips: Sequence[Clip] | UInt8[np.ndarray, "b f h w 3"],
    captions: Sequence[str],
    columns: int = 2,
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Clips as strips of their frames, left to right in time, so many of them side by side.

    Clips are of one shape; each has its caption below it, cut where its strip ends.
    """
    font = ImageFont.load_default(size=13)
    frames, height, width = clips[0].shape[:3]
    strip = frames * (width + 2) - 2
    cell = (max(strip, 240) + MARGIN, height + 22 + MARGIN)
    rows = -(-len(clips) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = column * cell[0] + MARGIN, row * cell[1] + MARGIN
        for t, frame in enumerate(clip):
            sheet.paste(Image.fromarray(frame), (left + t * (width + 2), top))
        while draw.textlength(caption, font) > cell[0] - MARGIN:
            caption = caption.rstrip("…")[:-1] + "…"
        draw.text((left, top + height + 2), caption, fill="black", font=font)
    return np.asarray(sheet)


def is_whole(path: Path) -> bool:
    """Whether a PNG or MP4 file is there to its last byte; of a PNG every byte is checked."""
    try:
        if path.suffix == ".mp4":
            return _is_whole_mp4(path)
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except (OSError, SyntaxError, ValueError, struct.error):
        return False


def _is_whole_mp4(path: Path) -> bool:
    """Whether boxes follow each other to the end of the file, with the index and frames in them."""
    kinds, position, size = set(), 0, path.stat().st_size
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            length, kind = struct.unpack(">I4s", file.read(8))
            if length == 1:
                (length,) = struct.unpack(">Q", file.read(8))
            if length < 8:
                return False
            kinds.add(kind)
            position += length
    return position == size and {b"ftyp", b"moov", b"mdat"} <= kinds
