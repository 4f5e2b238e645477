"""What an outcome is: "success", "refused", "at work", or else a finding in words.

At work is what was ended at the limit of time and had shown how far it was: much was asked for.
"""

from __future__ import annotations

import re
from typing import Any

FINE = ("success", "refused", "at work")


def verdict(outcome: dict[str, Any]) -> str:
    """Of what `fuzz.forks.outcome` gives."""
    if outcome["limit"] == "time" and re.search(r"\b[1-9]\d*/\d+", outcome["stderr"]):
        return "at work"
    if outcome["limit"]:
        return f"{outcome['limit']}: past the limit"
    errors = outcome["stderr"].splitlines()
    if "Traceback" in outcome["stderr"]:
        return f"traceback: {_cause(outcome['stderr'])}"
    if outcome.get("faults"):
        return f"wrong: {outcome['faults'].splitlines()[0]}"
    if outcome["status"] == 2:
        lines = [line for line in errors if "error:" in line]
        if len(lines) != 1 or not errors[-1].startswith("error: "):
            return f"refused, but not in one line: {errors[-3:]}"
        return "refused"
    if outcome["status"]:
        command = outcome.get("case", "").removeprefix("python -m ").split(" ")[0]
        if command == "nova_jax.parity" and outcome["stdout"]:
            return "success"  # the table says what is past its tolerance
        if command == "nova_jax.app" and errors[-1:] == ["interrupted"]:
            return "success"  # it served
        return f"exit status {outcome['status']}: {errors[-1:]}"
    if found := re.search(r"\w+Warning: .*", outcome["stderr"]):
        return f"warning: {found[0]}"
    return "success"


def _cause(text: str) -> str:
    """Where the last exception came from, and its first line."""
    last = text.rpartition("Traceback")[2]
    places = re.findall(r'File "[^"]*/(nova_jax/[^"]*)", line (\d+)', last)
    kinds = "Error|Exception|Interrupt|Exit|Warning|InvalidOperation"
    raised = re.findall(rf"^(?:\w+\.)*(\w+(?:{kinds})\b.*)", last, re.MULTILINE)
    where = ":".join(places[-1]) if places else "elsewhere"
    return f"{where}: {raised[-1][:160] if raised else last.splitlines()[-1][:160]}"
