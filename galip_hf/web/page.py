"""A web page to translate one's scan: Gradio for the form and the queue, NiiVue for the pictures.

NiiVue is served from this package (`static/niivue`), and nothing from elsewhere. Results are files in a
folder of an unguessable name for each session; folder and upload are removed when the browser leaves.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import nibabel as nib
import numpy as np

from ..data import phantom
from ..data.contrasts import contrast_of
from ..data.file_checks import MAX_SIZE
from ..data.own_outputs import cycle_path, report_path
from ..data.scans import write_scan
from ..model.errors import GalipError
from ..version import DISCLAIMER
from .sessions import Sessions
from .uploads import public_name, translate_upload
from .words import in_plain_words

if TYPE_CHECKING:
    from ..inference.pipeline import GalipPipeline
    from ..inference.translation import Translation

STATIC = Path(__file__).parent / "static"
UNKNOWN = "as it looks"  # the choice of a source that leaves it to the input check
# A person's head, of the package's own data; and a subject of the phantom that no training of ours uses.
REAL_EXAMPLE = Path(__file__).parents[1] / "demo_data" / "head" / "head_T1.nii.gz"
EXAMPLE_SEED, EXAMPLE_CONTRAST, EXAMPLE_PIXELS, EXAMPLE_SLICES = 1000, "T1", 128, 24
_PROGRESS = gr.Progress()  # as a default value it is how Gradio knows where to put a request's progress
EXAMPLE_SIZE = (2.0, 2.0, 6.0)  # mm; the phantom's field of view is 256 mm


def example_head(path: Path, *, is_real: bool) -> Path:
    """Write a T1-weighted head as NIfTI, of a person or of the procedural phantom."""
    if is_real:
        nib.load(REAL_EXAMPLE).to_filename(path)
        return path
    subject = phantom.make_subject(EXAMPLE_SEED, size=EXAMPLE_PIXELS, slices=EXAMPLE_SLICES)
    array = phantom.render(subject, EXAMPLE_CONTRAST)  # (S, H, W): superior up, rows from anterior
    image = nib.Nifti1Image(
        array[:, ::-1].transpose(2, 1, 0) * np.float32(1000), np.diag([*EXAMPLE_SIZE, 1.0])
    )
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


class Page:
    """The page and what lies behind it.

    Args:
        pipeline: translates; one scan at a time, the others wait in Gradio's queue.
        root: an empty folder for uploads and results, which the caller removes at the end.
        max_size: bytes of the largest scan accepted, decoded to float32.
    """

    def __init__(self, pipeline: GalipPipeline, root: Path, *, max_size: int = MAX_SIZE) -> None:
        pipeline.name = public_name(pipeline.name)
        self._pipeline, self._max_size = pipeline, max_size
        self._results = root / "results"
        self._results.mkdir()
        self._sessions = Sessions(self._results)
        is_real = not pipeline.processor.not_for_real_scans
        self._example_scan = example_head(root / "example-T1.nii.gz", is_real=is_real)
        names = pipeline.config.domain_names
        self._example_source = next((name for name in names if contrast_of(name) == EXAMPLE_CONTRAST), None)
        self.blocks = self._blocks()

    def launch(self, **options: Any) -> Any:
        """Serve the page; `options` are those of Gradio's `Blocks.launch`."""
        static = f"gradio_api/file={STATIC.as_posix()}"
        head = (
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<script defer src="{static}/niivue/niivue.umd.js"></script>'
            f'<script defer src="{static}/viewer.js"></script>'
        )
        gr.set_static_paths([STATIC])
        fonts = ["system-ui", "sans-serif"]  # the default theme fetches its fonts from Google
        return self.blocks.launch(
            head=head,
            css=(STATIC / "viewer.css").read_text(encoding="utf-8"),
            theme=gr.themes.Default(font=fonts, font_mono=["monospace"]),
            allowed_paths=[str(self._results)],
            footer_links=[],
            ssr_mode=False,
            **options,
        )

    def _blocks(self) -> Any:
        names = self._pipeline.config.domain_names
        sources = self._sources(names)
        with gr.Blocks(title="galip-hf", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            gr.Markdown(
                f"# Medical image translation\n{html.escape(self._pipeline.name)}: {', '.join(names)}. "
                f"Translations are {DISCLAIMER}. Upload only scans that you may share with this machine; "
                "nothing is kept after you leave."
            )
            with gr.Row():
                upload = gr.File(
                    label="Scan: NIfTI, NRRD, MetaImage, MGH, or a zip of one DICOM series", type="filepath"
                )
                with gr.Column():
                    source = gr.Dropdown(sources, label="The scan is", value=sources[0])
                    target = gr.Dropdown(names, label="Translate to", value=names[1])
                    cycle = gr.Checkbox(True, label="Also translate back, for the cycle map (twice the time)")
                    with gr.Row():
                        start = gr.Button("Translate", variant="primary", elem_id="galip-translate")
                        known = self._example_source is not None
                        example = gr.Button("Example head", elem_id="galip-example", visible=known)
            words = gr.HTML(elem_id="galip-words")
            gr.HTML((STATIC / "viewer.html").read_text(encoding="utf-8"))
            files = gr.HTML(elem_id="galip-files")
            view = gr.JSON(visible=False)
            asked = [upload, source, target, cycle]
            actions = {start: self._translate, example: self._example}
            self._connect(blocks, asked, [words, files, view], actions)
        return blocks

    def _connect(
        self, blocks: gr.Blocks, asked: list[Any], answered: list[Any], actions: dict[Any, Any]
    ) -> None:
        """Say what happens on a click, on an upload, and when the browser leaves.

        Args:
            asked: the components with the upload, source, target and cycle.
            answered: the components for sentences, links and what the viewers load.
            actions: button -> what it does.
        """
        # Private: callable from the page alone, which has a session that ends.
        private = {"api_visibility": "private"}
        asked[0].upload(self._note_upload, asked[0], None, queue=False, show_progress="hidden", **private)
        for button, action in actions.items():
            event = button.click(
                action,
                asked,
                answered,
                concurrency_limit=1,
                concurrency_id="model",
                show_progress_on=answered[0],
                **private,
            )
            event.then(None, answered[2], None, js="(view) => { window.galipShow(view); }")
        blocks.unload(self._end)

    def _sources(self, names: list[str]) -> list[str]:
        """The choices for the domain of the scan; it can be left open where all domains share one rule."""
        rules = self._pipeline.processor.intensity_rules
        shared = all(rules[name] == rules[names[0]] for name in names)
        return [UNKNOWN, *names] if shared else list(names)

    def _note_upload(self, upload: str | None, request: gr.Request) -> None:
        if upload is not None and request.session_hash:
            self._sessions.note_upload(request.session_hash, Path(upload))

    def _end(self, request: gr.Request) -> None:
        self._sessions.end(request.session_hash or "")

    def _example(
        self,
        _upload: str | None,
        _source: str,
        target: str,
        cycle: bool,
        request: gr.Request,
        progress: gr.Progress = _PROGRESS,
    ) -> tuple[str, str, Any]:
        source = self._example_source or ""
        return self._translate(str(self._example_scan), source, target, cycle, request, progress)

    def _translate(
        self,
        upload: str | None,
        source: str,
        target: str,
        cycle: bool,
        request: gr.Request,
        progress: gr.Progress = _PROGRESS,
    ) -> tuple[str, str, Any]:
        """What the page shows: sentences, links to the files, and what the viewers load."""
        if upload is None:
            return _told_of_error("Choose a scan first, or take the example head."), "", None
        folder = self._sessions.new_folder(request.session_hash or "")
        done, total = 0, 1

        def set_total(count: int) -> None:
            nonlocal total
            total = count
            progress((0, total), unit="slices")

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress((done, total), unit="slices")

        try:
            translation, path = translate_upload(
                self._pipeline, Path(upload), folder, target=target,
                source=None if source == UNKNOWN else source, cycle=cycle, max_size=self._max_size,
                advance=advance, total=set_total,
            )  # fmt: skip
            write_scan(translation.source_volume, folder / "source.nii.gz")
        except GalipError as error:
            return _told_of_error(f"{error}."), "", None
        except (OSError, MemoryError, RuntimeError):
            return _told_of_error("This machine could not translate the scan; try a smaller one."), "", None
        return _told(translation), _links(translation, path), {"panels": _panels(translation, path)}


def _told_of_error(sentence: str) -> str:
    return f'<div class="galip-error" role="alert">{html.escape(sentence)}</div>'


def _told(translation: Translation) -> str:
    sentences = in_plain_words(translation.report)
    doubt = " doubt" if translation.warnings else ""
    paragraphs = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="galip-words{doubt}">{paragraphs}</div>'


def _url(path: Path) -> str:
    """Relative, so that it also holds behind a proxy that serves the page below a path of its own."""
    return f"gradio_api/file={path.as_posix()}"


def _links(translation: Translation, path: Path) -> str:
    files = {"Translation (NIfTI)": path, "Report (JSON)": report_path(path)}
    if translation.cycle_map is not None:
        files["Cycle map (NIfTI)"] = cycle_path(path)
    links = [f'<a href="{_url(file)}" download="{file.name}">{label}</a>' for label, file in files.items()]
    return f'<div class="galip-files">{" ".join(links)}</div>'


def _panels(translation: Translation, path: Path) -> list[dict[str, Any]]:
    report = translation.report
    low, high = report["source_window"]
    panels = [
        _panel(path.parent / "source.nii.gz", f"scan ({report['source']})", low, high),
        _panel(path, f"translation ({report['target']}), synthetic", *report["window"]),
    ]
    if translation.cycle_map is not None:
        name = "difference after translating back"
        panels.append(_panel(cycle_path(path), name, 0.0, (high - low) / 2, "inferno"))
    return panels


def _panel(path: Path, name: str, low: float, high: float, colormap: str = "gray") -> dict[str, Any]:
    return {"url": _url(path), "name": name, "low": float(low), "high": float(high), "colormap": colormap}


__all__ = ["Page", "example_head"]
