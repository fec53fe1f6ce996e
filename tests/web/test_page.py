"""`galip-hf app` in headless Chromium, with the phantom model: `make test-slow`."""

import gzip
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from galip_hf import GalipPipeline
from galip_hf.data import phantom

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'galip-hf[slow]'")
pytest.importorskip("gradio", reason="pip install 'galip-hf[app]'")

MODEL = Path(__file__).resolve().parents[2] / "examples" / "phantom_model"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# WebGL on the CPU, for the viewers.
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
SHOWN = "#galip-viewer[data-state=shown]"
SECONDS = 1000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[tuple[Any, str]]:
    """The page, and its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(root / "uploads"))
        from galip_hf.web.page import Page

        page = Page(GalipPipeline.from_pretrained(MODEL, force=True), root)
        _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
        yield page, address
        page.blocks.close()


@pytest.fixture(scope="module")
def url(served: tuple[Any, str]) -> str:
    return served[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        try:
            chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except playwright.Error:
            pytest.skip("no Chromium; install it, or: playwright install chromium")
        yield chromium
        chromium.close()


def visitor(browser: Any, url: str, **options: Any) -> Any:
    """A browser of its own that has opened the page; it notes requests to other machines and errors."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(120 * SECONDS)
    page.outside, page.errors = [], []
    page.on(
        "request",
        lambda request: request.url.startswith((url, "data:", "blob:")) or page.outside.append(request.url),
    )
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#galip-translate")
    return page


def head(path: Path, seed: int, contrast: str = "T1") -> Path:
    array = phantom.render(phantom.make_subject(seed, slices=6), contrast).transpose(2, 1, 0)
    nib.Nifti1Image(array, np.diag([-4.0, -4.0, 10.0, 1.0])).to_filename(path)
    return path


def downloaded(page: Any, label: str) -> bytes:
    with page.expect_download() as download:
        page.click(f"#galip-files a:has-text('{label}')")
    return Path(download.value.path()).read_bytes()


def translate(page: Any, file: Path) -> None:
    page.set_input_files("input[type=file]", str(file))
    page.wait_for_selector(f"text={file.name}")
    page.click("#galip-translate")


def picture(page: Any, name: str) -> None:
    """Kept for a person to look at, where GALIP_HF_PICTURES names a folder."""
    if folder := os.environ.get("GALIP_HF_PICTURES"):
        page.wait_for_timeout(SECONDS)
        page.screenshot(path=str(Path(folder, f"{name}.png")), full_page=True)


def uploads(root: Path) -> list[str]:
    """Uploaded files; those that are empty, and named at random, are left by Gradio's file component."""
    files = [path for path in (root / "uploads").rglob("*") if path.is_file()]
    return [path.name for path in files if path.stat().st_size > 0]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing was removed within a minute"
        time.sleep(0.2)


def test_an_upload_is_shown_and_downloaded(browser: Any, url: str, root: Path, tmp_path: Path) -> None:
    scan = head(tmp_path / "mine.nii.gz", 1001)
    page = visitor(browser, url)
    translate(page, scan)
    page.wait_for_selector(SHOWN)
    assert "The scan looks like the T1 scans" in page.inner_text("#galip-words")
    assert "not for diagnosis" in page.inner_text("#galip-words")
    made = nib.Nifti1Image.from_bytes(gzip.decompress(downloaded(page, "Translation")))
    expected = GalipPipeline.from_pretrained(MODEL, force=True)(scan, "T2").array
    np.testing.assert_allclose(made.get_fdata(), expected, atol=1e-4)
    report = json.loads(downloaded(page, "Report"))
    assert report["input"] == "mine.nii.gz" and report["model"] == "phantom_model"
    page.fill("#galip-slice", "0.8")
    places = page.evaluate("() => window.galipViewers.map((viewer) => viewer.scene.crosshairPos[2])")
    np.testing.assert_allclose(places, 0.8, atol=1e-6)
    picture(page, "desktop")
    assert page.outside == [] and page.errors == []
    # The session's files are there, cannot be guessed, and go with it.
    (folder,) = (root / "results").iterdir()
    assert len(folder.name) >= 32
    assert uploads(root) == ["mine.nii.gz"]
    page.context.close()
    wait_until(lambda: not list((root / "results").iterdir()))
    wait_until(lambda: uploads(root) == [])


def test_progress_is_reported_slice_by_slice(served: tuple[Any, str], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    request = SimpleNamespace(session_hash="progress")
    upload = str(head(tmp_path / "mine.nii.gz", 1001))
    page = served[0]
    page._translate(upload, "T1", "T2", True, request, lambda done, unit: told.append(done))
    assert told[0] == (0, 12) and told[-1] == (12, 12)  # six slices, there and back
    assert [done for done, _ in told] == sorted(done for done, _ in told) and len(told) > 2
    page._end(request)


def test_a_wrong_file_is_one_sentence(browser: Any, url: str, tmp_path: Path) -> None:
    page = visitor(browser, url)
    page.click("#galip-translate")
    page.wait_for_selector("text=Choose a scan first")
    wrong = tmp_path / "letter.nii.gz"
    wrong.write_bytes(b"Dear radiologist")
    translate(page, wrong)
    page.wait_for_selector(".galip-error:has-text('letter.nii.gz')")
    words = page.inner_text("#galip-words")
    assert words.count("\n") == 0 and not re.search(r"/tmp|Traceback", words)
    assert page.is_hidden("#galip-viewer")
    picture(page, "wrong-file")
    page.context.close()


def test_two_visitors_at_once_each_see_their_own(browser: Any, url: str, tmp_path: Path) -> None:
    pages = [visitor(browser, url) for _ in range(2)]
    scans = [head(tmp_path / f"visitor{number}.nii.gz", 1002 + number) for number in range(2)]
    for page, scan in zip(pages, scans, strict=True):
        translate(page, scan)
    for page, scan in zip(pages, scans, strict=True):
        page.wait_for_selector(SHOWN)
        made = nib.Nifti1Image.from_bytes(gzip.decompress(downloaded(page, "Translation")))
        expected = GalipPipeline.from_pretrained(MODEL, force=True)(scan, "T2").array
        np.testing.assert_allclose(made.get_fdata(), expected, atol=1e-4)
        page.context.close()


def test_the_example_on_a_phone(browser: Any, url: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = visitor(browser, url, **phone)
    page.tap("#galip-example")
    page.wait_for_selector(SHOWN)
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= 390  # nothing to scroll sideways
    for canvas in ("source", "translation", "cycle map"):
        assert page.locator(f"canvas[aria-label='{canvas}']").bounding_box()["width"] > 300
    picture(page, "phone")
    page.context.close()


def test_the_example_of_a_model_of_real_scans(tmp_path: Path) -> None:
    from galip_hf.web.page import example_head

    example = nib.load(example_head(tmp_path / "example.nii.gz", is_real=True))
    assert example.shape[2] == 18 and example.header.get_zooms()[2] == pytest.approx(3, abs=0.1)
