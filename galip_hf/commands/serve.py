"""`galip-hf serve`: an HTTP service that keeps a model loaded."""

import argparse
from typing import Any

from ..model.errors import GalipError
from .options import add_loaded_model, load_pipeline

_MIB, _GIB = 1 << 20, 1 << 30


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("serve", help="an HTTP service that keeps the model loaded (extra: serve)")
    add_loaded_model(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: this machine alone). There is no login and no encryption: put a "
        "reverse proxy that has both before any other address",
    )
    parser.add_argument("--port", type=int, default=8765, help="port (default: 8765; 0: any free one)")
    parser.add_argument(
        "--max-upload", type=float, default=256, metavar="MIB", help="largest upload (default: 256 MiB)"
    )
    parser.add_argument(
        "--max-size",
        type=float,
        default=2.0,
        metavar="GIB",
        help="largest scan accepted, in GiB as float32 (default: 2)",
    )
    parser.add_argument(
        "--max-waiting",
        type=int,
        default=16,
        help="requests that may wait or be in work at once (default: 16); others are told to come again",
    )
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    import socket

    from ..extras import require

    for option, value in (
        ("--max-upload", arguments.max_upload),
        ("--max-size", arguments.max_size),
        ("--max-waiting", arguments.max_waiting),
    ):
        if not 0 < value < float("inf"):
            raise GalipError(f"{option} is {value}; expected more than 0")
    uvicorn = require("uvicorn", "serve")
    require("starlette", "serve")
    from ..web.service import Service

    pipeline = load_pipeline(arguments)
    service = Service(
        pipeline,
        max_upload=round(arguments.max_upload * _MIB),
        max_size=round(arguments.max_size * _GIB),
        max_waiting=arguments.max_waiting,
    )
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((arguments.host, arguments.port))
        except (OSError, OverflowError) as error:
            raise GalipError(
                f"--host {arguments.host} --port {arguments.port}: cannot be listened on ({error}); "
                "choose another"
            ) from None
        host, port = listener.getsockname()[:2]
        print(f"galip-hf serve: http://{host}:{port} (stop with Ctrl-C)", flush=True)
        # No access log: the names of scans, which may name patients, are in the addresses.
        config = uvicorn.Config(service.app, access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])
    return 0


__all__ = ["add_parser"]
