"""A model as a MONAI bundle, which `python -m monai.bundle run` translates a folder of scans with.

The specification: https://docs.monai.io/en/stable/mb_specification.html. The weights stay safetensors and are
loaded by our network (`inference.volume_network.VolumeNetwork`); there is no pickle and no TorchScript, so
applications that want `models/model.ts` (MONAI Deploy) cannot use the bundle.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..files import atomic_write, read_json, read_text, write_report
from ..model.errors import GalipError
from ..version import DISCLAIMER, __version__
from .model_directory import CARD, CONFIG, PROCESSOR, REPORT

WEIGHTS = "model.safetensors"
SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
MONAI_VERSION = "1.5.1"  # the lowest of setup.cfg, where monai is not installed to ask
PAPER = (
    "Korkmaz and Patel, I2I-Galip: Unsupervised Medical Image Translation Using Generative Adversarial CLIP, "
    "MIDL 2025, arXiv:2409.12399"
)


def write_bundle(model: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Write the bundle of a model directory to a folder that is not there yet.

    Args:
        model: directory with config.json, preprocessor_config.json and model.safetensors; the model card
            README.md, report.json and LICENSE are used where they are there.
        output: the folder: configs/metadata.json, configs/inference.json, models/, docs/, LICENSE.

    Returns:
        The folder.

    Raises:
        GalipError: not a model directory, or `output` exists.
    """
    model, output = Path(model), Path(output)
    for name in (CONFIG, PROCESSOR, WEIGHTS):
        if not (model / name).is_file():
            raise GalipError(f"{model}: no {name} in it; expected a model directory")
    if output.exists():
        raise GalipError(f"{output}: already exists; give a folder that is not there yet")
    output.parent.mkdir(parents=True, exist_ok=True)
    config, processor = read_json(model / CONFIG), read_json(model / PROCESSOR)
    domains = [{"name": domain["name"], "modality": domain["modality"]} for domain in config["domains"]]
    rules = list(processor["intensity_rules"].values())
    one_rule = all(rule == rules[0] for rule in rules)
    with atomic_write(output) as folder:
        for name in ("configs", "models", "docs"):
            (folder / name).mkdir(parents=True)
        for name in (CONFIG, PROCESSOR, WEIGHTS):
            shutil.copyfile(model / name, folder / "models" / name)
        write_report(_metadata(model, domains), folder / "configs" / "metadata.json")
        write_report(_inference(domains, one_rule), folder / "configs" / "inference.json")
        _write_documents(model, folder, domains)
    return output


def _metadata(model: Path, domains: list[dict[str, str]]) -> dict[str, Any]:
    names = ", ".join(domain["name"] for domain in domains)
    modalities = sorted({domain["modality"] for domain in domains})
    return {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: "written by galip-hf"},
        "monai_version": _version("monai", MONAI_VERSION),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {
            "galip-hf": __version__,
            "nibabel": _version("nibabel"),
            "pytorch-ignite": _version("pytorch-ignite", "0.5.2"),
        },
        "name": model.resolve().name,
        "task": f"Translation of medical images between {names}, unpaired",
        "description": f"I2I-Galip: one text-conditioned generator for all directions between {names}, "
        f"trained without pairs. Translations are {DISCLAIMER}. See docs/model_card.md.",
        "authors": "See docs/model_card.md",
        "copyright": f"See docs/model_card.md and LICENSE ({_license(model)})",
        "data_type": "nibabel",
        "image_classes": f"one channel of {'/'.join(modalities)}: a scan of one of the domains {names}",
        "pred_classes": "one channel: the scan in the target domain",
        "eval_metrics": _scores(model),
        "intended_use": f"Research. {DISCLAIMER.capitalize()}.",
        "references": [PAPER],
        "network_data_format": {
            "inputs": {"image": _tensor("scan", "magnitude", modalities)},
            "outputs": {"pred": _tensor("translation", "magnitude", modalities)},
        },
    }


def _tensor(meaning: str, format: str, modalities: list[str]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "hounsfield" if modalities == ["CT"] else format,
        "modality": "/".join(modalities),
        "num_channels": 1,
        "spatial_shape": ["*", "*", "*"],
        "dtype": "float32",
        "value_range": [],  # the units of the files: nothing has to be rescaled before
        "is_patch_data": False,
        "channel_def": {"0": meaning},
    }


def _inference(domains: list[dict[str, str]], one_rule: bool) -> dict[str, Any]:
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/output'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "source": None if one_rule else domains[0]["name"],
        "target": domains[1]["name"],
        "force": False,
        "network_def": {
            "_target_": "galip_hf.inference.volume_network.VolumeNetwork",
            "model": "$@bundle_root + '/models'",
            "target": "@target",
            "source": "@source",
            "force": "@force",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "meta_keys": "image_meta_dict",
                    "output_dir": "@output_dir",
                    "output_postfix": "@target",
                    "separate_folder": False,
                    "resample": False,
                }
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }


def _write_documents(model: Path, folder: Path, domains: list[dict[str, str]]) -> None:
    card = model / CARD
    (folder / "docs" / "model_card.md").write_text(
        read_text(card) if card.is_file() else "There is no card of this model.\n", encoding="utf-8"
    )
    (folder / "docs" / "README.md").write_text(
        _README.format(disclaimer=DISCLAIMER, domains=", ".join(domain["name"] for domain in domains)),
        encoding="utf-8",
    )
    licence = model / "LICENSE"
    (folder / "LICENSE").write_text(
        read_text(licence) if licence.is_file() else f"License: {_license(model)}\n", encoding="utf-8"
    )


def _license(model: Path) -> str:
    """What the model card's front matter states."""
    from huggingface_hub import ModelCard

    if not (model / CARD).is_file():
        return "not stated"
    try:
        return str(ModelCard.load(model / CARD).data.license or "not stated")
    except (ValueError, OSError):  # no front matter, or not YAML
        return "not stated"


def _scores(model: Path) -> dict[str, float]:
    """PSNR in dB and SSIM of every direction, protocol `fixed` inside the body; none without report.json."""
    if not (model / REPORT).is_file():
        return {}
    table: Any = read_json(model / REPORT)
    for key in ("protocols", "fixed", "masked", "directions"):
        table = table.get(key) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping):
        return {}
    return {
        f"{direction} {measure}": round(float(row[measure]), 4)
        for direction, row in table.items()
        for measure in ("psnr", "ssim")
        if isinstance(row, Mapping) and isinstance(row.get(measure), (int, float))
    }


def _version(package: str, otherwise: str = "unknown") -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return otherwise


_README = """# Use

```bash
pip install "galip-hf[bundle]"
python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
    --dataset_dir SCANS --output_dir TRANSLATIONS --source T1 --target T2
```

run in this folder, translates every NIfTI file of the folder SCANS. Domains: {domains}. A scan comes out on
its own grid, MR on its own intensity scale and CT in HU; intensities, pixel size and plane are brought to
those of the training inside the network.

Translations are {disclaimer}. model_card.md says what the model was trained on and what was measured.
"""


__all__ = ["write_bundle"]
