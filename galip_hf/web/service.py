"""An HTTP service that keeps a model loaded: a scan in the body of a request, its translation in the answer.

    POST /translate/NAME?to=T2[&from=T1][&cycle=1]    body: the file NAME, or a zip of one DICOM series
      200  a zip: NAME_T2.nii.gz, its report NAME_T2.json, and NAME_T2_cycle.nii.gz with cycle=1
      400, 413, 422, 503  {"error": "one sentence"}
    GET /  {"model": ..., "domains": [...], "version": ..., "waiting": ..., limits}

A request is translated when those before it are done; beyond `max_waiting` of them the answer is 503. What a
request sends and gets lies in a folder of its own, which is removed before the answer is sent. No request can
name a file of this machine.
"""

from __future__ import annotations

import asyncio
import io
import logging
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..model.errors import GalipError
from ..version import DISCLAIMER, __version__
from .uploads import public_name, safe_name, translate_upload

if TYPE_CHECKING:
    from ..inference.pipeline import GalipPipeline

logger = logging.getLogger(__name__)
_OPTIONS = {"to", "from", "cycle"}
_RETRY_SECONDS = "10"


class _Refused(Exception):
    """A request that is not carried out: a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Service:
    """The service; `app` is its ASGI application.

    Args:
        pipeline: translates, one request at a time.
        max_upload: bytes of the largest body accepted.
        max_size: bytes of the largest scan accepted, decoded to float32.
        max_waiting: requests that may wait or be in work at once.
    """

    def __init__(
        self, pipeline: GalipPipeline, *, max_upload: int, max_size: int, max_waiting: int = 16
    ) -> None:
        pipeline.name = public_name(pipeline.name)
        self._pipeline = pipeline
        self._max_upload, self._max_size, self._max_waiting = max_upload, max_size, max_waiting
        self._turn = asyncio.Lock()  # first come, first served
        self._waiting = 0
        self.app = Starlette(
            routes=[
                Route("/", self._describe, methods=["GET"]),
                Route("/translate/{name}", self._answer, methods=["POST"]),
            ]
        )

    async def _describe(self, _: Request) -> Response:
        return JSONResponse(
            {
                "model": self._pipeline.name,
                "domains": self._pipeline.config.domain_names,
                "version": __version__,
                "note": DISCLAIMER,
                "waiting": self._waiting,
                "max_waiting": self._max_waiting,
                "max_upload_bytes": self._max_upload,
                "max_size_bytes": self._max_size,
            }
        )

    async def _answer(self, request: Request) -> Response:
        try:
            target, source, cycle = self._options(request)
            if self._waiting >= self._max_waiting:
                raise _Refused(503, f"{self._waiting} scans are waiting already; try again later")
            self._waiting += 1
            try:
                return await self._translated(request, target, source, cycle)
            finally:
                self._waiting -= 1
        except _Refused as refused:
            headers = {"Retry-After": _RETRY_SECONDS} if refused.status == 503 else None
            return JSONResponse({"error": str(refused)}, refused.status, headers)

    def _options(self, request: Request) -> tuple[str, str | None, bool]:
        query, names = request.query_params, self._pipeline.config.domain_names
        unknown = set(query) - _OPTIONS
        if unknown:
            raise _Refused(400, f"{sorted(unknown)[0]}: unknown; expected to, from and cycle")
        target, source, cycle = query.get("to"), query.get("from"), query.get("cycle", "0")
        if target not in names:
            raise _Refused(400, f"to is {target!r}; expected one of {', '.join(names)}")
        if source is not None and source not in names:
            raise _Refused(400, f"from is {source!r}; expected one of {', '.join(names)}")
        if cycle not in ("0", "1"):
            raise _Refused(400, f"cycle is {cycle!r}; expected 0 or 1")
        try:
            self._pipeline.source_domain(source)
        except GalipError as error:
            raise _Refused(400, str(error)) from None
        return target, source, cycle == "1"

    async def _translated(self, request: Request, target: str, source: str | None, cycle: bool) -> Response:
        name = safe_name(request.path_params["name"])
        with tempfile.TemporaryDirectory(prefix="galip-serve-") as folder:
            upload = Path(folder, "upload", name)
            upload.parent.mkdir()
            await self._receive(request, upload)
            async with self._turn:
                if await request.is_disconnected():
                    return Response(status_code=499)  # nobody is there to read it
                content = await run_in_threadpool(self._translate, upload, target, source, cycle)
        headers = {"Content-Disposition": f'attachment; filename="{name}_{safe_name(target)}.zip"'}
        return Response(content, media_type="application/zip", headers=headers)

    async def _receive(self, request: Request, upload: Path) -> None:
        """Write the body to a file, and stop at the limit: what Content-Length announces is not believed."""
        limit = f"the limit is {self._max_upload / (1 << 20):.4g} MiB (--max-upload)"
        received = 0
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self._max_upload:
            raise _Refused(413, f"the scan has {int(announced) / (1 << 20):.4g} MiB; {limit}")
        with open(upload, "wb") as file:
            async for block in request.stream():
                received += len(block)
                if received > self._max_upload:
                    raise _Refused(413, f"the scan is larger than allowed; {limit}")
                file.write(block)
        if received == 0:
            raise _Refused(400, "the request is empty; send the scan as its body (curl --data-binary @FILE)")

    def _translate(self, upload: Path, target: str, source: str | None, cycle: bool) -> bytes:
        folder = upload.parent.parent / "result"
        folder.mkdir()
        try:
            translate_upload(
                self._pipeline,
                upload,
                folder,
                target=target,
                source=source,
                cycle=cycle,
                max_size=self._max_size,
            )
        except GalipError as error:
            raise _Refused(422, str(error)) from None
        except (OSError, MemoryError, RuntimeError) as error:
            logger.error("a translation failed: %s", " ".join(str(error).split()))
            raise _Refused(500, "this machine could not translate the scan; try a smaller one") from None
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:  # stored: NIfTI is compressed already
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)
        return content.getvalue()


__all__ = ["Service"]
