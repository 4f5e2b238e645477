"""Recorded arrays against computed ones: tolerances, verdicts, the table."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nova_jax.errors import NovaError

Arrays = dict[str, np.ndarray]

# Relative tolerances, max |a − b| / max |b|, for folders without a tolerance.json.
MODULE_TOLERANCE, TRAJECTORY_TOLERANCE, PIXEL_TOLERANCE = 1e-5, 1e-4, 1 / 255
MOST_DIFFERING = 1e-3  # share of pixels
# Of gradient norms after two steps of Adam or more, the least tolerance. Where a gradient is
# rounding, Adam makes a step of ±lr of it: float32 orders of ours that should be equal (blocks or a
# mask in attention, JAX 0.10 or 0.12) differ there by up to 4e-6, in t2v_rope; they are 6e-6 to
# 1.01e-5 from the recording. The recording's own rule, ten times the difference of two orders,
# would be 4e-5.
AFTER_STEPS_TOLERANCE = 2e-5
_AFTER_STEPS = re.compile(r"train\.step[2-9]\.grad_norm\.")

COLUMNS = ("folder", "array", "shape", "max_abs_error", "relative_error", "tolerance", "verdict")


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared array."""

    folder: str
    array: str
    shape: tuple[int, ...]
    max_abs_error: float
    relative_error: float
    tolerance: float
    differing: float = 0.0

    @property
    def verdict(self) -> str:
        """``ok`` or ``FAIL``; an error that is not a number fails.

        Of pixels, one in a thousand may be `differing`, by the one level that rounding can make.
        """
        close = self.relative_error <= self.tolerance and self.differing <= MOST_DIFFERING
        return "ok" if close else "FAIL"


def compare(
    folder: str,
    recorded: Mapping[str, np.ndarray],
    computed: Arrays,
    tolerance: Mapping[str, float],
) -> tuple[list[Row], list[str]]:
    """Compares all recorded results; returns the rows and the names without a counterpart."""
    rows, missing = [], []
    for name in sorted(recorded):
        if "in" in name.split(".")[:-1]:  # an input
            continue
        if name not in computed:
            missing.append(name)
            continue
        wanted, got = np.asarray(recorded[name], np.float64), np.asarray(computed[name], np.float64)
        if wanted.shape != got.shape:
            raise NovaError(f"{folder}: {name} has shape {wanted.shape}, computed is {got.shape}")
        error, scale = float(np.max(np.abs(wanted - got))), float(np.max(np.abs(wanted)))
        relative = error / scale if scale else (0.0 if error == 0 else float("inf"))
        is_pixels = np.asarray(recorded[name]).dtype == np.uint8
        sampled = name.endswith(".latents") and f"{name[:-8]}.in.order" in recorded
        default = TRAJECTORY_TOLERANCE if sampled else MODULE_TOLERANCE
        limit = PIXEL_TOLERANCE if is_pixels else float(tolerance.get(name, default))
        if _AFTER_STEPS.match(name):
            limit = max(limit, AFTER_STEPS_TOLERANCE)
        relative = error / 255 if is_pixels else relative
        differing = float(np.mean(wanted != got)) if is_pixels else 0.0
        rows.append(Row(folder, name, wanted.shape, error, relative, limit, differing))
    return rows, missing


def json_table(rows: Sequence[Row], missing: Sequence[str]) -> str:
    """The rows and what is not compared, as JSON, which has null for what is not finite."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    values = [{name: plain(getattr(row, name)) for name in COLUMNS} for row in rows]
    return json.dumps({"rows": values, "not_compared": list(missing)}, indent=1, allow_nan=False)


def format_table(
    rows: Sequence[Row], missing: Sequence[str], shown: Sequence[Row] | None = None
) -> str:
    """The table of the rows that are `shown`, by default all, and a summary of all, as text."""
    shown = rows if shown is None else shown
    width = max((len(row.array) for row in shown), default=5)
    lines = []
    for folder in dict.fromkeys(row.folder for row in shown):
        lines.append(folder)
        lines.append(f"  {'array':{width}}  {'shape':>18}  max abs    relative   limit    verdict")
        lines += [
            f"  {r.array:{width}}  {'x'.join(map(str, r.shape)) or 'scalar':>18}  "
            f"{r.max_abs_error:.2e}   {r.relative_error:.2e}   {r.tolerance:.1e}  {r.verdict}"
            for r in shown
            if r.folder == folder
        ]
    lines += [f"not compared: {name}" for name in missing]
    failed = sum(row.verdict != "ok" for row in rows)
    lines.append(
        f"{len(rows)} arrays compared, {failed} past their tolerance, {len(missing)} not compared"
    )
    return "\n".join(lines)


def worst(rows: Sequence[Row]) -> list[Row]:
    """Of arrays whose names differ in numbers or in a parameter's name, the one that errs most."""
    kinds: dict[tuple[str, str], Row] = {}
    for row in rows:
        kind = re.sub(r"\d+", "#", re.sub(r"(\.(grad|grad_norm|param_norm))\..*", r"\1", row.array))
        known = kinds.setdefault((row.folder, kind), row)
        # What is not a number is worst of all.
        if not math.isnan(known.relative_error) and not row.relative_error <= known.relative_error:
            kinds[row.folder, kind] = row
    return list(kinds.values())
