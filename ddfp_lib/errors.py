"""What a user did wrong, told in one line."""


class UserError(ValueError):
    """Bad input: the message names the file, key or value, and the mend.

    The command line prints the message without a traceback and exits with status 2.
    """


def one_line(said: object) -> str:
    """Return what somebody else says, an exception or an input, without its line breaks."""
    return " ".join(str(said).split())
