"""Decoding in a child process with a limit of time and of memory.

Some decoders are C or C++ code that a corrupt file makes crash, hang, or take all the memory: SciPy's reader
of MATLAB 5, HDF5, GDCM, ITK, libtiff. A batch of scans must outlive one such file, so these decoders run in
a child process. It stays for all calls of one `ChildProcess`, as starting it takes a moment.

The child reads one call a line (JSON) and answers with one line of JSON, which the bytes of an array follow.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..model.errors import GalipError
from .file_checks import GIB, MAX_SIZE

if TYPE_CHECKING:
    from typing_extensions import Self

_LONGEST_SECONDS = 120  # for one call, after which the decoder is taken to hang
_BASE_MEMORY = 2 * GIB  # address space of Python and the libraries, most of it never touched
# HDF5 must not load filters from the machine's plug-in folder; more threads would cost start-up time.
_ENVIRONMENT = {
    "HDF5_PLUGIN_PRELOAD": "::",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
}


class DecodingError(ValueError):
    """A decoder refused the data, or crashed, hung or took too much memory."""


class ChildProcess:
    """Calls functions of this package in another process; use it in a `with` block.

    The child starts with the first call, and again after a call that killed it.

    Args:
        max_size: bytes of the largest scan accepted (as float32). The child may take four times that, for a
            file of float64 values and one copy of it, beside what it needs by itself.
        seconds: the longest that a call may take.
    """

    def __init__(self, max_size: int = MAX_SIZE, seconds: float = _LONGEST_SECONDS) -> None:
        self._memory = _BASE_MEMORY + 4 * max_size
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def call(self, module: str, function: str, *arguments: Any) -> tuple[dict[str, Any], np.ndarray]:
        """What `function` of `module` returns: facts, which JSON can hold, and an array.

        Args:
            module: its full name.
            arguments: what JSON can hold.

        Raises:
            GalipError: as the function.
            DecodingError: any other failure of the function, or the child crashed, hung or lacked memory.
        """
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        watch = threading.Timer(self._seconds, child.kill)
        watch.start()
        try:
            child.stdin.write(json.dumps([module, function, arguments]).encode() + b"\n")
            child.stdin.flush()
            answer = json.loads(child.stdout.readline())
            if "refused" in answer:
                raise GalipError(answer["refused"])
            if "error" in answer:
                raise DecodingError(answer["error"])
            data = child.stdout.read(answer["bytes"])
            if len(data) < answer["bytes"]:
                raise EOFError
            return answer["facts"], np.frombuffer(data, answer["dtype"]).reshape(answer["shape"])
        except (OSError, EOFError, json.JSONDecodeError):  # the pipe broke, or ended before an answer
            self._stop()
            raise DecodingError(
                f"the decoder crashed, lacked memory or took more than {self._seconds:g} s"
            ) from None
        finally:
            watch.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        # The child finds its modules where this process does, whatever its working directory.
        path = [os.path.abspath(folder) for folder in sys.path]
        program = f"import sys; sys.path[:] = {path!r}; from {__name__} import serve; serve({self._memory})"
        self._child = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
        )
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            child.kill()
            child.communicate()


def serve(memory: int) -> None:
    """The child's loop, until its standard input ends."""
    import warnings

    _limit_memory(memory)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print must not come between the answers
    for line in sys.stdin.buffer:
        module, function, arguments = json.loads(line)
        _answer(module, function, arguments, answers)


def _answer(module: str, function: str, arguments: list[Any], answers: IO[bytes]) -> None:
    array = np.zeros(0)
    try:
        facts, array = getattr(importlib.import_module(module), function)(*arguments)
        array = np.ascontiguousarray(array)
        if array.dtype.kind not in "biufc":
            raise TypeError(f"the array holds {array.dtype}, no numbers")
        reply: dict[str, Any] = {"facts": facts, "bytes": array.nbytes}
        reply |= {"shape": array.shape, "dtype": array.dtype.str}
    except GalipError as error:
        reply = {"refused": str(error)}
    except (Exception, MemoryError) as error:  # whatever it is, the parent tells the user
        reply = {"error": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(reply).encode() + b"\n")
    if "facts" in reply:
        answers.write(array.reshape(-1).view(np.uint8).data)
    answers.flush()


def _limit_memory(memory: int) -> None:
    """At most `memory` bytes of address space; less where the parent is limited already."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no limits, macOS none of this kind
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min([memory, *known]), hard))


__all__ = ["ChildProcess", "DecodingError", "serve"]
