"""What every command does around its work: parse flags, turn user errors into one line.

Exit codes: 0 done, 2 the request cannot be met (the line on stderr says why), 130 interrupted.
Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from nova_jax import recipes
from nova_jax.config import Seed, convert, described
from nova_jax.errors import NovaError
from nova_jax.files import cache_folder
from nova_jax.kernels.diffusion_sampler import tuning
from nova_jax.rewriting import instructions
from nova_jax.rewriting.interface import Rewriter
from nova_jax.rewriting.language_model import LanguageModelRewriter
from nova_jax.rewriting.replay import Replay

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


def define_tune() -> None:
    """Defines --tune, for commands that draw."""
    flags.DEFINE_enum(
        "tune",
        None,
        ["on", "off"],
        f'Whether sampler "auto" times both samplers once on a GPU or TPU; else {tuning.VARIABLE}.',
    )


def present(*flags: flags.FlagHolder[Any]) -> str | None:
    """The name of the first flag that is given."""
    return next((flag.name for flag in flags if flag.present), None)


class RewriterFlags:
    """Defines --rewrite, --rewrite_seed and --rewritten: what prompts become before they are drawn.

    Attributes:
      all: The flags.
    """

    def __init__(self) -> None:
        self._model = flags.DEFINE_string(
            "rewrite",
            None,
            "Instruct model that writes prompts anew before they are drawn: its directory, or its "
            "id on the Hugging Face hub; files keep the names of the prompts.",
        )
        self._seed = define("rewrite_seed", Seed, None, "Sample its answers; greedy by default.")
        self._file = flags.DEFINE_string(
            "rewritten", None, "File of rewritten prompts, or PROMPTS.txt,REWRITTEN.txt."
        )
        self.all = (self._model, self._seed, self._file)

    def make(self, *, video: bool) -> Rewriter | None:
        """The rewriter that is asked for, for videos or for pictures; None for none.

        Raises:
          NovaError: Both a model and a file are given, or a seed alone; or they cannot be read.
        """
        model, file = self._model.value, self._file.value
        if model is not None and file is not None:
            raise NovaError("--rewrite and --rewritten are given; give one of them")
        if self._seed.value is not None and model is None:
            raise NovaError("--rewrite_seed is of --rewrite, which is not given; leave it away")
        if file is not None:
            return Replay.read(file)
        told = instructions.VIDEO if video else instructions.PICTURE
        asked: Any = {"instructions": told, "seed": self._seed.value}
        return None if model is None else LanguageModelRewriter(model, **asked)

    def rewrite(self, prompts: Sequence[str], *, video: bool) -> Replay | None:
        """What prompts become, all of them now; the model's memory is free again after it.

        Its `source` says what made them: the model and its commit or checksum, or the file and the
        checksum of what it says of these prompts.

        Raises:
          NovaError: As `make`, or there are no other words for a prompt.
        """
        rewriter = self.make(video=video)
        if rewriter is None:
            return None
        if isinstance(rewriter, LanguageModelRewriter):
            seed = "greedy" if rewriter.seed is None else f"seed {rewriter.seed}"
            said = Replay.of(rewriter, prompts, f"{self._model.value} ({rewriter.model}, {seed})")
            rewriter.close()
            return said
        said = Replay.of(rewriter, prompts, "")
        checksum = hashlib.sha256(said.lines()).hexdigest()
        return Replay(said.texts, f"{self._file.value} ({checksum})")


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
        if tune := flags.FLAGS.get_flag_value("tune", None):
            os.environ[tuning.VARIABLE] = tune
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
    """Has JAX keep compiled programs on disk, for the next run of a command.

    JAX's own variables go before: JAX_COMPILATION_CACHE_DIR says where,
    JAX_ENABLE_COMPILATION_CACHE=false switches it off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))
    # XLA's own caches, in the same directory, keep absolute paths of the machine.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


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
