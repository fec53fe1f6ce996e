"""Unpaired sampling: a function of (seed, epoch, index), every slice once, two subjects an item."""

import pickle
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.data.unpaired_dataset import UnpairedSlices, plan_epoch
from galip_hf.model.errors import GalipError

DOMAINS = ["T1", "T2", "PD"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    """Four subjects, three domains, five slices each: 60 slices of 6x6."""
    rng = np.random.default_rng(0)
    volumes = (
        SubjectVolume(rng.random((5, 6, 6), dtype=np.float32), domain, f"s{subject}", "train")
        for subject in range(4)
        for domain in DOMAINS
    )
    directory = write_table(volumes, tmp_path_factory.mktemp("t") / "table", domains=DOMAINS, image_size=None)
    return load_table(directory)["train"]


def rows_of(dataset: UnpairedSlices) -> list[tuple[int, int]]:
    items = [dataset[index] for index in range(len(dataset))]
    return [(item["row_a"], item["row_b"]) for item in items]


def test_an_item_is_two_slices_of_the_table(table: datasets.Dataset) -> None:
    domains = ["PD", "T1"]  # not the order of the table
    dataset = UnpairedSlices(table, domains=domains, seed=0)
    stored = table.with_format("numpy")
    for index in range(len(dataset)):
        item = dataset[index]
        assert item["domain_a"] != item["domain_b"]
        for place in "ab":
            row = stored[item[f"row_{place}"]]
            assert item[f"image_{place}"].shape == (1, 6, 6) and item[f"image_{place}"].dtype == torch.float32
            np.testing.assert_array_equal(item[f"image_{place}"][0], row["pixel_values"])
            assert DOMAINS[row["domain"]] == domains[item[f"domain_{place}"]]


def test_every_slice_once_an_epoch(table: datasets.Dataset) -> None:
    dataset = UnpairedSlices(table, domains=DOMAINS, seed=1)
    assert len(dataset) == 30
    assert sorted(sum(rows_of(dataset), ())) == list(range(60))
    longer = UnpairedSlices(table, domains=DOMAINS, seed=1, length=60)
    assert Counter(sum(rows_of(longer), ())) == dict.fromkeys(range(60), 2)


def test_ordered_pairs_are_balanced(table: datasets.Dataset) -> None:
    plan = UnpairedSlices(table, domains=DOMAINS, seed=2, length=33).plan
    pairs = Counter(map(tuple, plan.domains.tolist()))
    assert set(pairs) == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert set(pairs.values()) == {5, 6}


def test_the_two_slices_are_of_different_subjects(table: datasets.Dataset) -> None:
    subjects = table["subject"][:]
    dataset = UnpairedSlices(table, domains=DOMAINS, seed=3)
    for epoch in range(5):
        dataset.set_epoch(epoch)
        assert all(subjects[a] != subjects[b] for a, b in rows_of(dataset))


def test_items_depend_on_seed_epoch_and_index_only(table: datasets.Dataset) -> None:
    dataset = UnpairedSlices(table, domains=DOMAINS, seed=4)
    first = rows_of(dataset)
    dataset.set_epoch(1)
    second = rows_of(dataset)
    fresh = UnpairedSlices(table, domains=DOMAINS, seed=4)
    fresh.set_epoch(1)
    assert fresh[17]["row_a"] == second[17][0]  # without having drawn what comes before
    dataset.set_epoch(0)
    assert rows_of(dataset) == first != second
    assert rows_of(UnpairedSlices(table, domains=DOMAINS, seed=5)) != first
    torch.manual_seed(0)
    np.random.seed(0)
    assert rows_of(UnpairedSlices(table, domains=DOMAINS, seed=4)) == first


def test_horizontal_flip_mirrors_about_half(table: datasets.Dataset) -> None:
    plain = UnpairedSlices(table, domains=DOMAINS, seed=6, length=200)
    flipping = UnpairedSlices(table, domains=DOMAINS, seed=6, length=200, horizontal_flip=True)
    mirrored = 0
    for index in range(200):
        for place in ("image_a", "image_b"):
            before, after = plain[index][place], flipping[index][place]
            mirrored += not torch.equal(before, after)
            assert torch.equal(before, after) or torch.equal(before.flip(-1), after)
            assert torch.equal(after, flipping[index][place])
    assert 150 < mirrored < 250


def test_unequal_domains_repeat_only_after_all_were_used() -> None:
    rows = [np.arange(10), np.arange(10, 40)]
    subjects = np.arange(40) % 7
    plan = plan_epoch(rows, subjects, length=20, seed=0, epoch=0)
    uses = np.bincount(plan.rows.ravel(), minlength=40)
    assert (uses[:10] == 2).all() and uses[10:].max() == 1 and uses[10:].sum() == 20


def test_a_dominating_subject_is_kept_apart_by_repeating_others() -> None:
    # 18 of 20 slices of each domain are of subject 0: only repeats of the others can keep it from itself.
    subjects = np.array(([0] * 18 + [1] * 2) * 2)
    plan = plan_epoch([np.arange(20), np.arange(20, 40)], subjects, length=20, seed=0, epoch=0)
    assert (subjects[plan.rows[:, 0]] != subjects[plan.rows[:, 1]]).all()
    domains_of_rows = np.array([0] * 20 + [1] * 20)
    np.testing.assert_array_equal(domains_of_rows[plan.rows], plan.domains)


def test_one_subject_alone_is_paired_with_itself() -> None:
    plan = plan_epoch([np.arange(4), np.arange(4, 8)], np.zeros(8, dtype=int), length=4, seed=0, epoch=0)
    assert sorted(plan.rows.ravel().tolist()) == list(range(8))


def test_pickles_as_a_path_and_loads_in_persistent_workers(table: datasets.Dataset) -> None:
    dataset = UnpairedSlices(table, domains=DOMAINS, seed=7)
    dataset.set_epoch(3)
    pickled = pickle.dumps(dataset)
    assert rows_of(pickle.loads(pickled)) == rows_of(dataset)
    assert (
        len(pickled) < 10_000 < 60 * 6 * 6 * 4 * 2
    )  # the slices (8,640 bytes, and their plan) stay in the file
    loader = DataLoader(dataset, batch_size=5, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        loaded = [row for batch in loader for row in batch["row_a"].tolist()]
        assert loaded == [a for a, _ in rows_of(dataset)]
        assert batch_shapes(loader) == {(5, 1, 6, 6)}


def batch_shapes(loader: DataLoader) -> set[tuple[int, ...]]:
    return {tuple(batch["image_b"].shape) for batch in loader}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domains": ["T1"]}, "at least two"),
        ({"domains": ["T1", "T1"]}, "at least two different"),
        ({"domains": ["T1", "CT"]}, "'CT' is not in the table"),
        ({"domains": DOMAINS, "length": 0}, "length is 0"),
    ],
)
def test_refusals(table: datasets.Dataset, arguments: dict, message: str) -> None:
    with pytest.raises(GalipError, match=message):
        UnpairedSlices(table, seed=0, **arguments)
    with pytest.raises(IndexError):
        UnpairedSlices(table, domains=DOMAINS, seed=0)[30]


def test_a_domain_without_slices_is_refused(tmp_path: Path) -> None:
    def volume(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).random((2, 4, 4))

    only = [SubjectVolume(volume(0), "T1", "s1", "test")]
    train = [SubjectVolume(volume(seed), f"T{seed}", "s2", "train") for seed in (1, 2)]
    tables = load_table(write_table(only + train, tmp_path / "table", domains=["T1", "T2"], image_size=None))
    with pytest.raises(GalipError, match="'T2' has no slices in this split"):
        UnpairedSlices(tables["test"], domains=["T1", "T2"], seed=0)
