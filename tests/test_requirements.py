"""requirements.txt and the extras name what the package imports, and nothing else."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nova_jax

ROOT = Path(__file__).parents[1]
#: Installed from its repository, and only where somebody asks for a comparison with it.
ELSEWHERE = {"diffnext"}
#: What `jax.export` writes with, which JAX itself does not require.
INDIRECT = {"flatbuffers"}


def names(lines):
    """Distributions, of requirements such as "numpy>=2.0"."""
    found = (re.match(r"[\w.-]+", line) for line in lines if not line.startswith("#"))
    return {match[0].lower().replace("_", "-") for match in found if match}


def imported():
    """Packages of others, by where they are imported from."""
    found = set()
    for path in Path(nova_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    return {name.split(".")[0] for name in found} - sys.stdlib_module_names - {"nova_jax"}


def test_what_is_imported_is_required_and_what_is_required_is_imported():
    core = names((ROOT / "requirements.txt").read_text().splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = names(
        line for name in ("app", "plots", "prepare", "wandb", "torch") for line in extras[name]
    )
    of = packages_distributions()
    provides = {module: names(of.get(module, [module])) for module in imported() - ELSEWHERE}
    assert not {module for module, by in provides.items() if not by & (core | optional)}
    assert core - INDIRECT <= set().union(*provides.values())
    assert not core & optional
