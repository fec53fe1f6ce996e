"""Model cards: made from what was measured, kept where people wrote, checked against the report."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import DOMAINS, filled_model, smooth_volume, tiny_config
from hub_server import HubServer
from huggingface_hub import ModelCard

from galip_hf import GalipError
from galip_hf.cli import main
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.files import file_hash
from galip_hf.hub.card import by_hand as hand_written
from galip_hf.hub.card import model_card
from galip_hf.hub.card_check import check_card
from galip_hf.hub.card_rendering import TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
REPO = "alice/model"
PARAMETERS = f"{tiny_config().num_parameters:,} parameters"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, directory: Path) -> Path:
    """What `galip-hf evaluate` says of the tiny model on two subjects."""
    folder = tmp_path_factory.mktemp("evaluated")
    names = [domain["name"] for domain in DOMAINS]
    volumes = [
        SubjectVolume(smooth_volume(9 * k + label, slices=2), name, f"{split}-{k}", split)
        for split, numbers in (("train", (0,)), ("test", (1, 2)))
        for k in numbers
        for label, name in enumerate(names)
    ]
    write_table(volumes, folder / "pelvis", domains=names, image_size=None)
    command = ["evaluate", "--model", str(directory), "--data", str(folder / "pelvis")]
    assert main([*command, "--output", str(folder / "report")]) == 0
    return folder / "report"


@pytest.fixture
def model(directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(directory, tmp_path / "model")


@pytest.fixture
def scored(model: Path, report: Path) -> Path:
    """A model directory with its report and its card."""
    assert main(["card", str(model), "--report", str(report), "--license", "apache-2.0"]) == 0
    return model


def text_of(directory: Path) -> str:
    return (directory / "README.md").read_text(encoding="utf-8")


def metadata(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def replaced(directory: Path, old: str, new: str) -> None:
    text = text_of(directory)
    assert old in text
    (directory / "README.md").write_text(text.replace(old, new, 1), encoding="utf-8")


# What a card says


def test_what_is_not_known_is_said_to_be_unknown(model: Path) -> None:
    text = model_card(model)
    assert PARAMETERS in text
    for domain in DOMAINS:
        assert f"| {domain['name']} | {domain['modality']} | `{domain['prompt']}` |" in text
    assert "HU window -1000 to 1000" in text and "percentiles 1 to 99" in text
    assert "Unknown: there is no `report.json`" in text and "Unknown: there is no `training.json`" in text
    assert "Licence of the weights: not stated" in text
    assert "Not for diagnosis" in text and "wording of the prompts" in text and "@inproceedings" in text
    values = metadata(text)
    assert (values["library_name"], values["pipeline_tag"]) == ("transformers", "image-to-image")
    assert {"mr", "ct", "galip", "medical"} <= set(values["tags"])
    assert not {"model-index", "license", "datasets", "base_model"} & set(values)
    assert "PSNR" not in text


def test_scores_are_those_of_the_report(scored: Path, report: Path) -> None:
    text, values = text_of(scored), json.loads((report / "report.json").read_text(encoding="utf-8"))
    cell = values["protocols"]["fixed"]["masked"]["directions"]["T1->CT"]
    low, high = cell["psnr_ci95"]
    row = [f"{cell['psnr']:.2f} [{low:.2f}, {high:.2f}]", f"{cell['ssim']:.3f}", f"{cell['mae']:.4g}"]
    assert f"| T1->CT | 2 | {' | '.join(row)} |" in text
    version = values["protocols"]["fixed"]["version"]
    assert values["protocols"]["paper"]["description"] in text
    assert f"Protocol `fixed`, version {version}, region `masked`" in text
    assert values["provenance"]["split_hash"] in text and "`pelvis`, split `test`" in text
    card = ModelCard(text)
    results = card.data.eval_results
    assert results is not None and len(results) == 6 * 3 * 3  # directions, regions, measures
    name = f"PSNR (dB) T1->CT, protocol fixed v{version}, masked"
    (found,) = [result for result in results if result.metric_name.startswith(name)]
    assert found.metric_value == round(cell["psnr"], 4) and found.dataset_name == "pelvis"
    assert card.data.license == "apache-2.0" and "Licence of the weights: apache-2.0" in text
    shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert len(shown) == 6 and all((scored / name).is_file() for name in shown)


def test_the_code_of_a_card_runs(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).random((32, 32, 2), dtype=np.float32)
    nib.Nifti1Image(image, np.eye(4)).to_filename("scan.nii.gz")
    (block,) = re.findall(r"```python\n(.*?)```", text_of(scored), flags=re.DOTALL)
    assert len(block.strip().splitlines()) <= 6
    exec(block, {})
    assert nib.load("translated.nii.gz").shape == image.shape


def test_the_usage_names_the_repository_and_its_parts(model: Path) -> None:
    loading = {"subfolder": "ema", "variant": "fp16"}
    text = model_card(model, repo="alice/ixi", loading=loading, has_code=True)
    arguments = '"alice/ixi", subfolder="ema", variant="fp16"'
    assert f"GalipPipeline.from_pretrained({arguments})" in text
    assert f"from_pretrained({arguments}, trust_remote_code=True, revision=" in text
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        compile(block, "card", "exec")


def test_names_and_prompts_of_any_text_stay_verbatim_in_their_cells(tmp_path: Path) -> None:
    domains = [
        {**DOMAINS[0], "name": 'T1|"x', "prompt": "a `code` | pipe"},
        {**DOMAINS[1], "prompt": "ж, T2"},
    ]
    config = tiny_config(domains=domains)
    config.save_pretrained(tmp_path)
    filled_model(config).save_pretrained(tmp_path)
    text = model_card(tmp_path)
    assert r'| T1\|"x | MR | `` a `code` \| pipe `` |' in text and "`ж, T2`" in text
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    compile(block, "card", "exec")


def test_a_report_of_other_weights_is_refused(
    scored: Path, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = filled_model(tiny_config(label_width=32))
    other.save_pretrained(scored)
    assert main(["card", str(scored), "--report", str(report)]) == 2
    assert "was made with other weights" in capsys.readouterr().err
    assert main(["card", str(scored), "--check"]) == 1
    assert "was made with other weights" in capsys.readouterr().out
    (scored / "report.json").write_text("{}", encoding="utf-8")
    with pytest.raises(GalipError, match="does not say which weights"):
        model_card(scored)


def test_a_report_of_another_form_is_refused(scored: Path) -> None:
    weights = file_hash(scored / "model.safetensors")
    (scored / "report.json").write_text(json.dumps({"provenance": {"model_weights_sha256": weights}}))
    with pytest.raises(GalipError, match=r"report\.json is not of the expected form"):
        model_card(scored)


# What people write in it


def test_what_people_wrote_stays_and_the_numbers_are_new(scored: Path, report: Path) -> None:
    edits = {
        "# I2I-Galip: T1, T2, CT": "# Our pelvis model\n\nThe paragraph before all.",
        "Write here what readers should know": "Made in Ljubljana: č, š, ž. Readers should know",
        "## Evaluation": "## How good is it?\n\nBetween two sections.",
        "## Intended use and limitations": "### What it is for",
        "library_name: transformers": "language: sl\nlibrary_name: keras\nx-ours: {a: [1, 2]}",
        "- galip\n": "- ours\n- galip\n",
        "license: apache-2.0": "license: cc-by-4.0",
    }
    for old, new in edits.items():
        replaced(scored, old, new)
    (scored / "README.md").write_text(text_of(scored) + "\nAfter all sections.\n", encoding="utf-8")
    replaced(scored, PARAMETERS, "7 parameters")
    by_hand = hand_written(text_of(scored).split("---\n", 2)[2])
    (scored / "report.json").unlink()
    shutil.rmtree(scored / "panels")
    assert main(["card", str(scored)]) == 0
    without = text_of(scored)
    assert "model-index" not in metadata(without) and "[bootstrap" not in without
    assert main(["card", str(scored), "--report", str(report)]) == 0
    text = text_of(scored)
    assert hand_written(text.split("---\n", 2)[2]) == by_hand
    for line in ("Made in Ljubljana: č, š, ž.", "### What it is for", "## How good is it?", "Between two"):
        assert line in text
    assert text.index("The paragraph before all.") < text.index("begin model")
    assert text.index("end training") < text.index("Between two sections.") < text.index("begin evaluation")
    assert text.rstrip().endswith("After all sections.")
    assert PARAMETERS in text and "7 parameters" not in text
    values = metadata(text)
    assert values["language"] == "sl" and values["x-ours"] == {"a": [1, 2]}
    assert values["license"] == "cc-by-4.0" and "Licence of the weights: cc-by-4.0" in text
    assert values["library_name"] == "transformers" and {"ours", "galip"} <= set(values["tags"])
    assert len(values["model-index"][0]["results"][0]["metrics"]) == 54
    assert main(["card", str(scored)]) == 0
    assert text_of(scored) == text


def test_emissions_that_people_state_are_in_the_training_section(scored: Path) -> None:
    training = {"step": 10, "data": {"description": "x"}, "versions": {"torch": "2.14.1"}}
    (scored / "training.json").write_text(json.dumps(training), encoding="utf-8")
    assert "Environmental cost: unknown, not measured" in model_card(scored)
    replaced(scored, "library_name:", "co2_eq_emissions: {emissions: 345.5, source: a meter}\nlibrary_name:")
    assert main(["card", str(scored)]) == 0
    assert "Environmental cost: 345.5 g CO2 equivalent" in text_of(scored)


def test_a_removed_section_comes_back_with_its_heading(scored: Path) -> None:
    text = text_of(scored)
    start, end = text.index("## Use"), text.index("## Intended use")
    (scored / "README.md").write_text(text[:start] + text[end:], encoding="utf-8")
    assert main(["card", str(scored)]) == 0
    assert text_of(scored).rstrip().endswith("<!-- galip-hf: end use -->")
    assert text_of(scored).count("## Use\n") == 1


def test_a_card_by_others_gets_our_sections(scored: Path) -> None:
    """No front matter, no markers, line ends of Windows."""
    (scored / "README.md").write_bytes(b"# Mine\r\n\r\nText.\r\n")
    assert main(["card", str(scored)]) == 0
    text = text_of(scored)
    assert "# Mine\n\nText.\n" in text and "\r" not in text
    assert all(f"end {name}" in text for name in ("model", "use", "limits", "training", "evaluation"))
    assert metadata(text)["pipeline_tag"] == "image-to-image"


def test_front_matter_with_one_tag_and_empty_keys(scored: Path) -> None:
    (scored / "README.md").write_text("---\ntags: mine\ndatasets:\nlicense:\n---\nText.\n", encoding="utf-8")
    assert main(["card", str(scored)]) == 0
    values = metadata(text_of(scored))
    assert values["tags"][:2] == ["mine", "galip"] and not {"datasets", "license"} & set(values)
    assert "Licence of the weights: not stated" in text_of(scored)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<!-- galip-hf: end model -->", "", "'begin use'|'end use'|do not pair up"),
        ("<!-- galip-hf: begin use -->", "<!-- galip-hf: begin model -->", "do not pair up"),
        ("---\n", "---\n[: not yaml\n", "front matter is not readable"),
        ("tags:\n", "tags: 5\nothers:\n", "front matter is not readable"),
    ],
)
def test_broken_cards_are_refused_and_left_alone(
    scored: Path, old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced(scored, old, new)
    before = text_of(scored)
    assert main(["card", str(scored)]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert text_of(scored) == before


# The check


def check(directory: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["card", str(directory), "--check"])
    return code, capsys.readouterr().out


def test_each_number_of_a_made_card_is_in_the_report(
    scored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(scored, capsys) == (0, "each number in the card is in the report\n")


def test_a_number_that_was_not_measured_is_named(
    scored: Path, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((report / "report.json").read_text(encoding="utf-8"))
    psnr = values["protocols"]["fixed"]["masked"]["directions"]["T1->T2"]["psnr"]
    original = text_of(scored)
    better = f"{psnr + 70:.2f}"
    cases = [
        (f"| {psnr:.2f} [", f"| {better} [", "section evaluation: not what the files beside it give"),
        (f"value: {round(psnr, 4)}", "value: 93.1234", "model-index: not what the files beside it give"),
        ("## Training", f"It reaches {better} dB.\n\n## Training", f"{better} is in no report.json"),
        ("## Training", f"It reaches {better}dB.\n\n## Training", f"{better} is in no report.json"),
        ("## Training", "An SSIM of 0.9991!\n\n## Training", "text by hand: 0.9991 is in no report.json"),
        ("## Training", "| PSNR |\n|---|\n| 61.25 |\n\n## Training", "61.25 is in no report.json"),
        (
            "## Training",
            f"PSNR of [{better}](panels/x.png).\n\n## Training",
            f"{better} is in no report.json",
        ),
        (
            "<!-- galip-hf: end use -->",
            "PSNR: 61.25\n<!-- galip-hf: end use -->",
            "61.25 is in no report.json",
        ),
        (
            "## Training",
            "<!-- galip-hf: begin mine -->\nPSNR: 61.25\n<!-- galip-hf: end mine -->\n\n## Training",
            "61.25 is in no report.json",
        ),
    ]
    for old, new, said in cases:
        replaced(scored, old, new)
        code, out = check(scored, capsys)
        assert code == 1 and said in out
        (scored / "README.md").write_text(original, encoding="utf-8")


def test_measured_and_quoted_numbers_in_text_by_hand_are_fine(scored: Path, report: Path) -> None:
    values = json.loads((report / "report.json").read_text(encoding="utf-8"))
    psnr = values["summary"]["model"]["psnr"]
    by_hand = (
        f"Its mean PSNR is {psnr:.2f} dB.\n\nThe paper says 33.33 dB ([MIDL](https://arxiv.org/abs/2409.12399))."
        "\n\nVersion 1.7 of our scanner's software; 3 subjects with an SSIM.\n\n## Training"
    )
    replaced(scored, "## Training", by_hand)
    assert check_card(scored) == []


def test_a_card_older_than_its_report_is_told(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((scored / "report.json").read_text(encoding="utf-8"))
    values["subjects"] = 12345
    (scored / "report.json").write_text(json.dumps(values), encoding="utf-8")
    code, out = check(scored, capsys)
    assert code == 1 and "section evaluation: not what the files beside it give" in out


def test_mistakes_at_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(ROOT / "examples" / "configs" / "ixi_multi.yaml")
    for arguments, said in (
        ([str(tmp_path)], "not a model directory"),
        ([recipe], "--output names the card"),
        ([str(model), "--output", "x.md"], "--output names the card"),
        ([recipe, "--output", "x.md", "--repo", "a/b"], "has no report and no repository"),
        ([str(model), "--report", str(tmp_path / "none.json")], "none.json: not readable"),
        ([str(model), "--check"], "README.md: not readable"),
    ):
        assert main(["card", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not (model / "README.md").exists()


# Pushing


def test_a_push_carries_the_evidence_in_its_one_commit(
    hub: HubServer, scored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scored / "notes.txt").write_text("not for others", encoding="utf-8")
    assert main(["push", str(scored), REPO]) == 0
    repository = hub.repository(REPO)
    files = repository.files()
    panels = {f"panels/{path.name}" for path in (scored / "panels").iterdir()}
    expected = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "report.json"}
    assert len(panels) == 6 and set(files) == {*expected, *panels, ".gitattributes"}
    assert len(repository.history()) == 2
    assert files["report.json"] == (scored / "report.json").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert len(card.data.eval_results or []) == 54 and f'from_pretrained("{REPO}")' in card.text
    assert main(["push", str(scored), REPO]) == 0
    assert len(repository.history()) == 2


def test_a_push_refuses_a_number_that_was_not_measured(
    hub: HubServer, scored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced(scored, "## Training", "Its PSNR is 61.25 dB.\n\n## Training")
    assert main(["push", str(scored), REPO]) == 2
    assert "not pushed; README.md, text by hand: 61.25 is in no report.json" in capsys.readouterr().err
    assert "README.md" not in hub.repository(REPO).files()


def test_what_people_wrote_on_the_hub_stays(hub: HubServer, scored: Path) -> None:
    """The card beside the weights is as we made it: the one that people edited on the Hub counts."""
    assert main(["push", str(scored), REPO]) == 0
    pushed = hub.repository(REPO).files()["README.md"].decode()
    edited = pushed.replace("## Training", "Edited on the Hub.\n\n## Training").replace(
        PARAMETERS, "7 parameters"
    )
    edited = edited.replace("license: apache-2.0", "license: mit\ndoi: 10.1/x")
    hub.put(REPO, {"README.md": edited.encode()})
    replaced(scored, "license: apache-2.0\n", "")
    assert main(["push", str(scored), REPO]) == 0
    text = hub.repository(REPO).files()["README.md"].decode()
    assert "Edited on the Hub." in text and PARAMETERS in text
    assert (metadata(text)["license"], metadata(text)["doi"]) == ("mit", "10.1/x")
    replaced(scored, "# I2I-Galip", "# Edited at home: I2I-Galip")
    assert main(["push", str(scored), REPO]) == 0
    text = hub.repository(REPO).files()["README.md"].decode()
    assert "Edited at home" in text and "Edited on the Hub." not in text  # the history has it


# The cards of this repository

SHIPPED = ("open_ms_model", "phantom_model")
PLANNED = ("ixi_multi", "ixi_t1_t2", "gold_atlas_ct_mr", "brats")


@pytest.mark.parametrize("name", PLANNED)
def test_planned_cards_are_what_the_command_gives(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = shutil.copy(ROOT / "model_cards" / f"{name}.md", tmp_path)
    arguments = ["card", str(ROOT / "examples" / "configs" / f"{name}.yaml"), "--output", str(card)]
    assert main([*arguments, "--check"]) == 0
    before = Path(card).read_bytes()
    assert main(arguments) == 0
    assert Path(card).read_bytes() == before
    text = before.decode()
    assert "There are no weights yet" in text and "Nothing was measured." in text
    assert "model-index" not in text and "```python" not in text
    Path(card).write_text(text.replace("## Training", "31.20 dB!\n\n## Training"), encoding="utf-8")
    capsys.readouterr()
    assert main([*arguments, "--check"]) == 1
    assert "31.20, but there are no weights" in capsys.readouterr().out


def test_every_card_of_the_repository_is_checked() -> None:
    folder = ROOT / "model_cards"
    assert {path.stem for path in folder.glob("*.md")} == {*PLANNED, *SHIPPED, "template"}
    assert (folder / "template.md").samefile(TEMPLATE)
    for name in SHIPPED:
        assert (folder / f"{name}.md").samefile(ROOT / "examples" / name / "README.md")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_of_a_shipped_model_rests_upon_its_report(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    directory = Path("examples", name)
    assert check_card(directory) == []
    assert model_card(directory) == text_of(directory)
