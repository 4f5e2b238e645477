"""Values that nobody should give and somebody will, and the files that good ones name."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import small
import small_suites
from PIL import Image

import nova_jax

TESTS = Path(__file__).parents[1]
SHIPPED = Path(nova_jax.__file__).parent / "assets" / "digits_t2v"

# fmt: off
WHOLE = (
    "0", "1", "-1", "2", "3", "7", "100", "1000", "65537", str(2**31 - 1), str(2**31), str(2**32),
    str(2**63), str(2**64), str(-(2**63)), str(10**30), "9" * 5000, "1.5", "1e3", "+2", "1_0", "٣",
)
REAL = (
    "nan", "inf", "-inf", "0", "-0.0", "1", "-1", "0.5", "2", "1000", "1e30", "-1e30", "1e39",
    "1e300", "1e400", "1e-30", "1e-320", "1_0.5", str(2**31), str(2**64), "٣",
)
TEXT = (
    "", " ", "x", "x" * 5000, "x/" * 3000, "𝕏🎬", "é" * 300, "\udcff", "a\nb", "\x1b[31m", "%s{}",
    "None", "True", "-1", "1e30", "[]", "()", "(1,)", "(0, 0)", "(-3, 24)", "a=b", "--x",
    "missing", "missing/x", "~", ".", "file", "folder", "folder/x", "file/x", "empty.zip",
    "/proc", "/proc/x", "/proc/self/mem", "/dev/null", "/dev/null/x", "/dev/zero",
)
#: Python, for the library.
NUMBERS = (
    "None", "True", "False", "0", "1", "-1", "2", "3", "7", "0.5", "1.5", "50", "1000", "65537",
    "2**31 - 1", "2**31", "2**63", "2**64",
    "10**30", "10**400", "nan", "inf", "-inf", "-0.0", "1e-30", "1e30", "1e39", "1e300",
    "np.int64(2)", "np.uint8(2)", "np.float32(1.5)", "np.float64(nan)", "np.bool_(True)",
    "np.array(2)", "np.array(1.5)", "jnp.float32(1)", "Fraction(1, 2)", "Decimal(2)", "'2'",
)
ANYTHING = (
    *NUMBERS, "1j", "Decimal('nan')", "''", "' '", "'x'", "'x' * 100_000", "'𝕏🎬'", "'a\\nb'",
    "'\\0'", "'\\udcff'", "b'x'", "[]", "()", "{}", "{'x': 1}", "{'x'}", "[None]", "['x', 3]",
    "['x'] * 3", "[['x']]", "[nan]", "[0, 0]", "range(2)", "iter(['x'])", "object()", "int", "len",
    "Path('x')", "np.str_('x')", "np.array([1, 2])", "np.array(['x'])", "np.array(None)",
    "np.zeros(0)", "np.zeros((0, 0, 3))", "np.zeros((8, 8, 3), np.uint8)",
    "np.full((8, 8, 3), nan)", "np.zeros((2,) * 6)", "jnp.arange(2)", "jax.random.key(0)",
    "jax.random.PRNGKey(0)", "Image.new('L', (1, 1))", "Image.new('RGBA', (9, 5))",
    "jnp.bfloat16", "'float32'",
)
# fmt: on


#: Files that are there already, and a directory "folder".
OBSTACLES = ("file", "empty.zip")


def make_obstacles(directory: Path) -> Path:
    """Writes what names in `TEXT` find where a command works."""
    (directory / "folder").mkdir()
    for name in OBSTACLES:
        (directory / name).write_text("x\n")
    return directory


def overwritten(directory: Path) -> list[str]:
    """What has become of them."""
    return [f"{x} is changed" for x in OBSTACLES if (directory / x).read_text() != "x\n"]


def make_inputs(directory: Path) -> Path:
    """Writes models of every kind and what else commands read; the directory must not exist."""
    with tarfile.open(TESTS / "saved" / "0.1.0.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    for name in ("pipeline_t2v", "pipeline_t2i", "vae_kl", "phi"):
        shutil.copytree(TESTS / "golden" / name, directory / name)
    shutil.copytree(SHIPPED, directory / "shipped")
    classes = dict(text_dim=None, text_length=None, num_classes=4)
    small.save_untrained(directory / "classes", **classes)
    small_suites.write_clones(directory / "clones")
    (directory / "prompts.txt").write_text("a red seven\n\n𝕏🎬\n")
    rng = np.random.default_rng(0)
    for name, shape in (("small.png", (30, 50, 3)), ("gray.png", (1, 1)), ("alpha.png", (9, 7, 4))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(directory / name)
    (directory / "pictures").mkdir()
    for name in "ab":
        picture = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
        picture.save(directory / "pictures" / f"{name}.png")
        (directory / "pictures" / f"{name}.txt").write_text("a picture\n")
    rows = [{"path": f"pictures/{name}.png", "caption": "x"} for name in ("a", "b", "none")]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory
