"""The command line, `galip-hf`. A user's mistake is one line on stderr and exit code 2."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from .commands import (
    add_domain,
    app,
    card,
    complete,
    convert,
    demo,
    distill,
    evaluate,
    export,
    inspect,
    prepare,
    push,
    serve,
    train,
    translate,
)
from .files import told_if_full
from .model.errors import GalipError
from .shown_paths import short_command
from .version import __version__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="galip-hf", description="Unpaired medical image translation (I2I-Galip)."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (
        *(demo, translate, complete, app, serve, prepare, inspect, train, evaluate),
        *(convert, export, distill, add_domain, card, push),
    ):
        command.add_parser(commands)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes the words of a list from one place only; key=value may stand before and after options.
    if arguments.command == "train" and not any(word.startswith("-") for word in rest):
        arguments.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def quiet_libraries() -> None:
    """Switch off the progress bars of transformers and huggingface_hub where nobody watches, as ours are."""
    if sys.stderr.isatty():
        return
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # both libraries read it when imported
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(argv)
    words = argv if getattr(arguments, "full_paths", False) else short_command(argv)
    arguments.command_line = shlex.join(["galip-hf", *words])  # for reports that say how they were made
    quiet_libraries()
    try:
        with told_if_full():
            code: int | None = arguments.run(arguments)
    except GalipError as error:
        print(f"galip-hf: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("galip-hf: interrupted", file=sys.stderr)
        return 130
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
