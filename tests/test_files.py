"""Where files may go is known first, and what is there is whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nova_jax import files, media
from nova_jax.errors import NovaError

HERE = Path(__file__).parents[1]


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory, with a file and a link to nothing in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize("name", ["new", "new/deeper", "folder", "folder/new", ".", "../new"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_good_place_is_left_as_it_is(place, name, absolute):
    (place / "folder").mkdir()
    before = everything(place.parent)
    given = os.path.join(place, name) if absolute else name
    assert files.output_folder(given) == Path(given)
    assert everything(place.parent) == before


BAD = {
    "file": "Not a directory",
    "file/new": "file: Not a directory",
    "link": "No such file or directory",
    "link/new": "No such file or directory",
    "/proc/new": "/proc: ",
    "/sys/new": "/sys: ",
    "/dev/null": "Not a directory",
    "/dev/null/new": "/dev/null: Not a directory",
    "new/" + "x" * 300: "File name too long",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_place_is_named_and_left_as_it_is(place, name):
    before = everything(place)
    with pytest.raises(NovaError) as raised:
        files.output_folder(name)
    message = str(raised.value)
    assert message.startswith(f"{name} cannot be written to (") and BAD[name] in message
    assert message.endswith("; choose another place")
    assert everything(place) == before


@pytest.mark.parametrize(("name", "message"), [("", "is empty; name a"), ("gs://b/x", "no local")])
@pytest.mark.parametrize("check", [files.output_folder, files.new_output])
def test_what_is_no_place_is_named(place, name, message, check):
    with pytest.raises(NovaError, match=message):
        check(name)
    assert everything(place) == {"file", "link"}


def test_a_new_name_is_one_that_nothing_has(place):
    for name in ("file", "link", "."):
        with pytest.raises(NovaError, match="exists already; choose another name"):
            files.new_output(name)
    for name in ("file/new", "/proc/new", "x" * 300):
        with pytest.raises(NovaError, match="cannot be written to"):
            files.new_output(name)
    assert files.new_output("new/deeper.zip") == Path("new/deeper.zip")
    assert everything(place) == {"file", "link"}


@pytest.mark.parametrize("content", ["ü" * 9, b"\xff\0"])
def test_a_file_is_replaced_as_a_whole(place, content):
    files.write_whole(place / "file", content)
    assert (place / "file").read_bytes() == (content.encode() if content[0] == "ü" else content)
    assert everything(place) == {"file", "link"}


def test_without_hard_links_nothing_is_overwritten_either(place, monkeypatch):
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    names = [media.save(place / "file", bytes([n])).name for n in range(2)]
    assert names == ["file-2", "file-3"]
    assert [(place / name).read_bytes() for name in ("file", *names)] == [b"precious", b"\0", b"\1"]
    assert everything(place) == {"file", "link", *names}


WRITER = """
import sys
from pathlib import Path
from nova_jax import media
print(flush=True)
input()
for n in range(50):
    media.save(Path(sys.argv[1]), f"{sys.argv[2]} {n}".encode())
"""


def test_two_processes_that_write_one_name_make_two_files(tmp_path):
    path = tmp_path / "new" / "clip.mp4"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": HERE}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name], **pipes)
        for name in ("one", "other")
    ]
    for writer in writers:
        writer.stdout.readline()  # it has started
    for writer in writers:
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    written = sorted(path.read_text() for path in path.parent.iterdir())
    assert written == sorted(f"{name} {n}" for name in ("one", "other") for n in range(50))
    numbers = ["", *(f"-{n}" for n in range(2, 101))]
    assert everything(path.parent) == {f"clip{number}.mp4" for number in numbers}


KILLED = """
import resource, signal, sys
from pathlib import Path
from nova_jax import media
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # kills as soon as a file is longer
media.save(Path(sys.argv[1]), bytes(1000))
media.save(Path(sys.argv[1]), bytes(1001))
"""


def test_a_process_that_is_killed_while_it_writes_leaves_no_half_file(tmp_path):
    path = tmp_path / "clip.mp4"
    killed = subprocess.run([sys.executable, "-c", KILLED, path], cwd=HERE)
    assert killed.returncode == -signal.SIGXFSZ
    assert path.read_bytes() == bytes(1000)
    left = [path for path in tmp_path.iterdir() if path.name != "clip.mp4"]
    assert all(path.name.startswith(".") and path.suffix == ".partial" for path in left)
    assert media.save(path, b"next").name == "clip-2.mp4"
