"""What a user did wrong, told in one line."""


class UserError(ValueError):
    """Bad input: the message names the file, key or value, and the mend.

    The command line prints the message without a traceback and exits with status 2.
    """
