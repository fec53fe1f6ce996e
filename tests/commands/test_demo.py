"""`galip-hf demo`: every direction of a head, scored as `evaluate` scores, and a figure."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from galip_hf import GalipPipeline
from galip_hf.commands.demo import translate_head
from galip_hf.data.normalization import normalize_scan
from galip_hf.data.scans import read_scan
from galip_hf.evaluation.metrics import fixed_scores
from galip_hf.foreground import body_mask


def test_every_direction_is_translated_and_scored(model_directory: Path, tmp_path: Path) -> None:
    scans = {}
    for seed, name in enumerate(("T1", "T2", "CT")):
        scan = np.zeros((24, 20, 3), np.float32)
        scan[4:-4, 4:-4] = np.random.default_rng(seed).uniform(300, 900, (16, 12, 3))
        nib.Nifti1Image(scan, np.eye(4)).to_filename(tmp_path / f"head_{name}.nii.gz")
        scans[name] = read_scan(tmp_path / f"head_{name}.nii.gz")[0].array
    head = translate_head(tmp_path / "out", model_directory, tmp_path)
    assert len(head["directions"]) == 6 and (tmp_path / "out" / "head.png").is_file()
    pipeline = GalipPipeline.from_pretrained(model_directory)
    slices = {
        name: normalize_scan(pipeline.processor, scan, name).pixel_values[:, 0].numpy()
        for name, scan in scans.items()
    }
    mask = body_mask(list(slices.values()))
    made = pipeline(tmp_path / "head_T1.nii.gz", "T2", "T1")
    low, high = made.report["window"]
    expected = fixed_scores((made.volume.array - low) / (high - low), slices["T2"], mask=mask)["masked"]
    copied = fixed_scores(slices["T1"], slices["T2"], mask=mask)["masked"]
    scores = head["directions"]["T1->T2"]
    assert scores["psnr"] == pytest.approx(expected.psnr) and scores["ssim"] == pytest.approx(expected.ssim)
    assert scores["copy_psnr"] == pytest.approx(copied.psnr)
