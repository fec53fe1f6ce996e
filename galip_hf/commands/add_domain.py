"""`galip-hf add-domain`: a trained model grows by a domain, ready to be trained on."""

import argparse
from typing import Any

from .options import INTENSITY_HELP, parse_intensity
from .outputs import checked_model_output, save_derived_model


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("add-domain", help="grow a trained model by a domain, to train it on")
    parser.add_argument("model", help="model directory or Hub repository")
    parser.add_argument("--name", required=True, metavar="FLAIR", help="name of the new domain")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="its prompt, kept verbatim")
    parser.add_argument("--modality", required=True, help="MR, CT, CBCT, PET, or another by name")
    parser.add_argument(
        "--intensity",
        metavar="RULE",
        help=INTENSITY_HELP,
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


def _add_domain(arguments: argparse.Namespace) -> None:
    from ..clip.backbone import ClipBackbone
    from ..files import atomic_write
    from ..model.domains import default_rule
    from ..model.image_processing_galip import GalipImageProcessor
    from ..model.modeling_galip import GalipForImageTranslation
    from ..training.add_domain import add_domain

    output = checked_model_output(arguments)
    domain = {
        "name": arguments.name,
        "prompt": arguments.prompt,
        "modality": arguments.modality,
        "intensity": parse_intensity(arguments.intensity, f"--intensity {arguments.intensity}")
        if arguments.intensity
        else default_rule(arguments.modality),
    }
    model = GalipForImageTranslation.from_pretrained(arguments.model)
    grown = add_domain(model, domain, ClipBackbone.from_pretrained(arguments.clip), like=arguments.like)
    known = GalipImageProcessor.from_pretrained(arguments.model)
    with atomic_write(output) as temporary:
        save_derived_model(grown, known, temporary)
    print(
        f"{output}: domains {', '.join(grown.config.domain_names)}. {arguments.name} is untrained: train on "
        f"with training.initial_model={output}"
    )
