"""Folders of the page's visitors: made when needed, and gone with the session."""

from __future__ import annotations

import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from threading import Lock


class Sessions:
    """What each visitor has on disk: results in folders of unguessable names, and uploaded files.

    Args:
        root: an existing folder for the results.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = Lock()
        self._folders: dict[str, Path] = {}
        self._uploads: dict[str, set[Path]] = {}

    def new_folder(self, session: str) -> Path:
        """An empty folder for the next result of a session; the one before is removed."""
        folder = self._root / secrets.token_urlsafe(24)
        folder.mkdir()
        with self._lock:
            before = self._folders.pop(session, None)
            self._folders[session] = folder
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
        return folder

    def note_upload(self, session: str, file: Path) -> None:
        """Remember an uploaded file, to be removed with the session."""
        with self._lock:
            self._uploads.setdefault(session, set()).add(file)

    def end(self, session: str) -> None:
        """Remove all that a session has left.

        The same file uploaded by two visitors is one file on disk (Gradio names it by its content), which
        goes with the last of them.
        """
        with self._lock:
            folder = self._folders.pop(session, None)
            files = self._uploads.pop(session, set())
            unused = files - {file for others in self._uploads.values() for file in others}
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for file in unused:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # the folder is Gradio's, one a file
                file.parent.rmdir()


__all__ = ["Sessions"]
