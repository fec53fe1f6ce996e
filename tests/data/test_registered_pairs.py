"""Registered pairs: which rows they are, and that the items drawn from them stay registered."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from galip_hf.data.augmentation import SliceAugmentation
from galip_hf.data.registered_pairs import registered_rows
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.data.unpaired_dataset import UnpairedSlices
from galip_hf.model.errors import GalipError

DOMAINS = ["T1", "T2", "CT"]


def anatomy(subject: int) -> np.ndarray:
    """(5, 8, 8), another one for each subject and slice; slice 2 is empty in subject 0."""
    volume = np.random.default_rng(subject).uniform(0.2, 0.8, (5, 8, 8)).astype(np.float32)
    if subject == 0:
        volume[2] = 0
    return volume


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    """Subjects 0 and 1 in T1 and T2 (T2 is 1 - T1 where not empty), 2 in T2 and CT, 3 in CT alone."""
    volumes = []
    for subject in (1, 0):
        t1 = anatomy(subject)
        volumes += [
            SubjectVolume(t1, "T1", f"s{subject}", "train"),
            # One slice more, and no empty one: slice numbers are what joins them, not counts.
            SubjectVolume(np.concatenate([1 - t1, t1[:1]]), "T2", f"s{subject}", "train"),
        ]
    volumes += [
        SubjectVolume(anatomy(2), "CT", "s2", "train"),
        SubjectVolume(1 - anatomy(2), "T2", "s2", "train"),
        SubjectVolume(anatomy(3), "CT", "s3", "train"),
    ]
    directory = write_table(volumes, tmp_path_factory.mktemp("p") / "table", domains=DOMAINS, image_size=None)
    return load_table(directory)["train"]


def keys(table: datasets.Dataset, rows: np.ndarray) -> list[tuple[str, int]]:
    return [(table[int(row)]["subject"], table[int(row)]["slice"]) for row in rows]


def test_rows_are_those_of_one_subject_and_slice(table: datasets.Dataset) -> None:
    rows = registered_rows(table, "T1", "T2")
    expected = [("s0", 0), ("s0", 1), ("s0", 3), ("s0", 4), *(("s1", number) for number in range(5))]
    assert keys(table, rows[:, 0]) == keys(table, rows[:, 1]) == expected
    names = table.features["domain"].names
    assert {names[table[int(row)]["domain"]] for row in rows[:, 0]} == {"T1"}
    assert {names[table[int(row)]["domain"]] for row in rows[:, 1]} == {"T2"}
    assert keys(table, registered_rows(table, "CT", "T2")[:, 0]) == [("s2", number) for number in range(5)]
    assert registered_rows(table, "T1", "CT").shape == (0, 2)


@pytest.mark.parametrize(
    "augmentation", [None, SliceAugmentation(rotation=10, translation=0.1, intensity=0.2)]
)
def test_a_registered_item_is_the_same_slice_in_both_domains(
    table: datasets.Dataset, augmentation: SliceAugmentation | None
) -> None:
    options = {"domains": DOMAINS, "seed": 3, "paired_share": 0.5, "length": 80, "horizontal_flip": True}
    dataset = UnpairedSlices(table, augmentation=augmentation, **options)
    plain = UnpairedSlices(table, **options)
    moves = SliceAugmentation(rotation=10, translation=0.1)  # a pair keeps its intensities
    seen, directions = [], set()
    for index in range(80):
        item = dataset[index]
        subjects = [keys(table, np.array([item[f"row_{place}"]]))[0] for place in "ab"]
        if not item["registered"]:
            assert subjects[0][0] != subjects[1][0]
            continue
        assert subjects[0] == subjects[1] and item["domain_a"] != item["domain_b"]
        directions.add((DOMAINS[item["domain_a"]], DOMAINS[item["domain_b"]]))
        seen.append((item["row_a"], item["row_b"]))
        untouched = plain[index]
        # One anatomy: the images sum to 1, and both are moved by one and the same map.
        whole = untouched["image_a"] + untouched["image_b"]
        torch.testing.assert_close(whole, torch.ones(1, 8, 8), rtol=0, atol=1e-5)
        for place in "ab":
            expected = untouched[f"image_{place}"]
            if augmentation:
                expected = moves.apply(expected, np.random.default_rng([3, 0, index, 0]))
            torch.testing.assert_close(item[f"image_{place}"], expected, rtol=0, atol=1e-6)
    assert len(seen) == 40
    assert directions == {("T1", "T2"), ("T2", "T1"), ("T2", "CT"), ("CT", "T2")}
    assert len(set(seen)) == 28  # all of them, before any comes twice


def test_items_are_mixed_and_repeatable(table: datasets.Dataset) -> None:
    first, again = (
        UnpairedSlices(table, domains=DOMAINS, seed=1, paired_share=0.25, length=40) for _ in "12"
    )
    registered = first.plan.registered
    assert registered.sum() == 10 and registered[:20].any() and registered[20:].any()
    assert np.array_equal(first.plan.rows, again.plan.rows)
    again.set_epoch(1)
    assert not np.array_equal(registered, again.plan.registered)
    everything = UnpairedSlices(table, domains=DOMAINS, seed=1, paired_share=1.0)
    assert everything.plan.registered.all()


def test_a_share_of_0_changes_nothing(table: datasets.Dataset) -> None:
    plain = UnpairedSlices(table, domains=DOMAINS, seed=1, length=30)
    assert not plain.plan.registered.any()
    assert plain[3]["registered"] is False


def test_fixed_scales_keep_their_intensities(table: datasets.Dataset) -> None:
    options = {"domains": ["T2", "CT"], "seed": 0, "length": 20}
    plain = UnpairedSlices(table, **options)
    changed = UnpairedSlices(
        table, augmentation=SliceAugmentation(intensity=0.2), fixed_scale=["CT"], **options
    )
    for index in range(20):
        for place in "ab":
            same = torch.equal(plain[index][f"image_{place}"], changed[index][f"image_{place}"])
            assert same == (plain[index][f"domain_{place}"] == 1)


def test_items_of_a_place_and_an_epoch_have_changes_of_their_own(table: datasets.Dataset) -> None:
    dataset = UnpairedSlices(
        table, domains=DOMAINS, seed=0, length=10, augmentation=SliceAugmentation(intensity=0.2)
    )
    gains = set()
    for epoch in range(2):
        dataset.set_epoch(epoch)
        for index in range(10):
            item = dataset[index]
            assert torch.equal(item["image_a"], dataset[index]["image_a"])
            for place in "ab":
                stored = torch.tensor(table[item[f"row_{place}"]]["pixel_values"])
                gains.add(round((item[f"image_{place}"][0].max() / stored.max()).item(), 5))
    assert len(gains) == 40


def test_pairs_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    volumes = [SubjectVolume(anatomy(number), DOMAINS[number], f"s{number}", "train") for number in (0, 1)]
    table = load_table(write_table(volumes, tmp_path / "table", domains=DOMAINS[:2], image_size=None))
    with pytest.raises(GalipError, match="no subject of the train split has one slice in two of T1, T2"):
        UnpairedSlices(table["train"], domains=DOMAINS[:2], seed=0, paired_share=0.5)
