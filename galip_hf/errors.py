"""The one exception raised for bad input: an argument, a file or a configuration a user can mend."""


class GalipError(ValueError):
    """Bad input. The message is one line: what was found, what was expected, what to do.

    The command line prints it without a traceback and exits with code 2.
    """
