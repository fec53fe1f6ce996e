"""A Hub that fails, lies, dies or refuses: one line of a documented type, nothing half-written, no token."""

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TOKEN
from hub_server import HubServer
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from galip_hf import GalipConfig, GalipForImageTranslation, GalipImageProcessor
from galip_hf.cli import main
from galip_hf.hub.errors import HubError
from galip_hf.hub.pull import resolve_model
from galip_hf.hub.push import push_model_directory
from galip_hf.inference.pipeline import load_model
from galip_hf.model.errors import GalipError

REPO = "alice/model"
WEIGHTS = r"resolve/.*model\.safetensors"
PULLS: list[Callable[[str], object]] = [load_model, GalipForImageTranslation.from_pretrained]


def refused(call: Callable[[], object], said: str = "") -> str:
    """The message of the GalipError that `call` must raise."""
    with pytest.raises(GalipError, match=said) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and "SECRET" not in message
    assert "SECRET" not in repr(caught.value.__cause__)
    return message


def check_no_token(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes(), path


# Pull


@pytest.mark.parametrize("pull", PULLS)
@pytest.mark.parametrize("status", [401, 403, 404, 412, 429, 500])
def test_a_refused_pull(
    hub: HubServer,
    directory: Path,
    waits: list[float],
    tmp_path: Path,
    pull: Callable[[str], object],
    status: int,
) -> None:
    """For the weights only, and for everything; the Hub quotes the token."""
    push_model_directory(directory, REPO)
    for path in (WEIGHTS, ""):
        hub.faults.clear()
        hub.add_fault(status, "", path, body=f"no access with {TOKEN}".encode())
        refused(lambda: pull(REPO), REPO)
        assert not list((tmp_path / "cache").rglob("model.safetensors"))
    check_no_token(tmp_path)
    hub.faults.clear()
    pull(REPO)


@pytest.mark.parametrize("pull", PULLS)
@pytest.mark.parametrize("action", ["truncate", "drop", "stall", "flip", "lie"])
def test_a_download_that_fails_for_good(
    hub: HubServer,
    directory: Path,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pull: Callable[[str], object],
    action: str,
) -> None:
    """Every time, so that the client's own repair cannot help; afterwards the Hub is well again."""
    if action == "stall":
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    push_model_directory(directory, REPO)
    content = (directory / "model.safetensors").read_bytes()
    hub.add_fault(action, "GET", WEIGHTS, body=b"\0" * 99)
    for _ in range(1 if action == "stall" else 2):
        refused(lambda: pull(REPO), REPO)
        for path in (tmp_path / "cache").rglob("model.safetensors"):
            assert path.read_bytes() == content
    hub.faults.clear()
    pull(REPO)


@pytest.mark.parametrize("pull", PULLS)
def test_all_that_is_damaged_is_told_at_once(
    hub: HubServer, directory: Path, tmp_path: Path, pull: Callable[[str], object]
) -> None:
    """One run names every damaged file of the cache, the next one works."""
    push_model_directory(directory, REPO)
    pull(REPO)
    names = ["config.json", "model.safetensors"]
    for name in names:
        (path,) = (tmp_path / "cache").rglob(name)
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.resolve().write_bytes(content)
    said = refused(lambda: pull(REPO), "differ from the Hub's checksum")
    assert all(name in said for name in names)
    pull(REPO)


def test_words_while_offline(hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there is said once, and a push is not told to download."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert refused(lambda: load_model(REPO)).count("cache") == 1
    said = refused(lambda: push_model_directory(directory, REPO), "cannot be pushed to while HF_HUB_OFFLINE")
    assert "download" not in said


@pytest.mark.parametrize("pull", PULLS)
def test_a_dead_hub(hub: HubServer, waits: list[float], pull: Callable[[str], object]) -> None:
    hub.stop()
    refused(lambda: pull(REPO), f"{REPO}: .*(cannot be reached|connect)")
    assert sum(waits) <= 23


def test_a_cached_model_without_the_hub_costs_no_retries(
    hub: HubServer, directory: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    push_model_directory(directory, REPO)
    pulls = [*PULLS, GalipImageProcessor.from_pretrained, GalipConfig.from_pretrained]
    for pull in pulls:
        pull(REPO)
    counts = {}
    hub.add_fault("drop")
    for pull in pulls:
        hub.forget_requests()
        pull(REPO)
        counts[pull] = len(hub.requests)
    assert max(counts.values()) <= 2 and waits == [], counts
    hub.stop()
    for pull in pulls:
        pull(REPO)
    assert waits == []
    hub.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    hub.forget_requests()
    for pull in pulls:
        pull(REPO)
    assert hub.requests == [] and waits == []


@pytest.mark.parametrize("pull", PULLS)
def test_names_that_lead_out_of_the_repository(
    hub: HubServer, directory: Path, tmp_path: Path, pull: Callable[[str], object]
) -> None:
    """Siblings and a list of weight files: nothing is written outside the cache."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    state = GalipForImageTranslation.from_pretrained(directory).state_dict()
    out = ["../../../../evil", "/" + str(tmp_path / "evil")[1:], "..\\evil"]
    hub.put(REPO, {**files, **{name: b"evil" for name in out}})
    pull(REPO)
    weights = files.pop("model.safetensors")
    for number, name in enumerate(
        ["../../../../evil.safetensors", f"{tmp_path}/evil.safetensors", "evil.bin"]
    ):
        repo = f"alice/listed{number}"
        index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, name)})
        hub.put(repo, {**files, "model.safetensors.index.json": index.encode(), name: weights})
        refused(lambda repo=repo: pull(repo), repo)
    assert not [path for path in tmp_path.rglob("*evil*") if "cache" not in path.relative_to(tmp_path).parts]
    for name in ("../x", "/etc", "a/../../b", "x*", "a\\b"):
        refused(lambda name=name: resolve_model(REPO, subfolder=name), "subfolder")
    for name in ("../x", "a.b", "", "x/y"):
        refused(lambda name=name: resolve_model(REPO, variant=name), "variant")


def test_at_the_command_line(
    hub: HubServer, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2, no output file, on the way in and on the way out."""
    push_model_directory(directory, REPO)
    scan, output = tmp_path / "scan.npy", tmp_path / "out.npy"
    np.save(scan, np.random.default_rng(0).random((2, 32, 32), dtype=np.float32))
    hub.add_fault(403, body=TOKEN.encode())
    capsys.readouterr()
    commands = [
        ["translate", str(scan), "--output", str(output), "--model", REPO, "--from", "T1", "--to", "T2"],
        ["push", str(directory), REPO],
    ]
    for command in commands:
        assert main(command) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and "SECRET" not in told.err
        assert told.err.startswith(f"galip-hf: error: {REPO}: ")
    assert not output.exists()


# Push


@pytest.mark.parametrize(
    ("stage", "action"),
    [
        *(("/commit/", action) for action in (401, 403, 404, 409, 412, 413, 429, 500)),
        *itertools.product(("preupload", "objects/batch", "lfs-upload"), (403, 500, "drop")),
        *itertools.product(["repos/create"], (500, "drop")),
    ],
)
def test_a_refused_push_changes_nothing(
    hub: HubServer,
    directory: Path,
    waits: list[float],
    tmp_path: Path,
    stage: str,
    action: int | str,
) -> None:
    before = hub.create(REPO).history()
    hub.add_fault(action, "", stage, body=f"no access with {TOKEN}".encode())
    refused(lambda: push_model_directory(directory, REPO, tag="v1"), REPO)
    assert hub.repository(REPO).history() == before and not hub.repository(REPO).tags
    check_no_token(tmp_path)
    hub.faults.clear()
    push_model_directory(directory, REPO, tag="v1")
    assert len(hub.repository(REPO).history()) == 2


def test_no_token_in_what_is_logged(
    hub: HubServer, directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything logged, and the token given by name."""
    caplog.set_level(logging.DEBUG)
    for name in ("huggingface_hub", "transformers"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    monkeypatch.delenv("HF_TOKEN")
    push_model_directory(directory, REPO, private=True, token=TOKEN)
    load_model(REPO, token=TOKEN)
    GalipForImageTranslation.from_pretrained(REPO, token=TOKEN)
    hub.add_fault(403)
    refused(lambda: push_model_directory(directory, REPO, token=TOKEN))
    refused(lambda: load_model(REPO, token=TOKEN, revision="v1"))
    assert any(TOKEN in sent for sent in hub.authorizations)
    assert len(caplog.text) > 1000 and "SECRET" not in caplog.text
    for files in (hub.repository(REPO).files("main").values(),):
        assert not any(b"SECRET" in content for content in files)


def test_a_push_whose_answer_is_lost(hub: HubServer, directory: Path) -> None:
    """The commit was made; the next push finds nothing to do."""
    hub.create(REPO)
    hub.add_fault("drop", "POST", "/commit/", times=1)
    refused(lambda: push_model_directory(directory, REPO), REPO)
    made = hub.repository(REPO).history()
    assert push_model_directory(directory, REPO).oid == made[0].oid
    assert len(hub.repository(REPO).history()) == len(made) == 2


def test_a_push_while_somebody_else_pushes(
    hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real 412: the other commit comes between the card and ours."""
    seen = hub.create(REPO)
    find = seen.find

    def moved(revision: str) -> object:
        if hub.requests[-1].endswith("/commit/main"):
            monkeypatch.setattr(seen, "find", find)
            hub.put(REPO, {"other.txt": b"other"})
        return find(revision)

    monkeypatch.setattr(seen, "find", moved)
    refused(lambda: push_model_directory(directory, REPO), "somebody else has pushed since")
    assert set(seen.files()) == {".gitattributes", "other.txt"}


@pytest.mark.parametrize("repo", ["../evil", "a/b/c", "alice/..", "al ice/model", ""])
def test_a_faulty_repository_name(hub: HubServer, directory: Path, repo: str) -> None:
    refused(lambda: push_model_directory(directory, repo))
    assert not hub.repositories


def test_a_directory_that_is_no_model_is_not_pushed(hub: HubServer, directory: Path, tmp_path: Path) -> None:
    """Nothing is asked of the Hub."""

    def without(name: str, **files: bytes) -> Path:
        copy = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        copy.mkdir()
        for path in directory.iterdir():
            if path.name != name:
                (copy / path.name).write_bytes(path.read_bytes())
        for written, content in files.items():
            (copy / written).write_bytes(content)
        return copy

    model = GalipForImageTranslation.from_pretrained(directory)
    sharded = without("model.safetensors")
    model.save_pretrained(sharded, max_shard_size="100KB")
    assert (sharded / "model.safetensors.index.json").is_file()
    refused(lambda: push_model_directory(sharded, REPO), "model.safetensors is missing")
    pickled = without("model.safetensors", **{"pytorch_model.bin": b"pickle"})
    refused(lambda: push_model_directory(pickled, REPO), "pickle")
    damaged = without("model.safetensors", **{"model.safetensors": b"\0" * 99})
    refused(lambda: push_model_directory(damaged, REPO), "damaged")
    refused(lambda: push_model_directory(without("preprocessor_config.json"), REPO), "is missing")
    refused(lambda: push_model_directory(without("config.json"), REPO), "no config.json")
    with pytest.raises(HubError, match="no such repository"):
        resolve_model(REPO)
    assert not hub.repositories
