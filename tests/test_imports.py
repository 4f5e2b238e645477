"""Imports go one way through the package, and inference imports nothing of training."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import nova_jax

PACKAGE = Path(nova_jax.__file__).parent

# From the lowest layer to the highest: a part knows of lower layers, and of its own; within a layer
# two parts do not know of each other both ways.
LAYERS = (
    ("versions", "__main__"),
    ("__init__", "config", "errors", "files", "media", "plots"),
    ("kernels",),
    ("models",),
    ("sampling", "autoencoders", "text"),
    ("distributed", "checkpoints"),
    ("data", "rewriting"),
    (
        "arguments",
        "beginning",
        "budget",
        "call",
        "card",
        "editing",
        "live",
        "pipeline",
        "placement",
        "pool",
        "request",
        "saving",
        "session",
        "session_file",
        "watch",
    ),
    ("training", "prepare", "export", "digits", "drift"),
    ("app", "plan", "parity", "suites"),
    ("recipes",),
    ("cli",),
    ("shared_flags",),
    (
        "convert",
        "demo",
        "evaluate",
        "generate",
        "train",
        "app.__main__",
        "parity.__main__",
        "plan.__main__",
        "prepare.__main__",
    ),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(path: Path) -> str:
    """The folder or file of the package that a file belongs to; a folder's command is its own."""
    first, *rest = path.relative_to(PACKAGE).parts
    return f"{first}.__main__" if rest == ["__main__.py"] else first.removesuffix(".py")


def imported_parts(source: str, package: str) -> set[str]:
    """Parts of nova_jax imported anywhere in `source`, a module of `package`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    parts = (name.split(".") for name in names if name.split(".")[0] == "nova_jax")
    return {name[1] if len(name) > 1 and name[1] in LEVEL else "__init__" for name in parts}


def imports_of(path: Path) -> set[str]:
    package = ".".join(["nova_jax", *path.relative_to(PACKAGE).parts[:-1]])
    return imported_parts(path.read_text(), package)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_a_layer():
    parts = {part_of(path) for path in modules()}
    assert parts == LEVEL.keys(), "a new part of the package needs a place in LAYERS"


def test_imports_go_one_way():
    upward = [
        f"{path.relative_to(PACKAGE)} -> {other}"
        for path in modules()
        for other in imports_of(path)
        if LEVEL[other] > LEVEL[part_of(path)]
    ]
    assert not upward


def test_no_two_parts_import_each_other():
    edges = {(part_of(path), other) for path in modules() for other in imports_of(path)}
    assert not [(a, b) for a, b in edges if a < b and (b, a) in edges]


def test_only_commands_use_the_command_line():
    users = {part_of(path) for path in modules() if "cli" in imports_of(path)}
    assert users <= {*LAYERS[-1], "cli", "shared_flags"}


def test_tests_start_commands_as_users_do():
    """Each command defines flags of its own: two cannot be imported by one process of tests."""
    commands = {name for name in LAYERS[-1] if "." not in name}
    users = {
        f"{path.name}: {part}"
        for path in Path(__file__).parent.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        for part in commands & imported_parts(ast.unparse(node), "tests")
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not users


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from nova_jax.models import nova", {"models"}),
        ("import nova_jax.digits.clips as d", {"digits"}),
        ("from nova_jax import errors, pipeline", {"errors", "pipeline"}),
        ("from nova_jax import __version__", {"__init__"}),
        ("from . import schedules", {"sampling"}),
        ("from ..models.config import NovaConfig", {"models"}),
        ("def f():\n    from nova_jax import train", {"train"}),
        ("import jax\nfrom nova_jaxx import models", set()),
    ],
)
def test_imports_are_found_in_every_form(source, expected):
    assert imported_parts(source, "nova_jax.sampling") == expected


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("nova_jax", ("jax", "numpy")),
        # optax is not among them: flax.nnx imports it.
        ("nova_jax.pipeline", ("grain", "tensorflow_datasets", "tensorflow", "sklearn", "cv2")),
        ("nova_jax.pipeline", ("nova_jax.training", "nova_jax.data", "tensorboardX", "torch")),
        (
            "nova_jax.generate",
            ("jax.experimental.pallas", "sklearn", "scipy", "cv2", "matplotlib", "gradio", "torch")
            + ("transformers", "huggingface_hub", "nova_jax.export", "nova_jax.training"),
        ),
        # With cv2, for --drift.
        (
            "nova_jax.evaluate",
            ("jax.experimental.pallas", "sklearn", "scipy", "matplotlib", "grain", "torch")
            + ("transformers", "huggingface_hub", "tensorboardX", "nova_jax.training"),
        ),
    ],
)
def test_imports_load_nothing_that_is_not_needed(module, absent):
    program = f"import sys, {module}; print(*(set(sys.modules) & {set(absent)!r}))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize(
    "path", sorted((PACKAGE.parent / "benchmarks").glob("*.py")), ids=lambda path: path.name
)
def test_benchmarks_import_what_there_is(path):
    """They are not run in tests, and a name that has gone would be found by whoever runs them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nova_jax"):
            module = importlib.import_module(node.module)
            for name in node.names:
                found = hasattr(module, name.name)
                assert found or importlib.util.find_spec(f"{node.module}.{name.name}"), name.name
