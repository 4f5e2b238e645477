"""All commands by one name: `nova train --flag` is `python -m nova_jax.train --flag`."""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from pathlib import Path

# In the order of use.
COMMANDS = ("demo", "prepare", "train", "generate", "app", "evaluate", "convert", "parity", "plan")
_PACKAGE = Path(__file__).parent


def summary(command: str) -> str:
    """What a command says of itself first, read without running it."""
    folder = _PACKAGE / command
    file = folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].partition(": `")[0].rstrip(".")


def usage() -> str:
    """All commands, a line each."""
    lines = [f"  {command:10} {summary(command)}" for command in COMMANDS]
    return "\n".join(
        ["usage: nova COMMAND [--flag=value]", "", *lines, "", "nova COMMAND --help has its flags."]
    )


def main() -> None:
    """Runs the command that is named first, with the flags that follow it."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h", "help"):
        print(usage())
    elif command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"give one of {', '.join(COMMANDS)}"
        print(f"error: nova has no command {command!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [command, *arguments]
        runpy.run_module(f"nova_jax.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
