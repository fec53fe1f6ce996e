"""Decoding of compressed DICOM pixels in a process of its own.

GDCM is C++: on some corrupt JPEG streams it aborts the whole process, and prints complaints that no Python
code can catch. A batch of scans must outlive one corrupt slice, so the decoder works in a child process,
which is this file run as a program; it stays for all files of a series, as starting it takes a moment.

The child reads one path a line (JSON) and answers with one line of JSON: `{"error": text}`, or the shape and
data type of the array whose bytes follow.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

_LONGEST_SECONDS = 120  # for one file, after which the decoder is taken to hang


class PixelDecoder:
    """Decodes files one after another; use it in a `with` block. The child starts with the first file."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PixelDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def decode(self, path: Path) -> np.ndarray:
        """The stored values, (rows, columns) or (frames, rows, columns).

        Raises:
            ValueError: the data cannot be decoded, or the decoder crashed or hung on them.
        """
        if self._child is None:
            program = f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"
            self._child = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        watch = threading.Timer(_LONGEST_SECONDS, child.kill)
        watch.start()
        try:
            child.stdin.write(json.dumps(str(path.resolve())).encode() + b"\n")
            child.stdin.flush()
            answer = json.loads(child.stdout.readline())
            if "error" in answer:
                raise ValueError(answer["error"])
            data = child.stdout.read(answer["bytes"])
            return np.frombuffer(data, answer["dtype"]).reshape(answer["shape"])
        except (OSError, json.JSONDecodeError):  # the pipe broke, or ended before an answer
            self._stop()
            raise ValueError("the decoder crashed or hung on the pixel data") from None
        finally:
            watch.cancel()

    def _stop(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            child.kill()
            child.communicate()


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """The child's loop."""
    import pydicom

    for line in requests:
        array = np.zeros(0)
        try:
            array = np.ascontiguousarray(pydicom.dcmread(json.loads(line), force=True).pixel_array)
            reply = {"bytes": array.nbytes, "dtype": array.dtype.str, "shape": array.shape}
        except Exception as error:  # whatever it is, the parent tells the user
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply).encode() + b"\n")
        if "error" not in reply:
            answers.write(array.tobytes())
        answers.flush()


if __name__ == "__main__":
    import os
    import warnings

    warnings.simplefilter("ignore")
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print must not come between the answers
    _serve(sys.stdin.buffer, own)
