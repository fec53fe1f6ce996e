"""`galip-hf demo`: a real head in three contrasts, each translated to the others and compared with the truth.

Model and head come with the package (`galip_hf/demo_data`), so nothing is downloaded.
"""

import argparse
from pathlib import Path
from typing import Any

from ..files import write_report
from ..version import DISCLAIMER

DATA = Path(__file__).resolve().parents[1] / "demo_data"
MODEL, HEAD = DATA / "open_ms_model", DATA / "head"


def add_parser(commands: Any) -> None:
    """Declare the command."""
    demo = commands.add_parser(
        "demo", help="translate a real head that comes with the package, and compare with the truth"
    )
    demo.add_argument(
        "--output", type=Path, default=Path("galip-hf-demo"), help="folder (default: galip-hf-demo)"
    )
    demo.set_defaults(run=_demo)


def translate_head(output: Path, model: Path = MODEL, head: Path = HEAD) -> dict[str, Any]:
    """Translate every contrast of a head to every other one; writes `head.png` into `output`.

    Args:
        output: a folder, made if it is not there.
        model: directory of the model.
        head: folder with `head_NAME.nii.gz` for each of the model's domains, all on one grid.

    Returns:
        `directions`: for each "T1->T2" the input check's verdict, `psnr` and `ssim` of the translation, and
        `copy_psnr`, what the untouched source would score; protocol `fixed` inside the body. `model`, `head`:
        names of the folders.

    Raises:
        GalipError: a file is missing or cannot be translated.
    """
    from ..data.normalization import normalize_scan
    from ..data.scans import read_scan
    from ..evaluation.metrics import fixed_target, slice_psnr
    from ..figures import FigureRow, save_translation_figure
    from ..foreground import body_mask
    from ..inference.pipeline import GalipPipeline

    pipeline = GalipPipeline.from_pretrained(model)
    names = pipeline.config.domain_names
    scans = {name: read_scan(head / f"head_{name}.nii.gz")[0] for name in names}
    slices = {
        name: normalize_scan(pipeline.processor, scan.array, name).pixel_values[:, 0].numpy()
        for name, scan in scans.items()
    }
    body = body_mask(list(slices.values()))
    truth = {name: fixed_target(volume, mask=body) for name, volume in slices.items()}
    shown = len(body) // 2
    rows, directions = [], {}
    for source in names:
        targets = [name for name in names if name != source]
        for target, translation in zip(targets, pipeline(scans[source], targets, source), strict=True):
            lower, upper = translation.report["window"]
            made = (translation.volume.array - lower) / (upper - lower)
            scores = truth[target].scores(made)["masked"]
            directions[f"{source}->{target}"] = {
                "input_check": translation.report["input_check"]["verdict"],
                "psnr": scores.psnr,
                "ssim": scores.ssim,
                "copy_psnr": truth[target].scores(slices[source])["masked"].psnr,
            }
            here = slices[source][shown], made[shown], slices[target][shown]
            label = f"{source}→{target}"
            rows.append(FigureRow(label, *here, source, target, slice_psnr(made[shown], here[2])))
    output.mkdir(parents=True, exist_ok=True)
    save_translation_figure(rows, output / "head.png", title="A head that no training saw")
    return {"model": model.name, "head": head.name, "directions": directions}


def describe(head: dict[str, Any]) -> str:
    """What `translate_head` returned, a line a direction."""
    return "\n".join(
        f"{direction}: {scores['psnr']:.2f} dB inside the body (the source as it is: "
        f"{scores['copy_psnr']:.2f} dB), SSIM {scores['ssim']:.3f}, input check {scores['input_check']}"
        for direction, scores in head["directions"].items()
    )


def _demo(arguments: argparse.Namespace) -> int:
    head = translate_head(arguments.output)
    write_report(head, arguments.output / "head.json")
    print(describe(head))
    print(
        f"{arguments.output}/head.png: translations beside the truth; {arguments.output}/head.json: numbers"
    )
    print(f"The head (open_ms, CC BY, Lesjak et al., Neuroinformatics 2016) lies in {HEAD}")
    print(f"{DISCLAIMER.capitalize()}.")
    return 0


__all__ = ["add_parser", "describe", "translate_head"]
