"""The one exception that means "the request cannot be met as it stands", as opposed to a bug."""


class NovaError(Exception):
    """What is wrong with which thing, and the remedy, in one line.

    Commands print it without a traceback and exit with code 2 (`nova_jax.cli`). A name in it that
    was given with line breaks has spaces in their place.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
