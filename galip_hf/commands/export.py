"""`galip-hf export`: a model as one file that runs without this package, or as a MONAI bundle."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError
from ..version import DISCLAIMER
from .outputs import checked_output

if TYPE_CHECKING:
    import numpy as np

    from ..model.configuration_galip import GalipConfig


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("export", help="write a model for ONNX, torch.export or MONAI")
    parser.add_argument("model", help="model directory, or a repository of the Hub (user/name)")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--subfolder", default="", help="folder of the directory or repository")
    parser.add_argument("--variant", help="of the weights: 'ema' stands for model.ema.safetensors")
    parser.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="file, or folder of a bundle, to write; as model.onnx beside the weights, "
        "`galip-hf translate --runtime` finds it",
    )
    parser.add_argument(
        "--format",
        choices=("onnx", "torch-export", "monai-bundle"),
        default="onnx",
        help="onnx (.onnx, default), torch-export (.pt2) or monai-bundle (a folder)",
    )
    parser.add_argument(
        "--to",
        metavar="DOMAIN[,DOMAIN]",
        help="fixed targets, an output each (default: one output, the target's label is an input)",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="type of weights and activations (default: fp32); images are float32 in any case",
    )
    parser.add_argument(
        "--check",
        metavar="SCAN",
        help="scan on whose slices the file is compared with PyTorch (default: a phantom head)",
    )
    parser.add_argument(
        "--from", dest="source", metavar="DOMAIN", help="domain of --check (default: the model's first)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    if arguments.format == "monai-bundle":
        _export_bundle(arguments)
    else:
        _export_file(arguments)


def _export_bundle(arguments: argparse.Namespace) -> None:
    """The weights as they are: what concerns a graph is refused."""
    from ..hub.monai_bundle import write_bundle
    from ..hub.pull import resolve_model

    of_graphs = {
        "--to": arguments.to,
        "--check": arguments.check,
        "--from": arguments.source,
        "--variant": arguments.variant,
        "--dtype": arguments.dtype != "fp32",
        "--overwrite": arguments.overwrite,
    }
    given = [name for name, value in of_graphs.items() if value]
    if given:
        raise GalipError(f"{given[0]} has no meaning with --format monai-bundle; leave it out")
    directory = resolve_model(arguments.model, revision=arguments.revision, subfolder=arguments.subfolder)
    output = write_bundle(directory, arguments.output)
    print(
        f"{output}: run it there: python -m monai.bundle run --config_file configs/inference.json "
        "--bundle_root . --dataset_dir SCANS --output_dir OUT"
    )


def _export_file(arguments: argparse.Namespace) -> None:
    from ..export.formats import FORMATS, Export
    from ..hub.pull import resolve_model
    from ..model.unet import load_generator

    suffix, write = FORMATS[arguments.format]
    output = Path(arguments.output)
    if output.suffix != suffix:
        raise GalipError(f"--output {output}: expected the name of a {suffix} file")
    checked_output(arguments)
    directory = resolve_model(
        arguments.model,
        revision=arguments.revision,
        subfolder=arguments.subfolder,
        variant=arguments.variant,
    )
    generator = load_generator(directory, arguments.variant)
    targets = _targets(arguments.to, generator.config)
    slices, slices_are = _slices_to_check(arguments, directory, generator.config)
    export = Export(directory, arguments.variant, generator, targets, arguments.dtype, slices, slices_are)
    metadata = write(export, output)
    _say(output, metadata.check, metadata.size_multiple, targets, generator.config)


def _targets(to: str | None, config: "GalipConfig") -> list[str] | None:
    if to is None:
        return None
    names = [name.strip() for name in to.split(",")]
    for name in names:
        config.domain_index(name)
    if len(set(names)) != len(names):
        raise GalipError(f"--to {to}: expected domain names separated by commas, each once")
    return names


def _slices_to_check(
    arguments: argparse.Namespace, directory: Path, config: "GalipConfig"
) -> tuple["np.ndarray", str]:
    """Three slices (3, H, W) in model space, of the scan given or of a phantom head, and what they are.

    Their sides are those of the model's training canvas, or its image size, cut to multiples of the coarsest
    rate: what a translation computes on.
    """
    import numpy as np

    from ..data import phantom
    from ..data.normalization import normalize_scan
    from ..data.scans import read_scan
    from ..export.graph import size_multiple
    from ..model.intensity import IntensityNormalizer

    source = arguments.source or config.domain_names[0]
    config.domain_index(source)
    multiple = size_multiple(config)
    if arguments.check is None:
        size = max(32, config.image_size // multiple * multiple)
        values = phantom.render(phantom.make_subject(0, size=size, slices=3), "T1")
        lower, upper = np.percentile(values, (0.5, 99.5))
        return np.clip((values - lower) / (upper - lower), 0, 1).astype(np.float32), "a phantom head (seed 0)"
    array = read_scan(arguments.check)[0].array
    normalized = normalize_scan(IntensityNormalizer.load(directory), array, source)
    slices = normalized.pixel_values[:, 0].numpy()
    middle = slices[(np.array([0.3, 0.5, 0.7]) * (len(slices) - 1)).round().astype(int)]
    height, width = (min(length, 512) // multiple * multiple for length in middle.shape[1:])
    if not height or not width:
        raise GalipError(
            f"--check {arguments.check}: slices of {middle.shape[1:]} pixels; expected {multiple}"
        )
    return middle[:, :height, :width], f"three slices of {Path(arguments.check).name} as {source}"


def _say(
    output: Path, check: dict[str, Any], multiple: int, targets: list[str] | None, config: "GalipConfig"
) -> None:
    shape = f"pixel_values (batch, 1, height, width) float32 in [0, 1], sides multiples of {multiple}"
    if targets is None:
        labels = ", ".join(f"{label} {name}" for label, name in enumerate(config.domain_names))
        print(f"{output}: {shape}; target (batch,) int64: {labels}")
    else:
        print(f"{output}: {shape}; outputs {', '.join(targets)}")
    print(
        f"compared with {check['against']} in {check['in']} on {check['of']}: largest difference "
        f"{check['max_abs_difference']:.2g} of the window, root mean square {check['rms_difference']:.2g}"
    )
    print(f"{DISCLAIMER.capitalize()}.")
