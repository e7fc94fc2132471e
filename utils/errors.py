"""The two mistakes a user can make; scripts print them as one line and exit with code 2."""


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(ValueError):
    """A file is missing, broken or does not fit; the message names the file and the remedy."""


def first_line(err: BaseException) -> str:
    """What an error says, in one line; its type when it says nothing."""
    return (str(err).splitlines() or [type(err).__name__])[0]
