"""What pyproject.toml cannot say: configs/ is in the wheel, too, as a folder of the package."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["nova_jax*"]), "nova_jax.configs"],
    package_dir={"nova_jax.configs": "configs"},
)
