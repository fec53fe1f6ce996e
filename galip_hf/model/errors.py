"""The one exception raised for bad input: an argument, a file or a configuration a user can mend."""


class GalipError(ValueError):
    """Bad input. The message is one line: what was found, what was expected, what to do.

    The command line prints it without a traceback and exits with code 2. A message that quotes too much of a
    faulty file is cut in its middle.
    """

    _LONGEST = 1000

    def __init__(self, message: str) -> None:
        # What a message quotes from a corrupt file may hold anything, line ends too.
        if len(message) > self._LONGEST:
            message = f"{message[: self._LONGEST * 2 // 3]} … {message[-self._LONGEST // 3 :]}"
        super().__init__("".join(sign if sign.isprintable() else " " for sign in message))
