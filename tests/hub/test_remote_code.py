"""The code in a repository, in processes that have transformers and torch but not this package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOKEN, filled_model, tiny_config
from hub_server import HubServer
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage

from galip_hf import GalipConfig, GalipForImageTranslation, GalipImageProcessor
from galip_hf.hub.push import code_files, push_model_directory

REPO = "alice/galip-ixi"  # as in the documentation
DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
MODULES = {
    "configuration_galip.py",
    "domain_statistics.py",
    "domains.py",
    "errors.py",
    "image_processing_galip.py",
    "intensity.py",
    "slice_geometry.py",
    "modeling_galip.py",
    "norm_silu_conv.py",
    "unet.py",
    "unet_blocks.py",
    "weight_files.py",
}
# What the process below must not have: this package, and all that only it needs.
HIDDEN = [
    "galip_hf", "open_clip", "timm", "scipy", "skimage", "nibabel", "h5py", "accelerate", "datasets",
    "matplotlib", "torchvision",
]  # fmt: skip

PROGRAM = """
import importlib, json, sys
hidden, jobs = json.loads(sys.argv[1]), json.loads(sys.argv[2])

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
for name in hidden:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported")

import numpy as np, torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage
torch.set_num_threads(1)
for job in jobs:
    if "code" in job:
        names = {"image": np.load(job["image"])}
        exec(job["code"], names)
        np.save(job["output"], names["translation"].detach().numpy())
        continue
    source, options = job["source"], {**job["options"], "trust_remote_code": True}
    processor_options = {name: value for name, value in options.items() if name != "variant"}
    model = AutoModelForImageToImage.from_pretrained(source, **options)
    processor = AutoImageProcessor.from_pretrained(source, **processor_options)
    config = AutoConfig.from_pretrained(source, **processor_options)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    inputs = processor(np.load(job["image"]), domain="T1", return_tensors="pt")
    with torch.inference_mode():
        output = model(inputs["pixel_values"], target_domain=config.domain_names[1]).translation
    np.save(job["output"], output.numpy())
    try:
        model(inputs["pixel_values"], target_domain="none")
    except ValueError as error:
        print(type(error).__module__, error)
for name in hidden:
    assert name not in sys.modules, name
"""


def run_without_the_package(jobs: list[dict], home: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    outcome = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(HIDDEN), json.dumps(jobs)],
        env={**kept, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        | environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return outcome.stdout


@pytest.fixture(scope="module")
def with_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `register_for_auto_class` and `save_pretrained` write it."""
    path = tmp_path_factory.mktemp("code") / "model"
    model = filled_model(tiny_config())
    processor = GalipImageProcessor.from_config(model.config)
    classes = {
        GalipConfig: "AutoConfig",
        GalipForImageTranslation: "AutoModelForImageToImage",
        GalipImageProcessor: "AutoImageProcessor",
    }
    try:
        for known, name in classes.items():
            known.register_for_auto_class(name)
        model.save_pretrained(path)
        processor.save_pretrained(path)
    finally:
        for known in classes:
            known._auto_class = None
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.npy"
    np.save(path, np.random.default_rng(0).random((40, 36), dtype=np.float32) * 900)
    return path


def expected_output(directory: Path, image: Path) -> np.ndarray:
    model = GalipForImageTranslation.from_pretrained(directory)
    inputs = GalipImageProcessor.from_pretrained(directory)(np.load(image), "T1", return_tensors="pt")
    with torch.inference_mode():
        return model(inputs["pixel_values"], target_domain="T2").translation.numpy()


def test_the_pushed_code_is_what_transformers_copies(with_code: Path) -> None:
    assert {path.name for path in with_code.glob("*.py")} == MODULES
    assert {name: Path(str(path)).read_bytes() for name, path in code_files().items()} == {
        path.name: path.read_bytes() for path in with_code.glob("*.py")
    }


def test_identical_output_without_the_package(
    hub: HubServer, directory: Path, with_code: Path, image: Path, tmp_path: Path
) -> None:
    """From the Hub, pinned; then, the network off, from a local directory and from the cache."""
    commit = push_model_directory(directory, REPO, with_code=True, private=True)
    repository = hub.repository(REPO)
    assert len(repository.history()) == 2  # the first, made with the repository, and one for everything
    assert set(repository.files()) - {".gitattributes", "README.md"} == MODULES | {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    for name in ("config.json", "preprocessor_config.json"):  # the same bytes as transformers' own way
        assert json.loads(repository.files()[name]) == json.loads((with_code / name).read_text())
    assert push_model_directory(directory, REPO, with_code=True).oid == commit.oid
    push_model_directory(directory, REPO, with_code=True, subfolder="ema", variant="ema", tag="v2")
    hub.put(REPO, {"modeling_galip.py": b"raise SystemExit('not the pinned code')"})

    def job(source: str, name: str, **options: str) -> dict:
        return {"source": source, "image": str(image), "output": str(tmp_path / name), "options": options}

    pinned = {"revision": commit.oid, "code_revision": commit.oid}
    home = tmp_path / "home"
    home.mkdir()
    online = [job(REPO, "a.npy", **pinned), job(REPO, "b.npy", revision="v2", subfolder="ema", variant="ema")]
    code = re.search(r"```python\n(.*?)```", DOCUMENTATION, flags=re.DOTALL)[1]
    code = re.sub("[0-9a-f]{40}", commit.oid, code)
    online.append({"code": code, "image": str(image), "output": str(tmp_path / "e.npy")})
    hub.forget_requests()
    told = run_without_the_package(online, home, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert told.startswith("transformers_modules.") and "domain 'none' is unknown" in told
    assert [r for r in hub.requests if "/main" in r] == []
    hub.stop()
    offline = [job(str(with_code), "c.npy"), job(REPO, "d.npy", **pinned)]
    run_without_the_package(offline, home, HF_HUB_OFFLINE="1", HF_ENDPOINT=hub.url)
    expected = expected_output(directory, image)
    assert np.abs(expected).max() > 0.1
    for name in ("a.npy", "b.npy", "c.npy", "d.npy"):
        assert np.array_equal(np.load(tmp_path / name), expected), name
    # The documentation's code records gradients: equal to rounding.
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("trust", [None, True])
def test_with_the_package_no_code_of_the_repository_is_run(
    hub: HubServer, directory: Path, tmp_path: Path, trust: bool | None
) -> None:
    """Neither downloaded: not the repository's own, not what `auto_map` names elsewhere."""
    push_model_directory(directory, REPO, with_code=True)
    mark = tmp_path / "executed"
    bomb = f"open({str(mark)!r}, 'w')\n".encode()
    files = {name: bomb for name in MODULES}
    for name in ("config.json", "preprocessor_config.json"):
        values = json.loads(hub.repository(REPO).files()[name])
        values["auto_map"] = {key: f"mallory/bomb--{value}" for key, value in values["auto_map"].items()}
        files[name] = json.dumps(values).encode()
    hub.put("mallory/bomb", {name: bomb for name in MODULES})
    for pushed in ({name: files[name] for name in MODULES}, files):
        hub.put(REPO, pushed)
        hub.forget_requests()
        for auto, known in (
            (AutoConfig, GalipConfig),
            (AutoModelForImageToImage, GalipForImageTranslation),
            (AutoImageProcessor, GalipImageProcessor),
        ):
            assert type(auto.from_pretrained(REPO, trust_remote_code=trust)) is known
        assert not any(".py" in request or "mallory" in request for request in hub.requests)
    assert not mark.exists()


def test_a_loaded_model_is_pushed_with_the_installed_code(hub: HubServer, directory: Path) -> None:
    push_model_directory(directory, REPO, with_code=True)
    code = {name: hub.repository(REPO).files()[name] for name in MODULES}
    values = json.loads(hub.repository(REPO).files()["config.json"])
    values["auto_map"] = {"AutoModelForImageToImage": "mallory/bomb--../x.Y"}
    hub.put(REPO, {"config.json": json.dumps(values).encode(), "errors.py": b"bomb"})
    model = GalipForImageTranslation.from_pretrained(REPO)
    model.push_to_hub("alice/second")
    files = hub.repository("alice/second").files()
    assert {name: files[name] for name in MODULES} == code
    assert "mallory" not in files["config.json"].decode()
