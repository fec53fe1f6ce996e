"""The processor: exact way back inside the window, windows of the right kind, refusals, save and load."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from galip_hf.model.configuration_galip import GalipConfig
from galip_hf.model.domains import DEFAULT_RULES, default_rule
from galip_hf.model.errors import GalipError
from galip_hf.model.image_processing_galip import GalipImageProcessor

PERCENTILE = {"rule": "percentile", "lower": 0.0, "upper": 99.5}
WINDOW = {"rule": "window", "lower": -1000, "upper": 1000}
DOMAINS = [
    {"name": "T1", "prompt": "this MRI is T1-weighted", "modality": "MR", "intensity": PERCENTILE},
    {"name": "CT", "prompt": "this is pelvic CT", "modality": "CT", "intensity": WINDOW},
    {"name": "ready", "prompt": "this MRI is ready", "modality": "MR", "intensity": {"rule": "none"}},
]


@pytest.fixture
def processor() -> GalipImageProcessor:
    return GalipImageProcessor(domains=DOMAINS)


def random_image(seed: int, dtype: str, shape: tuple[int, ...] = (24, 20)) -> np.ndarray:
    """Values over the whole range of an integer dtype, or MR-like floats with a long bright tail."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return (rng.gamma(1.0, 300.0, shape) - 50.0).astype(dtype)


def test_percentile_window_is_a_linear_map_clamped_to_its_ends(processor: GalipImageProcessor) -> None:
    image = np.arange(1000, dtype=np.float32).reshape(25, 40)
    batch = processor(image, domain="T1", return_tensors="pt")
    # Linear interpolation between the order statistics of 0..999: 0.995 * 999.
    assert batch["lower"].tolist() == [0.0] and batch["upper"].tolist() == [pytest.approx(994.005)]
    expected = (torch.from_numpy(image)[None, None] / 994.005).clamp(max=1)
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=1e-6, atol=0)
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_values"].max() == 1
    assert batch["outside_fraction"].tolist() == [5 / 1000]  # 995..999


def test_window_rule_is_fixed_and_clamps_what_lies_outside(processor: GalipImageProcessor) -> None:
    image = np.array([[-1024, -1000], [0, 3000]], dtype=np.int16)
    batch = processor(image, domain="CT")
    np.testing.assert_allclose(batch["pixel_values"][0, 0], [[0.0, 0.0], [0.5, 1.0]], rtol=1e-6)
    assert batch["outside_fraction"][0] == 0.5
    back = processor.postprocess(batch["pixel_values"], lower=batch["lower"], upper=batch["upper"])
    np.testing.assert_array_equal(np.rint(back[0, 0]), [[-1000, -1000], [0, 1000]])


def test_padding_is_air_and_no_part_of_the_percentiles(processor: GalipImageProcessor) -> None:
    rng = np.random.default_rng(0)
    volume = rng.uniform(0, 1000, (3, 40, 40))
    plain = processor.normalize_volume(volume, "T1")
    for value in (-2000, -3024, -32768):
        padded = np.concatenate([volume, np.full((2, 40, 40), value)])
        normalized = processor.normalize_volume(padded, "T1")
        assert (normalized.lower, normalized.upper) == (plain.lower, plain.upper)
        assert normalized.padding_fraction == 0.4 and normalized.outside_fraction < 0.005
        assert torch.equal(normalized.pixel_values[:3], plain.pixel_values)
        assert not normalized.pixel_values[3:].any()


def test_the_default_rule_of_mr_is_robust_at_both_ends() -> None:
    rules = {"T1": DEFAULT_RULES["MR"]}
    processor = GalipImageProcessor(intensity_rules=rules)
    volume = np.random.default_rng(0).uniform(0, 1000, (4, 32, 32))
    clean = processor.normalize_volume(volume, "T1")
    spoilt = volume.copy()
    spoilt[1, 3, 4], spoilt[2, 5, 6] = -1e5, 1e6
    normalized = processor.normalize_volume(spoilt, "T1")
    assert abs(normalized.lower - clean.lower) < 1 and abs(normalized.upper - clean.upper) < 1
    assert normalized.pixel_values.min() >= 0 and normalized.pixel_values.max() <= 1
    assert normalized.far_outside_fraction == 2 / volume.size


def test_rules_of_other_modalities() -> None:
    assert default_rule("PET") == {"rule": "window", "lower": 0.0, "upper": 10.0}
    assert default_rule("CBCT") == default_rule("CT")
    assert default_rule("US") == default_rule("MR")


@pytest.mark.parametrize("domain", ["T1", "CT"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_integers_come_back_exactly(processor: GalipImageProcessor, dtype: str, domain: str) -> None:
    image = random_image(0, dtype)
    batch = processor(image, domain=domain, return_tensors="pt")
    back = processor.postprocess(batch["pixel_values"], lower=batch["lower"], upper=batch["upper"])
    inside = np.clip(image, np.ceil(batch["lower"].item()), np.floor(batch["upper"].item()))
    kept = inside == image
    assert kept.any()
    np.testing.assert_array_equal(np.rint(back[0, 0]).astype(dtype)[kept], image[kept])


@pytest.mark.parametrize("domain", ["T1", "CT"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_come_back_to_rounding(processor: GalipImageProcessor, dtype: str, domain: str) -> None:
    image = random_image(1, dtype)
    batch = processor(image, domain=domain)
    back = processor.postprocess(batch["pixel_values"], lower=batch["lower"], upper=batch["upper"])
    assert back.dtype == np.float32 and back.shape == (1, 1, 24, 20)
    expected = np.clip(image, batch["lower"].item(), batch["upper"].item())
    assert np.abs(back[0, 0] - expected).max() <= 1e-6 * (image.max() - image.min())


def test_every_form_of_an_image_gives_the_same(processor: GalipImageProcessor) -> None:
    image = random_image(2, "uint16")
    expected = processor(image, domain="T1")["pixel_values"]
    assert expected.shape == (1, 1, 24, 20)
    forms = [
        image[None],
        image[:, :, None],
        image[None, None],
        image.astype(">u2"),
        torch.from_numpy(image.astype(np.int32)),
        torch.from_numpy(image.astype(np.float64))[None],
        Image.fromarray(image),
        Image.fromarray(image.astype(np.float32)),
        [image],
    ]
    for form in forms:
        np.testing.assert_array_equal(processor(form, domain="T1")["pixel_values"], expected)


def test_images_of_a_batch_keep_their_own_windows(processor: GalipImageProcessor) -> None:
    first, second = random_image(3, "float32"), 7 * random_image(4, "float32")
    batch = processor([first, second], domain="T1", return_tensors="pt")
    alone = processor(second, domain="T1", return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"][1:], alone["pixel_values"], rtol=0, atol=0)
    assert batch["upper"].dtype == torch.float64
    assert batch["upper"][1] == alone["upper"][0] == np.percentile(second.astype(np.float64), 99.5)
    back = processor.postprocess(batch["pixel_values"], lower=batch["lower"], upper=batch["upper"])
    expected = np.minimum([first, second], batch["upper"].numpy()[:, None, None])
    np.testing.assert_allclose(back[:, 0], expected, rtol=1e-6, atol=1e-3)


def test_a_volume_has_one_window(processor: GalipImageProcessor) -> None:
    volume = random_image(5, "float32", (6, 24, 20)) * np.arange(1, 7, dtype=np.float32)[:, None, None]
    normalized = processor.normalize_volume(volume, "T1")
    assert normalized.pixel_values.shape == (6, 1, 24, 20) and normalized.pixel_values.dtype == torch.float32
    assert normalized.upper == pytest.approx(np.percentile(volume.astype(np.float64), 99.5))
    assert normalized.outside_fraction == pytest.approx(0.005, abs=1e-3)
    expected = np.minimum((volume - normalized.lower) / (normalized.upper - normalized.lower), 1)
    np.testing.assert_allclose(normalized.pixel_values[:, 0], expected, rtol=1e-5, atol=1e-6)
    back = processor.postprocess(normalized.pixel_values, lower=normalized.lower, upper=normalized.upper)
    clamped = np.minimum(volume, normalized.upper)
    assert np.abs(back[:, 0] - clamped).max() <= 1e-6 * np.ptp(volume)


def test_the_map_is_computed_in_float64() -> None:
    # Around 1e6 a float32 has steps of 1/16: a float32 map would show them.
    processor = GalipImageProcessor(intensity_rules={"T1": {"rule": "percentile", "lower": 0, "upper": 100}})
    ramp = np.linspace(0.0, 1.0, 64).reshape(8, 8)
    batch = processor(1e6 + ramp, domain="T1")
    np.testing.assert_allclose(batch["pixel_values"][0, 0], ramp, rtol=0, atol=1e-7)


def test_input_is_not_changed(processor: GalipImageProcessor) -> None:
    volume = random_image(6, "float64", (2, 8, 8))
    before = volume.copy()
    processor.normalize_volume(volume, "T1")
    processor.postprocess(volume, lower=1.0, upper=3.0)
    np.testing.assert_array_equal(volume, before)


def test_rule_none_names_the_range(processor: GalipImageProcessor) -> None:
    image = np.linspace(-0.0005, 1.0005, 16, dtype=np.float32).reshape(4, 4)  # within the tolerance
    clamped = np.clip(image, 0, 1)
    np.testing.assert_array_equal(processor(image, domain="ready")["pixel_values"][0, 0], clamped)
    with pytest.raises(GalipError, match=r"'ready': values are 0\.\.255, .*'none'"):
        processor(np.array([[0, 255]], dtype=np.uint8), domain="ready")
    with pytest.raises(GalipError, match=r"-0\.5\.\.1"):
        processor(np.array([[-0.5, 1.0]]), domain="ready")


def test_fixed_windows(processor: GalipImageProcessor) -> None:
    assert processor.fixed_window("CT") == (-1000.0, 1000.0)
    assert processor.fixed_window("ready") == (0.0, 1.0)
    assert processor.fixed_window("T1") is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 8, 8)), r"\(4, 8, 8\).*normalize_volume"),
        (np.arange(192.0).reshape(3, 8, 8), r"channels of the shape \(3, 8, 8\) differ.*normalize_volume"),
        (np.arange(192, dtype=np.uint8).reshape(8, 8, 3), r"channels of the shape \(8, 8, 3\) differ"),
        (np.zeros(8), r"\(8,\)"),
        (Image.new("CMYK", (8, 8)), "mode CMYK"),
        (np.zeros((8, 8), dtype=bool), "bool"),
        (np.zeros((8, 8), dtype=complex), "complex"),
        (np.zeros((0, 8)), r"\(0, 8\)"),
        (np.full((8, 8), 3.5), r"'T1': percentiles 0 and 99.5 are both 3.5 \(values 3.5..3.5\)"),
        (np.array([[0.0, np.nan, np.inf, 1.0]]), "2 of 4 values are NaN or infinite"),
        ([], "empty list"),
        ([np.eye(4), np.eye(5)], r"\(4, 4\), \(5, 5\)"),
    ],
)
def test_refusals(processor: GalipImageProcessor, image: object, message: str) -> None:
    with pytest.raises(GalipError, match=message):
        processor(image, domain="T1")


def test_rgb_with_equal_channels_is_grey(processor: GalipImageProcessor) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    expected = processor(grey, "T1")["pixel_values"]
    forms = (np.stack([grey] * 3), np.stack([grey] * 3, axis=-1), Image.fromarray(grey).convert("RGB"))
    for form in forms:
        np.testing.assert_array_equal(processor(form, "T1")["pixel_values"], expected)
    np.testing.assert_array_equal(processor(np.stack([forms[0]] * 2), "T1")["pixel_values"][1:], expected)


def test_a_missing_domain_is_named(processor: GalipImageProcessor) -> None:
    with pytest.raises(GalipError, match=r"domain is missing.*give one of T1, CT, ready"):
        processor(images=np.eye(4))


def test_other_refusals(processor: GalipImageProcessor) -> None:
    with pytest.raises(GalipError, match="'T3' is unknown; this model knows T1, CT, ready"):
        processor(np.eye(4), domain="T3")
    with pytest.raises(GalipError, match=r"volume: found the shape \(4, 4\)"):
        processor.normalize_volume(np.eye(4), "T1")
    with pytest.raises(GalipError, match=r"lower: found the shape \(3,\); expected one number or \(2,\)"):
        processor.postprocess(np.zeros((2, 1, 4, 4)), lower=np.zeros(3), upper=1.0)
    with pytest.raises(GalipError, match="either domains or intensity_rules"):
        GalipImageProcessor()
    with pytest.raises(GalipError, match="unknown key do_resize"):
        GalipImageProcessor(domains=DOMAINS, do_resize=True)
    with pytest.raises(GalipError, match="domain 'T1'"):
        GalipImageProcessor(intensity_rules={"T1": {**PERCENTILE, "middle": 50}})


def test_save_and_load(processor: GalipImageProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert saved == {
        "domain_statistics": {},
        "image_processor_type": "GalipImageProcessor",
        "intensity_rules": {"T1": PERCENTILE, "CT": WINDOW, "ready": {"rule": "none"}},
    }
    loaded = GalipImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    image = random_image(7, "int16")
    np.testing.assert_array_equal(
        loaded(image, domain="T1")["pixel_values"], processor(image, domain="T1")["pixel_values"]
    )
    saved["clip"] = True
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    with pytest.raises(GalipError, match="unknown key clip"):
        GalipImageProcessor.from_pretrained(tmp_path)


def test_auto_class_and_remote_code(
    processor: GalipImageProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(GalipImageProcessor, "_auto_class", "AutoImageProcessor")
    processor.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.glob("*.py")}
    assert files == {
        "image_processing_galip.py", "configuration_galip.py", "domain_statistics.py", "domains.py",
        "errors.py", "intensity.py", "slice_geometry.py",
    }  # fmt: skip
    loaded = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.intensity_rules == processor.intensity_rules
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert GalipImageProcessor.from_pretrained(again).intensity_rules == processor.intensity_rules


def test_from_config() -> None:
    config = GalipConfig(domains=DOMAINS)
    processor = GalipImageProcessor.from_config(config)
    assert processor.intensity_rules == {domain["name"]: domain["intensity"] for domain in DOMAINS}
    processor.intensity_rules["T1"]["upper"] = 50.0
    assert config.domains[0]["intensity"]["upper"] == 99.5


def test_why_a_model_is_not_for_real_scans_is_kept(tmp_path: Path) -> None:
    processor = GalipImageProcessor(DOMAINS)
    processor.set_not_for_real_scans("it was trained on phantoms")
    processor.save_pretrained(tmp_path)
    assert GalipImageProcessor.from_pretrained(tmp_path).not_for_real_scans == "it was trained on phantoms"
    for wrong in ("", True, "two\nlines", "x" * 201):
        with pytest.raises(GalipError, match="not_for_real_scans: found"):
            processor.set_not_for_real_scans(wrong)  # type: ignore[arg-type]
