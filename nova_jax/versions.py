"""Whether what the package needs is installed, in versions that it runs with."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import Requirement


def problems(requirements: Iterable[str]) -> dict[str, str]:
    """What is wrong with requirements, such as "jax>=0.10.2": of each in words.

    Those of extras and of other platforms are left out.
    """
    found = {}
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found[wanted] = f"{requirement.name} is not installed"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found[wanted] = f"{requirement.name} is {version}"
    return found


def check() -> None:
    """Raises if a requirement of the installed package is not met.

    Of a clone that is not installed nothing is known.

    Raises:
        ImportError: naming what is missing or too old, and the command that mends it.
    """
    try:
        requirements = importlib.metadata.requires("nova_jax") or []
    except importlib.metadata.PackageNotFoundError:
        return
    if found := problems(requirements):
        wanted = " ".join(f"'{requirement}'" for requirement in found)
        raise ImportError(
            f"nova_jax cannot run here: {', '.join(found.values())}; pip install {wanted}"
        )
