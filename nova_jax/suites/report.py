"""A report: what scorers found, in the tables of the paper, as text, Markdown and JSON.

Results are files that scorers wrote, or folders with them. Those of one model are one row: the
folder that a run was drawn to says of which model they are (`nova_jax.suites.folder`), and whether
its prompts were rewritten. A total over what is not complete is not given.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nova_jax import files
from nova_jax.errors import NovaError
from nova_jax.suites.folder import SPEED, read_run
from nova_jax.suites.interface import Scores, Suite
from nova_jax.suites.paper import TABLES, Column, Row, Table

_UNNAMED = "results"


@dataclasses.dataclass(frozen=True)
class Report:
    """Scores of one or several models.

    Attributes:
        scores: by model, and by suite.
        tables: that they are printed in; those of which nothing was found are left out.
    """

    scores: Mapping[str, Mapping[str, Scores]]
    tables: Sequence[Table] = TABLES

    def rows(self, table: Table) -> list[Row]:
        """What was found of a table, a row a model."""
        keys = {column.key for column in table.columns}
        rows = []
        for label, suites in self.scores.items():
            every = {k: v for scores in suites.values() for k, v in scores.values.items()}
            if found := {key: value for key, value in every.items() if key in keys}:
                rows.append(Row(label, found))
        return rows

    def text(self) -> str:
        """The tables for a terminal; a star marks what was found."""
        return self._laid_out(_as_text, "{}")

    def markdown(self) -> str:
        """The tables in Markdown."""
        return self._laid_out(_as_markdown, "## {}\n")

    def json(self) -> dict[str, Any]:
        """Tables with all of their rows, and all scores without those digits that tables drop."""
        return {
            "tables": [
                {
                    "title": table.title,
                    "columns": {column.key: column.heading for column in table.columns},
                    "published": {row.label: row.values for row in table.rows},
                    "found": {row.label: row.values for row in rows},
                }
                for table in self.tables
                if (rows := self.rows(table))
            ],
            "scores": {
                label: {suite: dataclasses.asdict(scores) for suite, scores in suites.items()}
                for label, suites in self.scores.items()
            },
        }

    def _laid_out(self, layout: Any, heading: str) -> str:
        parts = []
        for table in self.tables:
            if rows := self.rows(table):
                marked = [Row(f"* {row.label}", row.values) for row in rows]
                cells = _cells(table.columns, [*table.rows, *marked])
                parts.append(f"{heading.format(table.title)}\n{layout(cells)}")
        said = [
            f"{label}: {line}"
            for label, suites in self.scores.items()
            for scores in suites.values()
            for line in (*(f"no total without {m}" for m in scores.missing), *scores.notes)
        ]
        return "\n\n".join([*parts, *(["\n".join(f"- {line}" for line in said)] if said else [])])


def read(paths: Sequence[str], suites: Mapping[str, Suite], prompts: Path | None) -> Report:
    """Reads results.

    Args:
        paths: files that scorers wrote, or folders that have them in or below them.
        suites: whose scorers, by name.
        prompts: a clone of a suite's repository, for what needs it.

    Raises:
        NovaError: naming what is missing, damaged, no result, or there twice.
    """
    by_row: dict[tuple[str, str], list[Path]] = defaultdict(list)
    latency: dict[str, tuple[float, str]] = {}
    found = [pair for path in paths for pair in _find(Path(path), suites)]
    for suite, file in dict.fromkeys(found):
        run = next((parent for parent in file.absolute().parents if read_run(parent)), None)
        label = _UNNAMED if run is None else _label(run, suite, file)
        by_row[label, suite].append(file)
        if run is not None and suites[suite].medium == "video" and (speed := _speed(run)):
            latency[label] = speed
    scores: dict[str, dict[str, Scores]] = defaultdict(dict)
    for (label, suite), results in by_row.items():
        try:
            scores[label][suite] = suites[suite].scores(results, prompts)
        except (OSError, UnicodeDecodeError) as error:
            raise NovaError(f"results of {suite} cannot be read ({error})") from error
        if label in latency and suites[suite].medium == "video":
            scores[label][suite] = _with_latency(scores[label][suite], suite, *latency[label])
    return Report(scores)


def _find(path: Path, suites: Mapping[str, Suite]) -> list[tuple[str, Path]]:
    """Suites with files of theirs."""
    if path.is_dir():
        found = [(name, file) for name, suite in suites.items() for file in suite.results(path)]
    elif path.exists():
        found = [(name, path) for name, suite in suites.items() if suite.reads(path)]
    else:
        raise NovaError(f"{path} does not exist; check the path of the results")
    if not found:
        raise NovaError(
            f"{path} is or has no result of a scorer of {', '.join(suites)}; score first, see "
            "docs/evaluation.md"
        )
    return found if path.is_dir() else found[:1]


def _label(run: Path, suite: str, file: Path) -> str:
    """What the folder of a run calls its model."""
    record = read_run(run) or {}
    if (drawn := record.get("suite")) != suite:
        raise NovaError(
            f"{file} is of {suite}, and {run} was drawn for {drawn}; score that folder with its own"
        )
    name = str(record.get("checkpoint") or _UNNAMED)
    preset = f", {record['preset']}" if record.get("preset") else ""
    other = "" if record.get("official_prompts", True) else ", other prompts"
    return f"{name}{preset}{other}{' + Rewriter' if record.get('rewriter') else ''}"


def _speed(run: Path) -> tuple[float, str] | None:
    """Seconds a sample of one process, and on what; None where nothing was timed."""
    facts = [
        files.read_json(file, "delete it") for file in sorted(run.glob(SPEED.format("*", "*")))
    ]
    if not facts:
        return None
    seconds, samples = (sum(fact[name] for fact in facts) for name in ("seconds", "samples"))
    first = facts[0]
    return seconds / samples, f"{first['devices']} x {first['device']}, batch {first['batch_size']}"


def _with_latency(scores: Scores, suite: str, seconds: float, where: str) -> Scores:
    note = f"seconds a sample, measured while drawing: {seconds:.3g} on {where}"
    values = dict(scores.values) | {f"{suite}.latency": seconds}
    return Scores(values, scores.missing, [*scores.notes, note])


def _cells(columns: Sequence[Column], rows: Sequence[Row]) -> list[list[str]]:
    """Headings and rows as texts; what is not there is a dash."""
    return [
        ["", *(column.heading for column in columns)],
        *(
            [
                row.label,
                *(
                    f"{row.values[c.key]:.{c.digits}f}" if c.key in row.values else "–"
                    for c in columns
                ),
            ]
            for row in rows
        ),
    ]


def _as_text(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _as_markdown(cells: Sequence[Sequence[str]]) -> str:
    heading, *rows = (f"| {' | '.join(row)} |" for row in cells)
    rule = f"|{'---|' * len(cells[0])}"
    return "\n".join([heading, rule, *rows])


def as_files(report: Report) -> dict[str, bytes]:
    """What is written beside what is printed, by name."""
    return {
        "report.md": f"{report.markdown()}\n".encode(),
        "report.json": json.dumps(report.json(), indent=1, ensure_ascii=False).encode(),
    }
