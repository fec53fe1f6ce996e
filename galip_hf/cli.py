"""The command line, `galip-hf`. A user's mistake is one line on stderr and exit code 2."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import GalipError
from .version import __version__

if TYPE_CHECKING:
    from .image_processing_galip import GalipImageProcessor
    from .modeling_galip import GalipForImageTranslation


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="galip-hf", description="Unpaired medical image translation (I2I-Galip)."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

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

    convert = commands.add_parser("convert", help="convert a generator checkpoint of the method's authors")
    convert.add_argument("checkpoint", help="file written by torch.save(generator.state_dict())")
    convert.add_argument(
        "--domains", required=True, metavar="T1,T2,PD", help="names of the domains, in label order"
    )
    convert.add_argument(
        "--prompts", metavar="FILE", help="text file with one prompt a line, in the same order"
    )
    convert.add_argument(
        "--modalities", metavar="MR,MR,CT", help="MR or CT for each domain (default: MR for all)"
    )
    convert.add_argument("--output", required=True, help="model directory to write")
    states = convert.add_mutually_exclusive_group(required=True)
    states.add_argument("--text-states", metavar="FILE.npy", help="text states (domains, tokens, width)")
    states.add_argument(
        "--clip", metavar="SOURCE", help="CLIP model that encodes the prompts (hf-hub:… or a directory)"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace an existing output")
    convert.set_defaults(run=_convert)
    return parser


def load_model(source: str) -> tuple["GalipForImageTranslation", "GalipImageProcessor"]:
    """A model and its processor from a directory or a Hub repository.

    Raises:
        GalipError: nothing there, or not a model of ours.
    """
    from .image_processing_galip import GalipImageProcessor
    from .modeling_galip import GalipForImageTranslation

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
    from .data.readers import read_volume
    from .data.writers import check_output_path, write_volume

    # What can fail early, and costs little, comes first.
    output = check_output_path(arguments.output, overwrite=arguments.overwrite)
    volume = read_volume(arguments.input)
    if arguments.batch_size < 1:
        raise GalipError(f"--batch-size is {arguments.batch_size}; expected 1 or more")

    import numpy as np
    from tqdm.auto import tqdm

    from .inference import translate_batches

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


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise GalipError(f"{option} {text!r}: found an empty name; expected names separated by commas")
    return names


def _domains_of(arguments: argparse.Namespace, count: int) -> list[dict]:
    """The domains of a converted model, from the command line."""
    names = _names(arguments.domains, "--domains")
    if len(names) != count:
        raise GalipError(
            f"--domains {arguments.domains}: {len(names)} names; the checkpoint has {count} domains"
        )
    modalities = _names(arguments.modalities, "--modalities") if arguments.modalities else ["MR"] * count
    if len(modalities) != count:
        raise GalipError(f"--modalities {arguments.modalities}: {len(modalities)} given; expected {count}")
    if arguments.prompts:
        try:
            prompts = Path(arguments.prompts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise GalipError(f"--prompts {arguments.prompts}: not a readable text file") from None
    else:
        prompts = [f"this MRI is {name}-weighted" for name in names]
    if len(prompts) != count:
        raise GalipError(
            f"--prompts {arguments.prompts}: {len(prompts)} lines; expected {count}, one a domain"
        )
    # The authors scale slices to [0, 1] before training; these rules do so for whole volumes.
    rules = {
        "MR": {"rule": "percentile", "lower": 0.0, "upper": 99.5},
        "CT": {"rule": "window", "lower": -1000.0, "upper": 1000.0},
    }
    return [
        {"name": name, "prompt": prompt, "modality": modality, "intensity": rules.get(modality, {})}
        for name, prompt, modality in zip(names, prompts, modalities, strict=True)
    ]


def _read_text_states(path: str) -> "np.ndarray":  # type: ignore[name-defined]  # noqa: F821
    import numpy as np

    try:
        states = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise GalipError(f"--text-states {path}: not a readable .npy file") from None
    if not isinstance(states, np.ndarray) or states.ndim != 3 or states.dtype.kind != "f":
        raise GalipError(f"--text-states {path}: expected a float array (domains, tokens, width)")
    if not np.isfinite(states).all():
        raise GalipError(f"--text-states {path}: holds NaN or infinite values")
    return states.astype(np.float32)


def _convert(arguments: argparse.Namespace) -> None:
    import shutil
    import tempfile

    import torch

    from .convert import config_of_official_state_dict, convert_official_state_dict, load_official_state_dict
    from .image_processing_galip import GalipImageProcessor
    from .modeling_galip import GalipForImageTranslation

    output = Path(arguments.output)
    if output.exists() and not arguments.overwrite:
        raise GalipError(f"{output}: already exists; choose another name or pass --overwrite")
    if output.exists() and not (output / "config.json").is_file():
        raise GalipError(f"{output}: exists and is not a model directory; only a model is overwritten")
    if not output.parent.is_dir():
        raise GalipError(f"{output}: the directory {output.parent} does not exist; create it first")
    state_dict = load_official_state_dict(arguments.checkpoint)
    converted = convert_official_state_dict(state_dict)
    domains = _domains_of(arguments, len(converted["label_embedding.weight"]))
    if arguments.clip:
        from .clip_backbone import ClipBackbone

        states = (
            ClipBackbone.from_pretrained(arguments.clip)
            .encode_prompts([d["prompt"] for d in domains])
            .token_states
        )
    else:
        states = torch.from_numpy(_read_text_states(arguments.text_states))
    config = config_of_official_state_dict(state_dict, domains=domains, text_length=states.shape[1])
    expected = (len(domains), *config.prompt_states_shape)
    if tuple(states.shape) != expected:
        raise GalipError(f"text states: found shape {tuple(states.shape)}; the checkpoint needs {expected}")
    model = GalipForImageTranslation(config)
    try:
        model.load_state_dict({**converted, "prompt_states": states})
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise GalipError(f"{arguments.checkpoint}: not the authors' generator ({reason})") from None
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        model.save_pretrained(temporary)
        GalipImageProcessor.from_config(config).save_pretrained(temporary)
        temporary.chmod(0o755)
        if output.exists():
            output.rename(temporary / "replaced")
        temporary.rename(output)
        shutil.rmtree(output / "replaced", ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{output}: {model.num_parameters():,} parameters, domains {', '.join(config.domain_names)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except GalipError as error:
        print(f"galip-hf: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("galip-hf: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
