"""The two kinds of user errors. Scripts print them as one line and exit with code 2."""


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(ValueError):
    """A file is missing, broken or does not fit. The message names the file and the remedy."""


class WriteError(DataError):
    """A result cannot be written, for example because the disk is full. Trying again later may help."""


def first_line(err: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(err).splitlines() or [type(err).__name__])[0]
