"""The suites by name. Another one is a class as `nova_jax.suites.interface.Suite` has it."""

from __future__ import annotations

from collections.abc import Mapping

from nova_jax.suites.digits import Digits
from nova_jax.suites.dpg import DPG
from nova_jax.suites.geneval import GenEval
from nova_jax.suites.interface import Suite
from nova_jax.suites.t2i_compbench import T2ICompBench
from nova_jax.suites.vbench import VBench

_ALL: tuple[Suite, ...] = (GenEval(), T2ICompBench(), DPG(), VBench(), Digits())

SUITES: Mapping[str, Suite] = {suite.name: suite for suite in _ALL}
