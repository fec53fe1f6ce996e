"""Files and folders that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, of the same name as `path`; what is there at the end of the block replaces `path`.

    It lies in a temporary folder beside `path`: on the same file system, with the user's file permissions. A
    file replaces a file, a folder a folder. When the block raises, `path` is as it was and nothing is left.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        yield written
        if path.is_dir():  # a folder cannot be renamed onto a full one: the old one steps aside first
            os.replace(path, Path(folder) / "replaced")
        os.replace(written, path)


__all__ = ["atomic_write"]
