"""`galip-hf app`: a web page to translate scans and look at them."""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..model.errors import GalipError
from .options import add_loaded_model, load_pipeline


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("app", help="a web page to translate scans (extra: app)")
    add_loaded_model(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: this machine alone; 0.0.0.0: whoever can reach it)",
    )
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860)")
    parser.add_argument(
        "--max-size",
        type=float,
        default=0.5,
        metavar="GIB",
        help="largest scan accepted, in GiB as float32, and largest upload (default: 0.5)",
    )
    parser.set_defaults(run=_app)


def _app(arguments: argparse.Namespace) -> int:
    from ..extras import require

    if not 0 < arguments.max_size < float("inf"):
        raise GalipError(f"--max-size is {arguments.max_size}; expected a size in GiB, more than 0")
    if not 0 < arguments.port < 65536:
        raise GalipError(f"--port is {arguments.port}; expected 1 to 65535")
    pipeline = load_pipeline(arguments)
    max_size = round(arguments.max_size * (1 << 30))
    # Ended by `kill` or by a container's manager, it leaves no scans behind either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="galip-app-") as folder:
        # Gradio puts uploads there, and must be told before it is imported.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))
        require("gradio", "app")
        from ..web.page import Page

        page = Page(pipeline, Path(folder), max_size=max_size)
        try:
            page.launch(
                server_name=arguments.host,
                server_port=arguments.port,
                max_file_size=max_size,
                show_error=True,
            )
        except OSError as error:  # the port is taken
            raise GalipError(f"--port {arguments.port}: {' '.join(str(error).split())}") from None
    return 0


__all__ = ["add_parser"]
