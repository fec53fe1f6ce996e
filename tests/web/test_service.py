"""`galip-hf serve` over real sockets on the loopback, with a tiny model."""

import gzip
import io
import json
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series

from galip_hf import GalipPipeline
from galip_hf.cli import main

httpx = pytest.importorskip("httpx", reason="pip install 'galip-hf[serve]'")
uvicorn = pytest.importorskip("uvicorn", reason="pip install 'galip-hf[serve]'")
pytest.importorskip("starlette", reason="pip install 'galip-hf[serve]'")


@pytest.fixture(scope="module")
def pipeline(model_directory: Path) -> GalipPipeline:
    return GalipPipeline.from_pretrained(model_directory)


@pytest.fixture(scope="module")
def url(pipeline: GalipPipeline) -> Iterator[str]:
    from galip_hf.web.service import Service

    service = Service(pipeline, max_upload=100_000, max_size=1 << 20, max_waiting=4)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(service.app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


def scan_bytes(seed: int) -> bytes:
    array = np.random.default_rng(seed).random((14, 12, 2)).astype(np.float32)
    return nib.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0])).to_bytes()


def opened(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def voxels(content: bytes) -> np.ndarray:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content)).get_fdata()


def test_four_clients_and_fifty_scans(
    url: str, pipeline: GalipPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client gets what came of its own scan, in its own name, and nothing is left on disk."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def client(seeds: range) -> dict[int, dict[str, bytes]]:
        found = {}
        with httpx.Client(timeout=60, verify=False) as session:
            for seed in seeds:
                place = f"{url}/translate/scan{seed}.nii?from=T1&to=T2"
                answer = session.post(place, content=scan_bytes(seed))
                assert answer.status_code == 200, answer.text
                found[seed] = opened(answer.content)
        return found

    with ThreadPoolExecutor(4) as clients:
        answers = {}
        for found in clients.map(client, [range(first, 50, 4) for first in range(4)]):
            answers |= found
    assert sorted(answers) == list(range(50))
    for seed, answer in answers.items():
        assert set(answer) == {f"scan{seed}_T2.nii.gz", f"scan{seed}_T2.json"}
        image = nib.Nifti1Image.from_bytes(scan_bytes(seed))
        expected = pipeline(image, "T2", "T1").array
        np.testing.assert_allclose(voxels(answer[f"scan{seed}_T2.nii.gz"]), expected, atol=1e-4)
        report = json.loads(answer[f"scan{seed}_T2.json"])
        assert report["input"] == f"scan{seed}.nii"
        assert str(tmp_path) not in answer[f"scan{seed}_T2.json"].decode()
    assert list(tmp_path.iterdir()) == []


def test_a_zip_of_dicom(url: str, pipeline: GalipPipeline, tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (tmp_path / "ct").iterdir():
            archive.write(file, f"study/../../{file.name}")  # names lead nowhere
        archive.writestr("__MACOSX/._a", b"x")
    answer = httpx.post(f"{url}/translate/ct.zip?from=CT&to=T1", content=content.getvalue(), timeout=60)
    assert answer.status_code == 200, answer.text
    (name,) = [name for name in opened(answer.content) if name.endswith(".nii.gz")]
    expected = pipeline(tmp_path / "ct", "T1", "CT").array
    np.testing.assert_allclose(voxels(opened(answer.content)[name]), expected, atol=1e-4)


def bomb() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.nii", bytes(2 << 20))
    return content.getvalue()


@pytest.mark.parametrize(
    ("place", "content", "status", "message"),
    [
        ("a.nii?from=T1&to=XX", b"x", 400, "to is 'XX'; expected one of T1, T2, CT"),
        ("a.nii?to=T2", b"x", 400, "domains have different intensity rules"),
        ("a.nii?from=T1&to=T2&path=/etc/passwd", b"x", 400, "path: unknown"),
        ("a.nii?from=T1&to=T2", b"", 400, "the request is empty"),
        ("a.nii?from=T1&to=T2", bytes(100_001), 413, "the limit is 0.09537 MiB"),
        ("a.nii?from=T1&to=T2", iter([bytes(60_000)] * 2), 413, "larger than allowed"),  # no Content-Length
        ("a.nii?from=T1&to=T2", b"no NIfTI", 422, "a.nii: "),
        ("a.txt?from=T1&to=T2", b"text", 422, "a.txt: "),
        ("a.zip?from=T1&to=T2", bomb(), 422, "a.zip: unpacks to more than 0.000977 GiB"),
    ],
)
def test_a_mistake_is_one_sentence(url: str, place: str, content: object, status: int, message: str) -> None:
    answer = httpx.post(f"{url}/translate/{place}", content=content, timeout=60)
    assert answer.status_code == status
    assert message in answer.json()["error"] and "/tmp" not in answer.json()["error"]


def test_the_queue_is_finite_and_who_left_is_not_translated(
    url: str, pipeline: GalipPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, started = threading.Event(), []

    def slow(self: GalipPipeline, volume: object, *arguments: object, **options: object) -> object:
        started.append(volume.path.name)  # type: ignore[attr-defined]
        go.wait(30)
        return original(self, volume, *arguments, **options)

    original = GalipPipeline.__call__
    monkeypatch.setattr(GalipPipeline, "__call__", slow)

    def request(name: str, timeout: float = 60) -> int:
        address = f"{url}/translate/{name}?from=T1&to=T2"
        try:
            return httpx.post(address, content=scan_bytes(1), timeout=timeout).status_code
        except httpx.ReadTimeout:
            return 0

    def waiting() -> int:
        return httpx.get(url).json()["waiting"]

    with ThreadPoolExecutor(4) as clients:
        results = [clients.submit(request, "first.nii")]
        while not started:
            time.sleep(0.01)
        results += [clients.submit(request, "left.nii", 0.5)]
        results += [clients.submit(request, f"{name}.nii") for name in ("third", "fourth")]
        while waiting() < 4:
            time.sleep(0.01)
        answer = httpx.post(f"{url}/translate/fifth.nii?from=T1&to=T2", content=scan_bytes(1))
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "10"
        assert results[1].result() == 0
        go.set()
        assert [result.result() for result in results] == [200, 0, 200, 200]
    assert set(started) == {"first.nii", "third.nii", "fourth.nii"}
    assert waiting() == 0


def test_mistakes_of_the_command(model_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(model_directory), "--max-upload", "0"]) == 2
    assert "--max-upload is 0.0; expected more than 0" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", str(model_directory), "--port", port]) == 2
    assert f"--port {port}: cannot be listened on" in capsys.readouterr().err
