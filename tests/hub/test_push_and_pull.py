"""The Hub, through the real clients against a local one."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STRANGER, TOKEN, filled_model, tiny_config
from hub_server import HubServer
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage

from galip_hf import GalipForImageTranslation, GalipImageProcessor, GalipPipeline
from galip_hf.cli import main
from galip_hf.hub.errors import HubError
from galip_hf.hub.pull import resolve_model
from galip_hf.hub.push import push_model_directory
from galip_hf.inference.pipeline import load_model
from galip_hf.model.domain_statistics import SHAPE, DomainStatistics
from galip_hf.model.errors import GalipError
from galip_hf.model.unet import GalipGenerator

REPO = "alice/model"
FILES = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]


def test_push_is_one_commit_and_none_without_a_change(hub: HubServer, directory: Path) -> None:
    first = push_model_directory(directory, REPO, private=True, tag="v1")
    repository = hub.repository(REPO)
    assert repository.private
    assert sorted(set(repository.files()) - {".gitattributes"}) == FILES
    count = len(repository.history())
    assert repository.find("v1").oid == first.oid
    second = push_model_directory(directory, REPO)
    assert second.oid == first.oid
    assert len(repository.history()) == count


def test_a_branch_and_a_pull_request_leave_main_alone(hub: HubServer, directory: Path) -> None:
    hub.create(REPO)
    before = [commit.oid for commit in hub.repository(REPO).history()]
    push_model_directory(directory, REPO, revision="dev")
    assert set(FILES) <= set(hub.repository(REPO).files("dev"))
    request = push_model_directory(directory, REPO, create_pr=True)
    assert request.pr_revision == "refs/pr/1"
    assert [commit.oid for commit in hub.repository(REPO).history()] == before
    with pytest.raises(GalipError, match="merge it first"):
        push_model_directory(directory, REPO, create_pr=True, tag="v1")


def test_round_trip_is_exact_and_works_with_the_hub_gone(
    hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GalipForImageTranslation.from_pretrained(directory)
    model.push_to_hub(REPO)
    pulled = resolve_model(REPO, verify=True)
    assert (pulled / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    GalipImageProcessor.from_pretrained(pulled)
    loaded = GalipForImageTranslation.from_pretrained(REPO)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    hub.stop()
    assert resolve_model(REPO) == pulled
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert resolve_model(REPO) == pulled
    with pytest.raises(HubError, match="cache"):
        resolve_model("alice/another")


@pytest.mark.parametrize("verify", [None, True])
def test_a_flipped_bit_is_found_and_leaves_the_cache(
    hub: HubServer, directory: Path, verify: bool | None
) -> None:
    push_model_directory(directory, REPO)
    hub.add_fault("flip", "GET", r"resolve/.*model.safetensors", times=1)
    with pytest.raises(HubError, match=r"model\.safetensors differs from the Hub's checksum"):
        resolve_model(REPO, verify=verify)
    pulled = resolve_model(REPO, verify=verify)
    assert (pulled / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("status", "said"), [(403, "no right"), (429, "too many"), (500, "failing")])
def test_a_refused_push_is_one_line(hub: HubServer, directory: Path, status: int, said: str) -> None:
    hub.create(REPO)
    hub.add_fault(status, "POST", r"/commit/")
    with pytest.raises(HubError, match=said) as caught:
        push_model_directory(directory, REPO)
    assert "\n" not in str(caught.value)


def test_no_access_no_repository_no_hub(
    hub: HubServer,
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    push_model_directory(directory, REPO, private=True)
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    assert any(TOKEN in sent for sent in hub.authorizations)
    messages = []

    def fails(said: str, repo: str = REPO, **options: str) -> None:
        with pytest.raises(HubError, match=said) as caught:
            resolve_model(repo, **options)
        messages.append(str(caught.value))

    fails("token|no such repository", token="hf_wrongSECRET")
    fails("no such repository", token=STRANGER)
    fails("no such repository", repo="alice/none")
    fails("no such revision", revision="none")
    hub.stop()
    fails("cannot be reached|cache")
    for text in [*messages, caplog.text]:
        assert "SECRET" not in text
    assert not any("\n" in message for message in messages)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"SECRET" not in file.read_bytes()


def test_a_pickle_in_place_of_safetensors_is_refused(hub: HubServer, directory: Path) -> None:
    names = ("config.json", "preprocessor_config.json")
    files = {name: (directory / name).read_bytes() for name in names}
    hub.create(REPO)
    hub.put(REPO, {**files, "pytorch_model.bin": b"pickle"})
    with pytest.raises(HubError, match=r"model\.safetensors is not in"):
        resolve_model(REPO)


def test_a_cut_download_is_taken_up_again(hub: HubServer, directory: Path) -> None:
    push_model_directory(directory, REPO)
    hub.add_fault("truncate", "GET", r"resolve/.*model.safetensors", times=1)
    pulled = resolve_model(REPO)
    assert (pulled / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


def test_load_model_verifies_what_comes_from_the_hub(hub: HubServer, directory: Path) -> None:
    push_model_directory(directory, REPO)
    hub.add_fault("flip", "GET", r"resolve/.*model.safetensors", times=1)
    with pytest.raises(HubError, match="differs"):
        load_model(REPO)
    model, _ = load_model(REPO)
    assert model.config.domain_names == tiny_config().domain_names
    hub.forget_requests()
    load_model(str(directory))
    assert hub.requests == []


def test_text_written_by_hand_stays_in_the_card(hub: HubServer, directory: Path) -> None:
    push_model_directory(directory, REPO)
    card = hub.repository(REPO).files()["README.md"].decode()
    for domain in tiny_config().domains:
        assert domain["prompt"] in card
    parameters = filled_model(tiny_config()).num_parameters()
    assert f"{parameters:,} parameters" in card
    edited = card.replace(f"{parameters:,} parameters", "7 parameters") + "\nBy hand.\n"
    hub.put(REPO, {"README.md": edited.encode()})
    push_model_directory(directory, REPO)
    pushed = hub.repository(REPO).files()["README.md"].decode()
    assert "By hand." in pushed and f"{parameters:,} parameters" in pushed


def test_push_at_the_command_line(
    hub: HubServer, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(directory), REPO, "--private", "--tag", "v1"]) == 0
    repository = hub.repository(REPO)
    assert repository.private and set(FILES) <= set(repository.files("v1"))
    assert repository.history()[0].oid in capsys.readouterr().out
    assert main(["push", str(directory), REPO, "--create-pr"]) == 0
    assert main(["push", str(tmp_path / "none"), REPO]) == 2
    assert "no such model directory" in capsys.readouterr().err
    scan = tmp_path / "scan.npy"
    np.save(scan, np.random.default_rng(0).random((2, 32, 32), dtype=np.float32))
    arguments = ["--model", REPO, "--from", "T1", "--to", "T2", "--verify"]
    hub.forget_requests()
    code = main(["translate", str(scan), "--output", str(tmp_path / "out.npy"), *arguments])
    assert code == 0, capsys.readouterr().err
    assert (tmp_path / "out.npy").is_file()
    assert any("/tree/" in request for request in hub.requests)


def test_every_way_to_pull(
    hub: HubServer, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private repository, at a revision, with a token given; the next commit is another model."""
    push_model_directory(directory, REPO, private=True, tag="v1")
    changed = GalipForImageTranslation.from_pretrained(directory)
    changed.conv_out.bias.data += 1
    changed.push_to_hub(REPO)
    monkeypatch.delenv("HF_TOKEN")
    known = GalipForImageTranslation.from_pretrained(directory).state_dict()
    options = {"revision": "v1", "token": TOKEN}
    for model, kind in (
        (AutoModelForImageToImage.from_pretrained(REPO, **options), GalipForImageTranslation),
        (GalipForImageTranslation.from_pretrained(REPO, **options), GalipForImageTranslation),
        (GalipPipeline.from_pretrained(REPO, **options).model, GalipGenerator),
        (load_model(REPO, **options)[0], GalipGenerator),
    ):
        assert type(model) is kind
        assert all(torch.equal(value, known[name]) for name, value in model.state_dict().items())
    assert AutoConfig.from_pretrained(REPO, **options).own_values() == tiny_config().own_values()
    processor = AutoImageProcessor.from_pretrained(REPO, **options)
    assert processor.to_dict() == GalipImageProcessor.from_pretrained(directory).to_dict()
    newest = GalipForImageTranslation.from_pretrained(REPO, token=TOKEN)
    assert torch.equal(newest.conv_out.bias, known["conv_out.bias"] + 1)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(GalipError, match="private repository"):
        GalipForImageTranslation.from_pretrained(REPO, revision="v1", token=STRANGER)


def test_subfolder_and_variant(
    hub: HubServer, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models in a repository and two sets of weights in one of them, pushed and pulled each by itself."""
    push_model_directory(directory, REPO)
    place = {"subfolder": "runs/second", "variant": "ema"}
    first = push_model_directory(directory, REPO, **place)
    folder = [f"runs/second/{name}" for name in FILES if name != "model.safetensors"]
    files = hub.repository(REPO).files()
    assert set(files) - {".gitattributes"} == {*FILES, *folder, "runs/second/model.ema.safetensors"}
    assert push_model_directory(directory, REPO, **place).oid == first.oid
    model = GalipForImageTranslation.from_pretrained(directory)
    for loaded in (
        GalipForImageTranslation.from_pretrained(REPO, **place),
        AutoModelForImageToImage.from_pretrained(REPO, **place),
        GalipPipeline.from_pretrained(REPO, **place).model,
        load_model(REPO, verify=True, **place)[0],
    ):
        assert torch.equal(loaded.conv_out.weight, model.conv_out.weight)
    GalipImageProcessor.from_pretrained(REPO, subfolder="runs/second")
    with pytest.raises(HubError, match=r"runs/second/model\.none\.safetensors is not in the repository"):
        resolve_model(REPO, subfolder="runs/second", variant="none")
    # What was saved as a variant is pushed and loaded as one, from a local directory too.
    model.save_pretrained(tmp_path / "saved" / "inner", variant="ema")
    GalipImageProcessor.from_config(model.config).save_pretrained(tmp_path / "saved" / "inner")
    load_model(str(tmp_path / "saved"), subfolder="inner", variant="ema")
    push_model_directory(tmp_path / "saved" / "inner", REPO, variant="ema")
    assert "model.ema.safetensors" in hub.repository(REPO).files()
    # Damage in the subfolder is found, by both ways of verifying.
    for verify in (None, True):
        shutil.rmtree(tmp_path / "cache")
        hub.add_fault("flip", "GET", r"resolve/.*/runs/second/model\.ema\.safetensors", times=1)
        with pytest.raises(HubError, match=r"model\.ema\.safetensors differs from the Hub's checksum"):
            resolve_model(REPO, verify=verify, **place)
    scan, output = tmp_path / "scan.npy", tmp_path / "out.npy"
    np.save(scan, np.random.default_rng(0).random((2, 32, 32), dtype=np.float32))
    options = ["--subfolder", "runs/second", "--variant", "ema"]
    assert main(["push", str(directory), "alice/other", *options, "--with-code"]) == 0
    assert {"modeling_galip.py", "runs/second/config.json"} <= set(hub.repository("alice/other").files())
    arguments = ["--model", "alice/other", "--from", "T1", "--to", "T2", "--output", str(output)]
    assert main(["translate", str(scan), *arguments, *options]) == 0, capsys.readouterr().err
    assert output.is_file()


def test_the_processors_statistics_go_with_the_model(hub: HubServer, directory: Path) -> None:
    model = GalipForImageTranslation.from_pretrained(directory)
    processor = GalipImageProcessor.from_pretrained(directory)
    counts = np.ones(SHAPE, dtype=np.int64)
    processor.set_statistics({"T1": DomainStatistics(counts, 1.0, 0.5)})
    model.push_to_hub(REPO, processor=processor)
    assert set(GalipImageProcessor.from_pretrained(REPO).statistics) == {"T1"}
