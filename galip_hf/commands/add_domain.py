"""`galip-hf add-domain`: a trained model grows by a domain, ready to be trained on."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import GalipError

_DEFAULT_INTENSITY = {"MR": "percentile:0:99.5", "CT": "window:-1000:1000"}


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("add-domain", help="grow a trained model by a domain, to train it on")
    parser.add_argument("model", help="model directory or Hub repository")
    parser.add_argument("--name", required=True, metavar="FLAIR", help="name of the new domain")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="its prompt, kept verbatim")
    parser.add_argument("--modality", required=True, choices=("MR", "CT"))
    parser.add_argument(
        "--intensity",
        metavar="RULE",
        help="percentile:LOWER:UPPER, window:LOWER:UPPER or none (default: "
        + ", ".join(f"{rule} for {modality}" for modality, rule in _DEFAULT_INTENSITY.items())
        + ")",
    )
    parser.add_argument(
        "--like", metavar="NAME", help="old domain whose label the new one starts from (default: their mean)"
    )
    parser.add_argument(
        "--clip",
        required=True,
        metavar="SOURCE",
        help="the CLIP model of the training (hf-hub:… or a directory)",
    )
    parser.add_argument("--output", required=True, help="model directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.set_defaults(run=_add_domain)


def parse_intensity(text: str) -> dict[str, Any]:
    """An intensity rule from `percentile:0:99.5`, `window:-1000:1000` or `none`; its values are not checked.

    Raises:
        GalipError: another form.
    """
    rule, *bounds = text.split(":")
    try:
        numbers = [float(bound) for bound in bounds]
    except ValueError:
        numbers = []
    if rule == "none" and not bounds:
        return {"rule": "none"}
    if rule not in ("percentile", "window") or len(numbers) != 2:
        raise GalipError(f"--intensity {text}: expected percentile:LOWER:UPPER, window:LOWER:UPPER or none")
    return {"rule": rule, "lower": numbers[0], "upper": numbers[1]}


def _add_domain(arguments: argparse.Namespace) -> None:
    from ..clip_backbone import ClipBackbone
    from ..domains import add_domain
    from ..files import atomic_write
    from ..image_processing_galip import GalipImageProcessor
    from ..modeling_galip import GalipForImageTranslation

    output = Path(arguments.output)
    if output.exists() and not arguments.overwrite:
        raise GalipError(f"{output}: already exists; choose another name or pass --overwrite")
    if output.exists() and not (output / "config.json").is_file():
        raise GalipError(f"{output}: exists and is not a model directory; only a model is overwritten")
    if not output.parent.is_dir():
        raise GalipError(f"{output}: the directory {output.parent} does not exist; create it first")
    intensity = arguments.intensity or _DEFAULT_INTENSITY[arguments.modality]
    domain = {
        "name": arguments.name,
        "prompt": arguments.prompt,
        "modality": arguments.modality,
        "intensity": parse_intensity(intensity),
    }
    model = GalipForImageTranslation.from_pretrained(arguments.model)
    grown = add_domain(model, domain, ClipBackbone.from_pretrained(arguments.clip), like=arguments.like)
    processor = GalipImageProcessor(grown.config.domains)
    processor.set_statistics(GalipImageProcessor.from_pretrained(arguments.model).statistics)
    with atomic_write(output) as temporary:
        grown.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    print(
        f"{output}: domains {', '.join(grown.config.domain_names)}. {arguments.name} is untrained: train on "
        f"with training.initial_model={output}"
    )
