"""`galip-hf convert`: a generator checkpoint of the method's authors becomes a model directory, and back."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError
from .outputs import checked_output

if TYPE_CHECKING:
    import numpy as np


def add_parser(commands: Any) -> None:
    """Declare the command."""
    convert = commands.add_parser(
        "convert", help="convert a generator checkpoint of the method's authors, or a model to one"
    )
    convert.add_argument(
        "checkpoint",
        help="file written by torch.save(generator.state_dict()); with --to-official, a model directory",
    )
    convert.add_argument(
        "--to-official", action="store_true", help="the way back: write the authors' layout (a .pt file)"
    )
    convert.add_argument("--domains", metavar="T1,T2,PD", help="names of the domains, in label order")
    convert.add_argument(
        "--prompts", metavar="FILE", help="text file with one prompt a line, in the same order"
    )
    convert.add_argument(
        "--modalities", metavar="MR,MR,CT", help="MR or CT for each domain (default: MR for all)"
    )
    convert.add_argument("--output", required=True, help="model directory, or file, to write")
    states = convert.add_mutually_exclusive_group()
    states.add_argument(
        "--text-states",
        metavar="FILE.npy",
        help="text states (domains, tokens, width) to read; with --to-official, to write",
    )
    states.add_argument(
        "--clip", metavar="SOURCE", help="CLIP model that encodes the prompts (hf-hub:… or a directory)"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace an existing output")
    convert.set_defaults(run=_convert)


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise GalipError(f"{option} {text!r}: found an empty name; expected names separated by commas")
    return names


def _domains_of(arguments: argparse.Namespace, count: int) -> list[dict]:
    """The domains of a converted model, from the command line."""
    from ..model.domains import default_rule

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
    return [
        {"name": name, "prompt": prompt, "modality": modality, "intensity": default_rule(modality)}
        for name, prompt, modality in zip(names, prompts, modalities, strict=True)
    ]


def _read_text_states(path: str) -> "np.ndarray":
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
    output = checked_output(arguments)
    if arguments.to_official:
        _to_official(arguments, output)
    else:
        _from_official(arguments, output)


def _to_official(arguments: argparse.Namespace, output: Path) -> None:
    import numpy as np
    import torch

    from ..files import atomic_write
    from ..model.modeling_galip import GalipForImageTranslation
    from ..official_weights import official_state_dict

    for option in ("domains", "prompts", "modalities", "clip"):
        if getattr(arguments, option):
            raise GalipError(f"--{option}: the model directory states it; leave it out with --to-official")
    if output.is_dir():
        raise GalipError(f"{output}: is a directory; expected the name of a file, such as generator.pt")
    states = Path(arguments.text_states) if arguments.text_states else None
    if states and (states.suffix != ".npy" or (states.exists() and not arguments.overwrite)):
        raise GalipError(f"--text-states {states}: expected the name of a new .npy file, or --overwrite")
    if not (Path(arguments.checkpoint) / "config.json").is_file():
        raise GalipError(f"{arguments.checkpoint}: not a model directory (no config.json in it)")
    model = GalipForImageTranslation.from_pretrained(arguments.checkpoint)
    official = official_state_dict(model)
    with atomic_write(output) as temporary:
        # A copy each: a view would drag along all that it is a view of.
        torch.save({name: value.clone() for name, value in official.items()}, temporary)
    print(f"{output}: {len(official)} tensors, {model.num_parameters():,} parameters")
    if states:
        with atomic_write(states) as temporary:
            np.save(temporary, model.prompt_states.numpy())
        print(f"{states}: text states {tuple(model.prompt_states.shape)}")


def _from_official(arguments: argparse.Namespace, output: Path) -> None:
    import torch

    from ..files import atomic_write
    from ..model.image_processing_galip import GalipImageProcessor
    from ..model.modeling_galip import GalipForImageTranslation
    from ..official_weights import (
        config_of_official_state_dict,
        convert_official_state_dict,
        load_official_state_dict,
    )

    if not arguments.domains:
        raise GalipError("--domains is missing; give the names of the domains, in label order")
    if not (arguments.clip or arguments.text_states):
        raise GalipError("the prompts' text states are missing; give --clip SOURCE or --text-states FILE.npy")
    if output.exists() and not (output / "config.json").is_file():
        raise GalipError(f"{output}: exists and is not a model directory; only a model is overwritten")
    state_dict = load_official_state_dict(arguments.checkpoint)
    converted = convert_official_state_dict(state_dict)
    domains = _domains_of(arguments, len(converted["label_embedding.weight"]))
    if arguments.clip:
        from ..clip.backbone import ClipBackbone

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
    with atomic_write(output) as temporary:
        model.save_pretrained(temporary)
        GalipImageProcessor.from_config(config).save_pretrained(temporary)
    print(f"{output}: {model.num_parameters():,} parameters, domains {', '.join(config.domain_names)}")
