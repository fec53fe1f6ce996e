"""`galip-hf translate`: a scan in, a scan out."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from ..errors import GalipError

if TYPE_CHECKING:
    from ..image_processing_galip import GalipImageProcessor
    from ..modeling_galip import GalipForImageTranslation


def add_parser(commands: Any) -> None:
    """Declare the command."""
    translate = commands.add_parser("translate", help="translate one scan to another domain")
    translate.add_argument("input", help="scan: .nii, .nii.gz, .mat, .npy, .npz or .png")
    translate.add_argument(
        "--model", required=True, help="model directory, or a repository of the Hub (user/name)"
    )
    translate.add_argument(
        "--to", required=True, metavar="DOMAIN", help="target domain, a name that the model knows"
    )
    translate.add_argument(
        "--from",
        dest="source",
        metavar="DOMAIN",
        help="domain of the input; needed if the domains' intensity rules differ",
    )
    translate.add_argument("--output", required=True, help="file to write; its suffix decides the format")
    translate.add_argument("--overwrite", action="store_true", help="replace an existing output")
    translate.add_argument("--batch-size", type=int, default=8, help="slices translated at once (default: 8)")
    translate.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    translate.set_defaults(run=_translate)


def load_model(source: str) -> tuple["GalipForImageTranslation", "GalipImageProcessor"]:
    """A model and its processor from a directory or a Hub repository.

    Raises:
        GalipError: nothing there, or not a model of ours.
    """
    from ..image_processing_galip import GalipImageProcessor
    from ..modeling_galip import GalipForImageTranslation

    looks_local = os.path.exists(source) or source.startswith((".", "/", "~")) or source.count("/") != 1
    if looks_local and not os.path.isdir(source):
        raise GalipError(
            f"{source}: no such model directory; expected one written by save_pretrained, or user/name"
        )
    try:
        model = GalipForImageTranslation.from_pretrained(source)
        processor = GalipImageProcessor.from_pretrained(source)
    except OSError as error:
        raise GalipError(f"{source}: not a model that can be loaded ({str(error).splitlines()[0]})") from None
    return model, processor


def _source_domain(arguments: argparse.Namespace, model: "GalipForImageTranslation") -> str:
    """The domain whose intensity rule the input follows."""
    rules = {domain["name"]: domain["intensity"] for domain in model.config.domains}
    if arguments.source is None:
        if len({tuple(sorted(rule.items())) for rule in rules.values()}) > 1:
            raise GalipError(
                "--from is missing: this model's domains have different intensity rules; "
                f"give one of {', '.join(rules)}"
            )
        return next(iter(rules))
    if arguments.source not in rules:
        raise GalipError(f"--from {arguments.source}: unknown to this model; it has {', '.join(rules)}")
    return arguments.source


def _translate(arguments: argparse.Namespace) -> None:
    from ..data.readers import read_volume
    from ..data.writers import check_output_path, write_volume

    # What can fail early, and costs little, comes first.
    output = check_output_path(arguments.output, overwrite=arguments.overwrite)
    volume = read_volume(arguments.input)
    if arguments.batch_size < 1:
        raise GalipError(f"--batch-size is {arguments.batch_size}; expected 1 or more")

    import numpy as np
    from tqdm.auto import tqdm

    from ..inference import translate_batches

    model, processor = load_model(arguments.model)
    model.config.domain_index(arguments.to)
    source = _source_domain(arguments, model)
    try:
        model.to(arguments.device)
    except (RuntimeError, AssertionError) as error:
        raise GalipError(f"--device {arguments.device}: not usable ({str(error).splitlines()[0]})") from None
    normalized = processor.normalize_volume(volume.array, source)
    slices = normalized.pixel_values[:, 0].numpy()
    translated = []
    with tqdm(total=len(slices), unit="slice", desc=f"to {arguments.to}", disable=None) as bar:
        for batch in translate_batches(model, slices, arguments.to, arguments.batch_size):
            translated.append(batch)
            bar.update(len(batch))
    # A percentile window belongs to one scan: an MR translation keeps the input's scale.
    window = processor.fixed_window(arguments.to) or (normalized.lower, normalized.upper)
    array = processor.postprocess(np.concatenate(translated), lower=window[0], upper=window[1])
    write_volume(volume.with_array(array), output, overwrite=arguments.overwrite)
    print(f"{output}: {source} -> {arguments.to}, {len(slices)} slices. Synthetic, not for diagnosis.")
