"""Files and folders that appear whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .model.errors import GalipError

try:
    import fcntl
except ImportError:  # Windows: what a killed run leaves stays there
    fcntl = None  # type: ignore[assignment]

_MARK = ".writing-"  # in the names of the temporary folders: nobody else's
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)
_LOCK, _REPLACED, _BACKUP = ".galip-lock", ".galip-replaced", ".galip-backup"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, of the same name as `path`; what is there at the end of the block replaces `path`.

    It lies in a temporary folder beside `path`: on the same file system, with the user's file permissions. A
    file replaces a file, a folder a folder. When the block raises, `path` is as it was and nothing is left.
    A killed process leaves the temporary folder, which the next writing of the same `path` removes: the lock
    on a file in it ends with the process, so that folders of runs that still write are told apart.
    """
    path = Path(path)
    _remove_stale(path)
    with _locked_folder(path) as folder:
        written = folder / path.name
        yield written
        if path.is_dir():  # a folder cannot be renamed onto a full one: the old one steps aside first
            os.replace(path, folder / _REPLACED)
        os.replace(written, path)


@contextmanager
def atomic_group(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder for several outputs, `path.name` among them, that appear beside `path` together or not at all.

    At the end of the block each file or folder in it replaces what has its name beside `path`; `path` itself
    comes last, so that where it is, the rest is whole. When the block raises, or one of them cannot be put in
    its place, all is as it was. A killed process leaves what `atomic_write` describes, or, killed in the
    moment of the renaming, some of the outputs without `path`.
    """
    path = Path(path)
    _remove_stale(path)
    with _locked_folder(path) as folder:
        yield folder
        names = sorted(name for name in os.listdir(folder) if not name.startswith(".galip-"))
        names.sort(key=lambda name: name == path.name)
        placed: list[tuple[Path, Path | None]] = []
        try:
            for name in names:
                target = path.with_name(name)
                placed.append((target, _backup(target, folder)))
                os.replace(folder / name, target)
        except BaseException:
            for target, backup in placed:
                _put_back(target, backup)
            raise


def _backup(target: Path, folder: Path) -> Path | None:
    """Keep what is at `target`: a file under a second name; a folder moved aside, as none is replaced."""
    if target.is_dir():
        os.replace(target, folder / _REPLACED)
        return folder / _REPLACED
    if not target.exists():
        return None
    backup = folder / f"{_BACKUP}-{target.name}"
    try:
        os.link(target, backup)
    except OSError:  # a file system without links
        shutil.copy2(target, backup)
    return backup


def _put_back(target: Path, backup: Path | None) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    elif backup is None:
        target.unlink(missing_ok=True)
    if backup is not None:
        os.replace(backup, target)


@contextmanager
def _locked_folder(path: Path) -> Iterator[Path]:
    while True:
        temporary = tempfile.TemporaryDirectory(prefix=f".{path.name}{_MARK}", dir=path.parent)
        with temporary as name:
            folder = Path(name)
            try:
                descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            except FileNotFoundError:  # taken for stale between its making and now
                continue
            try:
                if _lock(descriptor) and _same_file(descriptor, folder / _LOCK):
                    yield folder
                    return
            finally:
                os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove the folders that killed processes left when they wrote `path`."""
    if fcntl is None:
        return
    pattern = re.compile(re.escape(f".{path.name}{_MARK}") + "[a-z0-9_]{8}")  # as tempfile names them
    with suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _remove_if_stale(Path(entry.path), path)


def _remove_if_stale(folder: Path, path: Path) -> None:
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        with suppress(OSError):
            folder.rmdir()  # killed before it had its lock; a folder with content is not ours
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / _REPLACED).exists() and (folder / path.name).exists() and not path.exists():
            os.replace(folder / path.name, path)  # killed between the two renames: the new one is whole
        shutil.rmtree(folder)
    except OSError:  # another process holds it, or the file system has no locks
        pass
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether nobody else has the lock: it is ours now, or the file system has no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def told_if_unwritable(path: str | os.PathLike[str], remedy: str) -> Iterator[None]:
    """Turn the failure of a write in the block (a full disk, say) into one line.

    Raises:
        GalipError: names `path` and the reason, and ends with `remedy`.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise GalipError(f"{os.fspath(path)}: cannot be written ({reason}); {remedy}") from None


@contextmanager
def told_if_full(
    name: str | os.PathLike[str] = "the output", remedy: str = "make room, or write elsewhere"
) -> Iterator[None]:
    """Turn the failure of a write in the block for want of room into one line; other errors pass.

    Args:
        name: of what is written, where the error names no file.
        remedy: what to do.

    Raises:
        GalipError: the disk is full, a quota or a limit of the file size is reached, or the disk may only be
            read.
    """
    try:
        yield
    except GalipError:  # says already which file
        raise
    except Exception as error:  # safetensors and tokenizers have types of their own, and say "(os error 28)"
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number not in _NO_ROOM:
            raise
        named = getattr(error, "filename", None) or name
        raise GalipError(f"{os.fspath(named)}: cannot be written ({os.strerror(number)}); {remedy}") from None


def write_report(report: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Writes a report as JSON (indent 2), complete or not at all.

    Raises:
        GalipError: the report holds a NaN or infinite value, or something JSON has no form for.
    """
    path = Path(path)
    try:
        text = json.dumps(report, indent=2, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise GalipError(
            f"report: {error}; expected finite numbers, text, lists and mappings only"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        GalipError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise GalipError(f"{path}: not readable; expected a text file") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        GalipError: it cannot be read.
    """
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, GalipError):
            raise
        values = None
    if not isinstance(values, dict):
        raise GalipError(f"{path}: not readable as JSON; expected an object")
    return values


def files_below(folder: str | os.PathLike[str]) -> list[Path]:
    """All files below a folder, in the order of their paths; hidden files and folders are passed over."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.is_file())


def file_hash(path: str | os.PathLike[str]) -> str | None:
    """SHA-256 of a file, None if there is no such file."""
    if not Path(path).is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


__all__ = [
    "atomic_group",
    "atomic_write",
    "file_hash",
    "files_below",
    "read_json",
    "read_text",
    "told_if_full",
    "told_if_unwritable",
    "write_report",
]
