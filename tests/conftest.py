"""Shared by the tests: a tiny configuration, a tiny generator, a tiny CLIP model and a table of slices."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from hub_server import HubServer
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from galip_hf import GalipConfig, GalipForImageTranslation, GalipImageProcessor
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.clip.tiny_clip import build_tiny_clip
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.data.unpaired_dataset import UnpairedSlices
from galip_hf.training.trainer import GalipTrainer
from galip_hf.training.training_args import GalipTrainingArguments

torch.set_num_threads(1)

DOMAINS: list[dict[str, Any]] = [
    {
        "name": "T1",
        "prompt": "this MRI is T1-weighted",
        "modality": "MR",
        "intensity": {"rule": "percentile", "lower": 0.0, "upper": 99.5},
    },
    {
        "name": "T2",
        "prompt": "this MRI is T2-weighted",
        "modality": "MR",
        "intensity": {"rule": "percentile", "lower": 1.0, "upper": 99.0},
    },
    {
        "name": "CT",
        "prompt": "this is a CT scan",
        "modality": "CT",
        "intensity": {"rule": "window", "lower": -1000.0, "upper": 1000.0},
    },
]
TEXT_WIDTH, TEXT_LENGTH, TEXT_EMBEDDING_WIDTH = 16, 12, 24
TOKEN, STRANGER = "hf_distinctiveSECRET", "hf_strangerSECRET"  # of the Hub of the tests


def tiny_config(**fields: Any) -> GalipConfig:
    """Two levels of 8 and 16 channels, attention on the second; text widths of the tiny CLIP model."""
    tiny: dict[str, Any] = {
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "blocks_per_level": 1,
        "attention_rates": [2],
        "attention_head_width": 8,
        "norm_groups": 4,
        "label_width": 16,
        "text_width": TEXT_WIDTH,
        "text_length": TEXT_LENGTH,
        "text_embedding_width": TEXT_EMBEDDING_WIDTH,
        "image_size": 32,
        "domains": DOMAINS,
    }
    return GalipConfig(**{**tiny, **fields})


def filled_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Weights by a rule anyone can repeat; outputs are of order 1, where those of a new model are near 0."""
    weights = {}
    for index, name in enumerate(sorted(shapes)):
        shape = tuple(shapes[name])
        values = np.random.Generator(np.random.PCG64(index)).random(size=shape) * 2 - 1
        if len(shape) == 1:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        else:
            values = values * np.sqrt(3.0 / np.prod(shape[1:]))
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights


def filled_model(config: GalipConfig) -> GalipForImageTranslation:
    """A generator with weights and prompt states of order 1, in evaluation mode."""
    model = GalipForImageTranslation(config)
    model.load_state_dict(filled_weights({name: value.shape for name, value in model.state_dict().items()}))
    states = torch.randn(model.prompt_states.shape, generator=torch.Generator().manual_seed(5))
    model.prompt_states.copy_(states)
    return model.eval()


@pytest.fixture(scope="session")
def clip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CLIP model of widths that all differ."""
    return build_tiny_clip(
        tmp_path_factory.mktemp("tiny_clip") / "model",
        [domain["prompt"] for domain in DOMAINS],
        image_size=32,
        patch_size=8,
        width=32,
        depth=4,
        heads=4,
        embedding_width=TEXT_EMBEDDING_WIDTH,
        text_width=TEXT_WIDTH,
        text_depth=1,
        context_length=TEXT_LENGTH,
    )


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and its processor, as they are saved; to be read only."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    config = tiny_config()
    filled_model(config).save_pretrained(directory)
    GalipImageProcessor.from_config(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_backbone(clip_directory: Path) -> ClipBackbone:
    """Frozen, so that all tests can share it."""
    return ClipBackbone.from_pretrained(clip_directory)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and its processor, as `save_pretrained` leaves them."""
    path = tmp_path_factory.mktemp("hub") / "model"
    model = filled_model(tiny_config())
    model.save_pretrained(path)
    GalipImageProcessor.from_config(model.config).save_pretrained(path)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that this process talks to, with an empty cache."""
    with HubServer({TOKEN: "alice", STRANGER: "mallory"}) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        close_session()
        yield server
    close_session()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The Hub client's waits between its tries, in seconds: noted, not waited for."""
    noted: list[float] = []
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=noted.append))
    return noted


def smooth_volume(seed: int, slices: int = 4, size: int = 16) -> np.ndarray:
    """(slices, size, size) float32 in [0, 1]: a few broad waves."""
    rng = np.random.default_rng([seed, 7])
    y, x = np.mgrid[0:size, 0:size] / size
    number = np.arange(slices)[:, None, None]
    waves = [
        np.sin(2 * np.pi * (a * x + b * y + 0.1 * number) + phase)
        for a, b, phase in rng.uniform(0.5, 2.0, (3, 3))
    ]
    return (0.5 + sum(waves) / 6).astype(np.float32)


@pytest.fixture(scope="session")
def table_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training table: three subjects of their own in each of three domains, four slices each."""
    volumes = [
        SubjectVolume(smooth_volume(10 * label + index), domain["name"], f"{domain['name']}-{index}", "train")
        for label, domain in enumerate(DOMAINS)
        for index in range(3)
    ]
    directory = tmp_path_factory.mktemp("table") / "table"
    names = [domain["name"] for domain in DOMAINS]
    return write_table(volumes, directory, domains=names, image_size=None)


MakeTrainer = Callable[..., GalipTrainer]


@pytest.fixture(scope="session")
def make_trainer_in(tiny_backbone: ClipBackbone, table_directory: Path) -> MakeTrainer:
    """Make a trainer of a new tiny model in `output_dir`; keyword arguments go to the training arguments."""

    def make(
        validate: Any = None,
        model_seed: int = 0,
        model_fields: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> GalipTrainer:
        settings = GalipTrainingArguments(**{"max_steps": 3, "batch_size": 2, **arguments})
        torch.manual_seed(model_seed)
        model = GalipForImageTranslation(tiny_config(**(model_fields or {})))
        dataset = UnpairedSlices(
            load_table(table_directory)["train"],
            domains=model.config.domain_names,
            seed=settings.seed,
            horizontal_flip=settings.horizontal_flip,
        )
        processor = GalipImageProcessor.from_config(model.config)
        return GalipTrainer(model, processor, tiny_backbone, settings, dataset, validate)

    return make


@pytest.fixture
def make_trainer(make_trainer_in: MakeTrainer, tmp_path: Path) -> MakeTrainer:
    """As `make_trainer_in`, by default in `tmp_path / "run"`."""
    return lambda *args, **named: make_trainer_in(*args, **{"output_dir": str(tmp_path / "run"), **named})


def tiny_run_recipe(path: Path, table: Path, clip: Path, **training: Any) -> Path:
    """Write a recipe that trains a tiny model on a table, beside its output."""
    model = {name: value for name, value in tiny_config().own_values().items() if "text_" not in name}
    values = {
        "model": model,
        "clip": {"source": str(clip)},
        "data": {"table": str(table)},
        "training": {"output_dir": str(path.parent / "run"), "batch_size": 1, **training},
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
