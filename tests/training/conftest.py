"""Fixtures of these tests."""

from runs import quick_compilation, run

__all__ = ["quick_compilation", "run"]
