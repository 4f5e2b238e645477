"""What every command does around its work: parse flags, turn user errors into one line.

Exit codes: 0 done, 2 the request cannot be met (the line on stderr says why), 130 interrupted.
Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags
from ml_collections.config_flags import config_flags

from nova_jax.errors import NovaError

_PLACES = (errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def run(main: Callable[..., None], *, arguments: str | None = None, optional: bool = False) -> None:
    """Parses the command line, calls `main` and exits the process.

    Args:
      main: The command. Called without arguments, or with the list of positional ones.
      arguments: What the positional arguments are called in messages ("DIR"); None if the command
        takes none, and then any that is given is an error.
      optional: There may be no positional argument.
    """
    status = _status(main, arguments, optional)
    if status and jax.distributed.is_initialized():
        # The usual way out waits for the other processes of a run, and they wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _status(main: Callable[..., None], arguments: str | None, optional: bool) -> int:
    app.define_help_flags()
    _keep_compiled_programs()
    try:
        positional = _parse(sys.argv, arguments, optional)
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
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "nova_jax" / "programs"))
    # XLA's own caches, in the same directory, keep absolute paths of the machine.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _parse(argv: list[str], arguments: str | None, optional: bool) -> list[str]:
    try:
        positional = flags.FLAGS(argv)[1:]
        for flag in (flags.FLAGS[name] for name in flags.FLAGS):
            if config_flags.is_config_flag(flag) and flag.value is not None:
                hasattr(flag.value, "lock")  # a missing file is reported on first access only
    except flags.Error as error:
        raise NovaError(f"{error}; see --help for the flags of this command") from error
    except (OSError, ImportError, SyntaxError) as error:
        reason = str(error).splitlines()[-1]  # ml_collections puts its search paths above it
        raise NovaError(f"the config file cannot be read: {reason}; check --config") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        key = str(error).strip("'\"")  # all that ml_collections says of an unknown key
        if unknown := next((a for a in argv if key in a.split("=")[0].split(".")), None):
            raise NovaError(f"{unknown}: no such key; the config file lists them all") from error
        raise NovaError(f"the config cannot be made: {error}; check --config") from error
    if positional and not arguments:
        raise NovaError(f"unexpected argument {positional[0]!r}; flags are written --name=value")
    if arguments and not (positional or optional):
        raise NovaError(f"no {arguments} given; name at least one")
    return positional


def _complain(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
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
