"""The phantom: determinism, spin-echo signals, tissue order in each contrast, captions and anatomy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from galip_hf.data.phantom import (
    CONTRASTS,
    PROMPTS,
    TISSUES,
    PhantomSubject,
    caption,
    make_subject,
    render,
    tissue_signals,
)
from galip_hf.model.errors import GalipError

SUBJECTS = [make_subject(seed) for seed in range(12)]
LESIONED = [subject for subject in SUBJECTS if subject.lesions.any()]


def _mean(image: np.ndarray, subject: PhantomSubject, tissue: str) -> float:
    """Mean intensity of the pixels almost purely of `tissue`, relative to the 99.5th percentile."""
    pure = subject.fractions[TISSUES.index(tissue)] > 0.95
    assert pure.sum() >= 5, f"subject {subject.seed} has next to no pure {tissue}"
    return float(image[pure].mean() / np.percentile(image, 99.5))


def test_shapes_types_and_ranges() -> None:
    subject = make_subject(3, size=48, slices=5)
    assert subject.fractions.shape == (len(TISSUES), 5, 48, 48)
    assert subject.fractions.dtype == np.float32
    assert subject.lesions.shape == (5, 48, 48)
    assert subject.lesions.dtype == bool
    for contrast in CONTRASTS:
        image = render(subject, contrast)
        assert image.shape == (5, 48, 48)
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert 550 < np.percentile(image, 99.5) < 1600
    assert make_subject(3, slices=1).fractions.shape[1] == 1


@pytest.mark.parametrize("subject", SUBJECTS[:4], ids=lambda subject: str(subject.seed))
def test_fractions_sum_to_one_with_partial_volume_at_edges(subject: PhantomSubject) -> None:
    assert subject.fractions.min() >= 0
    np.testing.assert_allclose(subject.fractions.sum(axis=0), 1, atol=1e-5)
    air = subject.fractions[TISSUES.index("air")]
    assert air[:, [0, -1], :].min() == 1 and air[:, :, [0, -1]].min() == 1, (
        "the head leaves the field of view"
    )
    largest = subject.fractions.max(axis=0)
    assert 0.03 < np.mean(largest < 0.95) < 0.5


def test_same_seed_same_bytes() -> None:
    again = make_subject(5)
    assert again.fractions.tobytes() == SUBJECTS[5].fractions.tobytes()
    assert again.lesions.tobytes() == SUBJECTS[5].lesions.tobytes()
    assert render(again, "T2", seed=4).tobytes() == render(SUBJECTS[5], "T2", seed=4).tobytes()
    assert render(again, "T2").tobytes() == render(again, "T2", seed=0).tobytes()


def test_seeds_contrasts_and_acquisitions_differ() -> None:
    assert np.abs(SUBJECTS[0].fractions - SUBJECTS[1].fractions).mean() > 0.01
    first, second = (render(SUBJECTS[0], "T1", seed=seed) for seed in (1, 2))
    ratio = np.percentile(first, 99.5) / np.percentile(second, 99.5)
    assert abs(ratio - 1) > 0.01, "the gain did not change"
    difference = first / np.percentile(first, 99.5) - second / np.percentile(second, 99.5)
    assert 0.008 < difference.std() < 0.04, "noise and bias changed too little or too much"


def test_sizes_sample_the_same_anatomy() -> None:
    coarse, fine = make_subject(7, size=64), make_subject(7, size=128)
    pooled = fine.fractions.reshape(len(TISSUES), 12, 64, 2, 64, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(pooled.mean(axis=(1, 2, 3)), coarse.fractions.mean(axis=(1, 2, 3)), atol=0.006)
    assert np.abs(pooled - coarse.fractions).mean() < 0.02


@pytest.mark.parametrize(
    ("contrast", "tissue", "expected"),
    [
        # Worked by hand from PD (1 - exp(-TR/T1)) exp(-TE/T2); white matter: PD 0.77, T1 500, T2 70.
        ("T1", "white", 0.77 * 0.632121 * 0.807124),
        ("T1", "csf", 1.00 * 0.176859 * 0.955430),
        ("T2", "white", 0.77 * 0.999665 * 0.318907),
        ("T2", "csf", 1.00 * 0.789253 * 0.784145),
        ("PD", "grey", 0.86 * 0.999256 * 0.834658),
        ("PD", "air", 0.0),
    ],
)
def test_signals_follow_the_spin_echo_equation(contrast: str, tissue: str, expected: float) -> None:
    assert tissue_signals(contrast)[TISSUES.index(tissue)] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("contrast", "dark_to_bright"),
    [
        ("T1", ("air", "bone", "csf", "grey", "white", "scalp")),
        ("T2", ("air", "bone", "white", "grey", "csf")),
        ("PD", ("air", "bone", "white", "grey", "csf")),
    ],
)
def test_tissues_are_in_order_in_the_images(contrast: str, dark_to_bright: tuple[str, ...]) -> None:
    for subject in (make_subject(seed, size=128, slices=6) for seed in (1, 2)):
        image = render(subject, contrast)
        means = [_mean(image, subject, tissue) for tissue in dark_to_bright]
        assert means == sorted(means), dict(zip(dark_to_bright, means, strict=True))
        assert means[1] < 0.12, "bone must be dark"
        assert min(np.diff(means[1:])) > 0.04, "tissues must be told apart"


def test_ventricles_are_dark_in_t1_and_bright_in_t2() -> None:
    for subject in SUBJECTS[:4]:
        assert _mean(render(subject, "T1"), subject, "ventricle") < 0.45
        assert _mean(render(subject, "T2"), subject, "ventricle") > 0.85


def test_lesions_are_bright_in_t2_and_pd_and_dark_in_t1() -> None:
    assert 2 <= len(LESIONED) <= 9
    for subject in LESIONED:
        white = subject.fractions[TISSUES.index("white")] > 0.95
        images = {contrast: render(subject, contrast) for contrast in CONTRASTS}
        ratio = {contrast: i[subject.lesions].mean() / i[white].mean() for contrast, i in images.items()}
        assert ratio["T1"] < 0.97
        assert ratio["T2"] > 1.4
        assert ratio["PD"] > 1.08


def test_contrasts_are_different_images_yet_repeatable() -> None:
    def psnr(first: np.ndarray, second: np.ndarray) -> float:
        return float(-10 * np.log10(np.mean(np.square(first - second))))

    subject = SUBJECTS[1]
    head = subject.fractions[TISSUES.index("air")] < 0.5
    scaled: dict[str, list[np.ndarray]] = {contrast: [] for contrast in CONTRASTS}
    for contrast in CONTRASTS:
        for seed in (0, 1):
            image = render(subject, contrast, seed=seed)
            scaled[contrast].append(np.clip(image / np.percentile(image, 99.5), 0, 1)[head])
    for first, second in (("T1", "T2"), ("T1", "PD"), ("T2", "PD")):
        assert 7 < psnr(scaled[first][0], scaled[second][0]) < 16
    for contrast in CONTRASTS:
        assert psnr(*scaled[contrast]) > 28, "noise and bias would swamp a good translation"


def test_caption_says_what_the_slice_shows() -> None:
    subject = LESIONED[0]
    for index in range(subject.lesions.shape[0]):
        text = caption(subject, index, "T2")
        assert text.startswith(PROMPTS["T2"] + ", with ")
        columns = np.nonzero(subject.lesions[index])[1]
        side = "left" if columns.size and columns.mean() < 31.5 else "right"
        assert (f", a lesion on the {side}, " if columns.size else ", no lesion, ") in text
        seen = subject.fractions[TISSUES.index("ventricle"), index].sum()
        assert ("no ventricles" in text) == (seen < 0.002 * (1 - subject.fractions[0, index]).sum())
        assert text.endswith(f"a {('low', 'middle', 'high')[index // 4]} slice")


def test_caption_follows_a_mirrored_image() -> None:
    subject = LESIONED[0]
    mirrored = dataclasses.replace(
        subject, fractions=subject.fractions[..., ::-1].copy(), lesions=subject.lesions[..., ::-1].copy()
    )
    index = int(subject.lesions.sum(axis=(1, 2)).argmax())
    swap = {"left": "right", "right": "left"}
    words = [swap.get(word.rstrip(","), word.rstrip(",")) for word in caption(subject, index, "T1").split()]
    assert words == [word.rstrip(",") for word in caption(mirrored, index, "T1").split()]
    assert caption(mirrored, index, "T1") != caption(subject, index, "T1")


def test_captions_grade_sizes() -> None:
    shares: dict[str, list[float]] = {word: [] for word in ("no", "small", "medium", "large")}
    widths: dict[str, list[int]] = {word: [] for word in ("narrow", "medium", "wide")}
    for subject in SUBJECTS:
        for index in range(12):
            words = caption(subject, index, "PD").replace(",", "").split()
            head = subject.fractions[0, index] < 0.5
            ventricle = subject.fractions[TISSUES.index("ventricle"), index].sum()
            shares[words[words.index("ventricles") - 1]].append(ventricle / head.sum())
            widths[words[words.index("head") - 1]].append(np.ptp(np.nonzero(head.any(axis=0))[0]))
    for groups in (shares, widths):
        means = [np.mean(values) for values in groups.values()]
        assert all(len(values) >= 10 for values in groups.values()), "a word hardly occurs"
        assert means == sorted(means)


def test_bad_input_is_refused() -> None:
    with pytest.raises(GalipError, match="contrast is 'FLAIR'; the phantom has T1, T2, PD"):
        render(SUBJECTS[0], "FLAIR")
    with pytest.raises(GalipError, match="contrast is 't1'"):
        caption(SUBJECTS[0], 0, "t1")
    with pytest.raises(GalipError, match="slice_index is 12; the subject has slices 0 to 11"):
        caption(SUBJECTS[0], 12, "T1")
    with pytest.raises(GalipError, match="seed is -1"):
        make_subject(-1)
    with pytest.raises(GalipError, match="seed is -2"):
        render(SUBJECTS[0], "T1", seed=-2)
    with pytest.raises(GalipError, match="size is 8"):
        make_subject(0, size=8)
    with pytest.raises(GalipError, match="slices is 0"):
        make_subject(0, slices=0)
