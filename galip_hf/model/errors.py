"""The one exception raised for bad input: an argument, a file or a configuration a user can mend."""


class GalipError(ValueError):
    """Bad input. The message is one line: what was found, what was expected, what to do.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # What a message quotes from a corrupt file may hold anything, line ends too.
        super().__init__("".join(sign if sign.isprintable() else " " for sign in message))
