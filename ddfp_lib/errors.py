"""The error for bad input: one line that a user can act on."""


class UserError(ValueError):
    """Bad input; the message names the file, key or value, and the fix.

    The command line prints the message without a traceback and exits with status 2.
    """


def one_line(said: object) -> str:
    """Return the text of an exception or an input without line breaks."""
    return " ".join(str(said).split())
