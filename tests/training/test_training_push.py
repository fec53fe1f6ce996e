"""Pushing at the end of training: one commit of the moving average, and nothing lost when the Hub fails."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import STRANGER, TOKEN, MakeTrainer, tiny_run_recipe
from hub_server import HubServer
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from galip_hf import GalipError
from galip_hf.cli import main
from galip_hf.training.recipe import load_recipe
from galip_hf.training.run_recipe import run_recipe
from galip_hf.training.training_args import GalipTrainingArguments

ROOT = Path(__file__).resolve().parents[2]
REPO = "alice/run"
FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training.json"}


def test_a_recipe_pushes_model_processor_and_card_in_one_commit(
    hub: HubServer, tmp_path: Path, table_directory: Path, clip_directory: Path
) -> None:
    path = tiny_run_recipe(
        tmp_path / "recipe.yaml", table_directory, clip_directory, max_steps=2, logging_steps=1
    )
    options = [f"training.hub_repo_id={REPO}", "training.hub_private=true"]
    run_recipe(load_recipe(path, options))
    repository, model = hub.repository(REPO), tmp_path / "run" / "model"
    assert repository.private and len(repository.history()) == 2
    files = repository.files()
    assert set(files) - {".gitattributes"} == FILES
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    facts, text = json.loads(files["training.json"]), files["README.md"].decode()
    assert (
        facts["step"] == 2
        and facts["images"] == 4
        and facts["data"]["subjects"] == {"T1": 3, "T2": 3, "CT": 3}
    )
    assert f"`{facts['data']['split_sha256']}`" in text and "T1 12, T2 12, CT 12" in text
    assert f"local directory {clip_directory.name}" in text and "base_model" not in text
    assert f'from_pretrained("{REPO}")' in text
    assert f"| cycle | {facts['losses']['first']['cycle']:.3f} |" in text
    assert str(tmp_path) not in text + files["training.json"].decode()
    assert str(table_directory.parent) not in files["training.json"].decode()
    assert REPO not in files["training.json"].decode()
    assert main(["card", str(model)]) == 0  # each number of the section is in training.json
    run_recipe(load_recipe(path, [*options, "training.resume=true"]))
    assert len(repository.history()) == 2


def test_the_best_model_is_pushed_where_one_was_looked_for(hub: HubServer, make_trainer: MakeTrainer) -> None:
    scores = iter([5.0, 9.0, 7.0])
    trainer = make_trainer(
        lambda model: {"psnr": next(scores)}, metric_for_best="psnr", validation_steps=1, hub_repo_id=REPO
    )
    trainer.train()
    output = trainer.arguments.output_path
    pushed = hub.repository(REPO).files()
    assert pushed["model.safetensors"] == (output / "best" / "model.safetensors").read_bytes()
    assert pushed["model.safetensors"] != (output / "model" / "model.safetensors").read_bytes()
    facts = json.loads(pushed["training.json"])
    assert facts["step"] == 2 and facts["validation"] == {"step": 2, "psnr": 9.0}
    assert "Validation at step 2: psnr 9.000" in pushed["README.md"].decode()


@pytest.mark.parametrize(
    ("token", "offline", "said"),
    [
        ("", False, "no token to push with; log in"),
        ("hf_wrongSECRET", False, "does not accept the token|no such repository"),
        (STRANGER, False, "no right to do this"),
        (TOKEN, True, "HF_HUB_OFFLINE is set; unset it"),
    ],
)
def test_who_may_not_push_is_told_before_the_first_step(
    hub: HubServer,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    offline: bool,
    said: str,
) -> None:
    hub.create(REPO)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    close_session()
    trainer = make_trainer(hub_repo_id=REPO)
    with pytest.raises(GalipError, match=said) as caught:
        trainer.train()
    assert trainer.state.step == 0 and not trainer.arguments.output_path.exists()
    assert "SECRET" not in str(caught.value) and "\n" not in str(caught.value)
    assert len(hub.repository(REPO).history()) == 1


@pytest.mark.parametrize("fault", [500, "drop"])
def test_a_hub_that_fails_at_the_end_loses_nothing(
    hub: HubServer,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fault: int | str,
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.add_fault(fault, "POST", r"/commit/")
    trainer = make_trainer(max_steps=1, hub_repo_id=REPO)
    with pytest.raises(GalipError) as caught:
        trainer.train()
    model = trainer.arguments.output_path / "model"
    message = str(caught.value)
    command = f"galip-hf push {model} {REPO}"
    assert message.endswith(command) and "\n" not in message
    assert (trainer.arguments.output_path / "checkpoints").is_dir()
    hub.faults.clear()
    assert main(command.split()[1:]) == 0
    pushed = hub.repository(REPO).files()["model.safetensors"]
    assert pushed == (model / "model.safetensors").read_bytes()
    # The token went to the Hub, and nowhere else.
    assert any(TOKEN in sent for sent in hub.authorizations)
    assert "SECRET" not in message + caplog.text
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"SECRET" not in file.read_bytes()


def test_two_processes_of_the_command_push_once(
    tmp_path: Path, table_directory: Path, clip_directory: Path
) -> None:
    path = tiny_run_recipe(tmp_path / "recipe.yaml", table_directory, clip_directory, max_steps=1)
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "galip_hf"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "train", str(path)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_TOKEN": TOKEN}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with HubServer({TOKEN: "alice"}) as hub:
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        command += ["--push-to-hub", REPO]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (pushed, initial) = hub.repository(REPO).history()
    assert set(pushed.files) - set(initial.files) == FILES
    assert json.loads(pushed.files["training.json"].content)["processes"] == 2
    assert done.stderr.count("/commit/") == 1 and "SECRET" not in done.stdout + done.stderr


def test_a_private_repository_needs_a_name() -> None:
    with pytest.raises(GalipError, match="hub_private needs hub_repo_id"):
        GalipTrainingArguments(output_dir="run", hub_private=True)
