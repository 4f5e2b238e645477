"""What every command does around its work: parse flags, turn user errors into one line.

Exit codes: 0 done, 2 the request cannot be met (the line on stderr says why), 130 interrupted.
Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from nova_jax import recipes
from nova_jax.config import convert, described
from nova_jax.errors import NovaError
from nova_jax.files import cache_folder
from nova_jax.kernels.diffusion_sampler import tuning
from nova_jax.sampling import traces

# What Python and absl say of a value of another type, in part; and what it must be.
_TYPES = {
    "int()": "a whole number",
    "to float": "a number",
    "Non-boolean": "true or false",
    "ConfigDict": "changed key by key, such as --config.SECTION.KEY=VALUE",
}
_MAY_BE_EMPTY = ("negative_prompt",)
_PLACES = (errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)

flags.disclaim_key_flags()  # --help shows what is defined here as the command's own


class _RecipeParser(flags.ArgumentParser):
    """Reads what --config names; its keys on the command line must be there."""

    def parse(self, argument: str) -> ConfigDict:
        config = recipes.read(argument)
        recipes.check_keys(config, sys.argv)
        config.lock()
        return config


def define_config(help: str) -> flags.FlagHolder:
    """Defines --config, which names a recipe, and --config.KEY=VALUE, which change it."""
    holder = config_flags.DEFINE_config_file("config", None, help)
    flags.FLAGS["config"].parser = _RecipeParser()
    return holder


class _Parser(flags.ArgumentParser[Any]):
    """What `nova_jax.config.convert` takes, from the text of a flag."""

    def __init__(self, name: str, kind: Any) -> None:
        self.syntactic_help = described(kind)
        self._name, self._kind = name, kind

    def parse(self, argument: Any) -> Any:
        for number in (int, float):
            try:
                argument = number(argument) if isinstance(argument, str) else argument
            except ValueError:
                pass
        return convert(self._kind, argument, f"--{self._name}")


def define(name: str, kind: Any, default: Any, help: str) -> flags.FlagHolder[Any]:
    """A flag of a type as configs and the library have it, such as `nova_jax.config.Count`."""
    return flags.DEFINE(_Parser(name, kind), name, default, help)


def present(*flags: flags.FlagHolder[Any]) -> str | None:
    """The name of the first flag that is given."""
    return next((flag.name for flag in flags if flag.present), None)


def run(
    main: Callable[..., None], *, arguments: str | None = None, config: str | None = None
) -> None:
    """Parses the command line, calls `main` and exits the process.

    Args:
      main: The command. Called without arguments, or with the list of positional ones.
      arguments: What the positional arguments are called ("IN OUT"), of which there must be so
        many, or with "..." at the end more, or any number ("[VIDEO ...]"); None if the command
        takes none.
      config: What --config is where it is not given.
    """
    status = _status(main, arguments, config)
    if status and jax.distributed.is_initialized():
        # The usual way out waits for the other processes of a run, and they wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _status(main: Callable[..., None], arguments: str | None, config: str | None) -> int:
    app.define_help_flags()
    _keep_compiled_programs()
    try:
        try:
            positional = _parse(_with_config(sys.argv, config), arguments)
        except SystemExit:  # absl has printed what --help asks for
            return 0
        if "tune" in flags.FLAGS and flags.FLAGS.tune is not None:
            os.environ[tuning.VARIABLE] = flags.FLAGS.tune
        main(*([positional] if arguments else []))
    except NovaError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if (reason := _storage_error(error)) is None:
            traceback.print_exc()
            return 1
        return _complain(reason)
    return 0


def _keep_compiled_programs() -> None:
    """Has JAX keep compiled programs on disk, for the next run of a command; and traced ones.

    JAX's own variables go before: JAX_COMPILATION_CACHE_DIR says where,
    JAX_ENABLE_COMPILATION_CACHE=false switches it off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))
    # XLA's own caches, in the same directory, keep absolute paths of the machine.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    folder = jax.config.values["jax_compilation_cache_dir"]
    if jax.config.values["jax_enable_compilation_cache"] and "://" not in folder:
        traces.keep(Path(folder) / "traces")


def _with_config(argv: list[str], config: str | None) -> list[str]:
    given = [argument for argument in argv if re.match(r"--?config(=|$)", argument)]
    if len(given) > 1:
        raise NovaError(f"--config is given {len(given)} times; give one recipe")
    return argv if given or config is None else [argv[0], f"--config={config}", *argv[1:]]


def _parse(argv: list[str], arguments: str | None) -> list[str]:
    for given, value in zip(argv, argv[1:], strict=False):
        name = given.removeprefix("--")
        if value.startswith("--") and name in flags.FLAGS and not flags.FLAGS[name].boolean:
            raise NovaError(f"{given} has no value; write {given}=VALUE")
    try:
        positional = flags.FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        close = difflib.get_close_matches(name, flags.FLAGS, n=1)
        hint = f"did you mean --{close[0]}?" if close else "see --help for the flags"
        if name.startswith("config.") and "config" in flags.FLAGS:
            hint = "give --config first"
        raise NovaError(f"Unknown command line flag {name!r}; {hint}") from error
    except flags.IllegalFlagValueError as error:
        given, _, reason = str(error).removeprefix("flag ").partition(": ")
        kind = next((kind for part, kind in _TYPES.items() if part in reason), None)
        raise NovaError(f"{given}: {f'it must be {kind}' if kind else reason}") from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
        # The latter of ml_collections, of keys with an index.
        raise NovaError(f"{error}; see --help for the flags of this command") from error
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if flag.present and flag.value == "" and name not in _MAY_BE_EMPTY:
            raise NovaError(f"--{name} is empty; give it a value, or leave it away")
    if positional and not arguments:
        raise NovaError(f"unexpected argument {positional[0]!r}; flags are written --name=value")
    if arguments:
        _count(positional, arguments)
    return positional


def _count(positional: list[str], arguments: str) -> None:
    """Says how the command is used if it has other arguments than it takes."""
    *wanted, more = arguments.strip("[]").split()
    wanted, any_more = (wanted, True) if more == "..." else ([*wanted, more], False)
    least = 0 if arguments.startswith("[") else len(wanted)
    if len(positional) == least or (any_more and len(positional) > least):
        if "" in positional:
            raise NovaError(f"an argument is empty; give {arguments}")
        return
    file = Path(sys.argv[0])
    command = file.parent.name if file.stem == "__main__" else file.stem
    raise NovaError(
        f"{len(positional)} arguments given; usage: python -m nova_jax.{command} {arguments} "
        "[--flag=value]"
    )


def _complain(message: str) -> int:
    print("error:", message, file=sys.stderr)
    return 2


def _storage_error(error: BaseException | None) -> str | None:
    """The reason if `error` is about where to write: no room, no permission, not a directory."""
    while error is not None:
        if "No space left on device" in str(error):
            return "no space left on device; free some space or choose another output directory"
        if isinstance(error, OSError) and error.errno in _PLACES:
            return f"{error.filename or 'output'}: {error.strerror}; choose another place"
        error = error.__cause__
    return None
