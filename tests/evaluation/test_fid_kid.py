"""FID and KID against the formulas, and what is said when there are too few samples."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch

from galip_hf.clip.backbone import ClipBackbone
from galip_hf.evaluation.fid_kid import distribution_distances, slice_features
from galip_hf.model.errors import GalipError


def normal_samples(seed: int, count: int, width: int = 6, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng([seed])
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + shift


def test_fid_is_the_frechet_distance_of_two_normal_distributions() -> None:
    real, fake = normal_samples(1, 60), normal_samples(2, 45, shift=0.5)
    covariances = [np.cov(samples, rowvar=False) for samples in (real, fake)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((real.mean(0) - fake.mean(0)) ** 2) + np.trace(sum(covariances) - 2 * root)
    result = distribution_distances(real, torch.from_numpy(fake))
    assert result["fid"] == pytest.approx(expected, rel=1e-8)
    assert (result["n_real"], result["n_fake"], result["features"]) == (60, 45, 6)
    assert distribution_distances(real, real)["fid"] == pytest.approx(0.0, abs=1e-6)
    json.dumps(result, allow_nan=False)


def test_kid_of_one_subset_is_the_unbiased_estimate() -> None:
    real, fake = normal_samples(1, 30), normal_samples(2, 30, shift=0.5)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    off_diagonal = ~np.eye(30, dtype=bool)
    expected = (
        kernel(real, real)[off_diagonal].mean()
        + kernel(fake, fake)[off_diagonal].mean()
        - 2 * kernel(real, fake).mean()
    )
    result = distribution_distances(real, fake)
    assert result["kid"] == pytest.approx(expected, rel=1e-8)
    assert result["kid_sd"] is None and result["kid_subset_size"] == 30


def test_kid_of_subsets_follows_the_seed_and_leaves_the_global_generator_alone() -> None:
    real, fake = normal_samples(1, 40), normal_samples(2, 25)
    before = torch.get_rng_state()
    first, again, other = (distribution_distances(real, fake, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert first["kid"] != other["kid"] and first["fid"] == other["fid"]
    assert first["kid_subset_size"] == 25 and first["kid_sd"] > 0


def test_too_few_samples_give_a_reason_in_place_of_a_number() -> None:
    few = distribution_distances(normal_samples(1, 6), normal_samples(2, 60))
    assert few["fid"] is None and few["fid_reason"].startswith("n = 6 is not above the 6 features")
    assert few["kid"] is None and few["kid_reason"] == "n = 6 is below 10"
    some = distribution_distances(normal_samples(1, 12, width=20), normal_samples(2, 12, width=20))
    assert some["fid"] is None and isinstance(some["kid"], float) and some["kid_reason"] is None
    none = distribution_distances(np.zeros((0, 4)), normal_samples(2, 12, width=4))
    assert (none["n_real"], none["fid"], none["kid"]) == (0, None, None)


def test_features_are_the_scaled_embeddings_whatever_the_batch(tiny_backbone: ClipBackbone) -> None:
    slices = np.random.default_rng([5]).random((5, 32, 32), dtype=np.float32)
    kept = slices.copy()
    slices.setflags(write=False)  # as the memory-mapped table gives them
    features = slice_features(tiny_backbone, slices, batch_size=2)
    with torch.no_grad():
        embedding = tiny_backbone.encode_images(torch.from_numpy(kept)[:, None]).embedding
    width = tiny_backbone.embedding_width
    torch.testing.assert_close(features, embedding * width**0.5, rtol=1e-4, atol=1e-5)
    assert features.square().mean(dim=1).numpy() == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_array_equal(slices, kept)
    assert slice_features(tiny_backbone, slices[:0]).shape == (0, width)


def test_bad_input_is_refused(tiny_backbone: ClipBackbone) -> None:
    good = normal_samples(1, 12)
    with pytest.raises(GalipError, match="fake_features: found 4 features"):
        distribution_distances(good, normal_samples(2, 12, width=4))
    with pytest.raises(GalipError, match=r"real_features: .*shape \(12,\)"):
        distribution_distances(good[:, 0], good)
    with pytest.raises(GalipError, match="fake_features: found NaN"):
        distribution_distances(good, good * np.nan)
    with pytest.raises(GalipError, match=r"slices: found shape \(32, 32\)"):
        slice_features(tiny_backbone, np.zeros((32, 32), np.float32))
