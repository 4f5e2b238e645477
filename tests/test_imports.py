"""Imports go one way through the package, and the package itself imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nova_jax

PACKAGE = Path(nova_jax.__file__).parent

# Lower layers know nothing of higher ones. Within a layer, parts may use each other.
LAYERS = (
    ("errors", "huge_pages", "media", "files", "__init__"),
    ("models", "kernels"),
    ("sampling", "codecs"),
    ("checkpoints", "data", "distributed"),
    ("training", "pipeline", "evaluation", "export"),
    (
        "cli",
        "train",
        "generate",
        "prepare",
        "convert",
        "parity",
        "parity_live",
        "evaluate",
        "plan",
        "demo",
    ),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imported_parts(source: str, package: str) -> set[str]:
    """Top-level parts of nova_jax imported anywhere in `source`, a module of `package`."""
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


def upward_imports(path: Path) -> list[str]:
    relative = path.relative_to(PACKAGE)
    part = relative.parts[0].removesuffix(".py")
    package = ".".join(["nova_jax", *relative.parts[:-1]])
    imports = imported_parts(path.read_text(), package)
    return [f"{relative} -> {other}" for other in imports if LEVEL[other] > LEVEL[part]]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_a_layer():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert parts <= LEVEL.keys(), "a new part of the package needs a place in LAYERS"


def test_imports_go_one_way():
    assert [found for path in modules() for found in upward_imports(path)] == []


def test_only_commands_use_the_command_line():
    commands = {*LAYERS[-1]}
    users = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for path in modules()
        if "cli" in imported_parts(path.read_text(), "nova_jax")
    }
    assert users <= commands


def test_tests_start_commands_as_users_do():
    """Each command defines flags of its own: two cannot be imported by one process of tests."""
    commands = {*LAYERS[-1]} - {"cli", "parity", "parity_live"}
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
        ("import nova_jax.data.digits as d", {"data"}),
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


def test_the_package_imports_nothing_heavy():
    program = "import sys, nova_jax; print('jax' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.split() == ["False", "False"], result.stderr
