"""Sampling from a stream of Parquet files: whole, without duplicates over ranks and workers, repeatable."""

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from published_tables import DOMAINS, make_table, publish
from torch.utils.data import DataLoader

from galip_hf.data.augmentation import SliceAugmentation
from galip_hf.data.streamed_dataset import StreamedSlices, open_stream
from galip_hf.data.table import COLUMNS
from galip_hf.model.errors import GalipError


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    return make_table(tmp_path_factory.mktemp("s") / "table")


@pytest.fixture(scope="module")
def source(table: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish(table.shuffle(seed=0), tmp_path_factory.mktemp("hub"))


def streamed(source: str, **options: object) -> StreamedSlices:
    settings: dict = {"domains": DOMAINS, "seed": 0, "length": 60, "buffer_size": 30, **options}
    return StreamedSlices(open_stream(source, "train"), **settings)


def keys(item: dict) -> list[tuple[str, str, int]]:
    names = [(DOMAINS[item[f"domain_{p}"]], *item[f"row_{p}"].split(" slice ")) for p in "ab"]
    return [(domain, subject, int(number)) for domain, subject, number in names]


def test_an_item_is_two_slices_of_the_table(source: str, table: datasets.Dataset) -> None:
    stored = {
        (DOMAINS[row["domain"]], row["subject"], row["slice"]): row["pixel_values"]
        for row in table.with_format("numpy", columns=["pixel_values"], output_all_columns=True)
    }
    items = list(streamed(source))
    assert len(items) == 60
    same_subject = 0
    for item in items:
        first, second = keys(item)
        assert first[0] != second[0]
        same_subject += first[1] == second[1]
        for place, key in zip("ab", (first, second), strict=True):
            assert item[f"image_{place}"].dtype == torch.float32
            np.testing.assert_array_equal(item[f"image_{place}"][0], stored[key])
    assert same_subject <= 2  # at the end of the stream, when nothing else is left
    used = Counter(key for item in items for key in keys(item))
    assert len(used) > 90 and max(used.values()) <= 2  # nearly all 120 of them
    pairs = Counter(tuple(key[0] for key in keys(item)) for item in items)
    assert len(pairs) == 6 and min(pairs.values()) > 3


@pytest.mark.parametrize("processes", [1, 2, 3])  # 3 do not divide the 4 files
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_share_the_rows_without_overlap(source: str, processes: int, workers: int) -> None:
    seen: dict[tuple[str, str, int], set[tuple[int, int]]] = {}
    consumers = processes * max(1, workers)
    for rank in range(processes):
        dataset = streamed(
            source, length=60 // processes, buffer_size=12, process_index=rank, num_processes=processes
        )
        loader = DataLoader(dataset, batch_size=1, num_workers=workers)
        for number, item in enumerate(loader):
            plain = {name: value[0] for name, value in item.items()}
            for domain, subject, position in keys(plain):
                worker = number % max(1, workers)  # one after the other
                seen.setdefault((domain, subject, int(position)), set()).add((rank, worker))
    assert all(len(owners) == 1 for owners in seen.values())
    assert len({owner for owners in seen.values() for owner in owners}) == consumers
    assert len(seen) > 90


def test_items_depend_on_seed_and_epoch_alone(source: str) -> None:
    first = [keys(item) for item in streamed(source)]
    torch.manual_seed(5)
    np.random.seed(5)
    again = streamed(source)
    assert [keys(item) for item in again] == first
    again.set_epoch(1)
    second = [keys(item) for item in again]
    assert second != first
    fresh = streamed(source)
    fresh.set_epoch(1)
    assert [keys(item) for item in fresh] == second
    assert [keys(item) for item in streamed(source, seed=1)] != first


@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_in_an_epoch_is_resumable(source: str, workers: int) -> None:
    options: dict = {"length": 56, "augmentation": SliceAugmentation(intensity=0.1), "horizontal_flip": True}

    def loader() -> DataLoader:
        return DataLoader(streamed(source, **options), batch_size=4, num_workers=workers, drop_last=True)

    whole, resumed = list(loader()), list(skip_first_batches(loader(), 5))
    assert len(resumed) == len(whole) - 5 == len(loader()) - 5
    for expected, found in zip(whole[5:], resumed, strict=True):
        assert expected["row_a"] == found["row_a"]
        assert torch.equal(expected["image_a"], found["image_a"])
        assert torch.equal(expected["image_b"], found["image_b"])


def test_scarce_domains_are_used_as_often_as_others(table: datasets.Dataset, tmp_path: Path) -> None:
    domains = np.asarray(table["domain"][:])
    keep = np.concatenate([np.flatnonzero(domains == 0), np.flatnonzero(domains == 1)[:8]])
    source = publish(table.select(keep).shuffle(seed=1), tmp_path, files=1)
    items = list(streamed(source, domains=["T1", "T2"], buffer_size=12, length=36))
    assert len(items) == 36 and all(item["domain_a"] != item["domain_b"] for item in items)


def test_an_epoch_longer_than_the_stream_reads_it_again(source: str) -> None:
    used = Counter(key for item in streamed(source, length=200) for key in keys(item))
    assert sum(used.values()) == 400 and len(used) == 120 and max(used.values()) <= 6


def test_fixed_scales_keep_their_intensities(source: str, table: datasets.Dataset) -> None:
    values = {round(float(row["pixel_values"][0][0]), 5) for row in table}
    changed = streamed(source, augmentation=SliceAugmentation(intensity=0.3), fixed_scale=["CT"])
    kept = Counter()
    for item in changed:
        for place in "ab":
            kept[item[f"domain_{place}"]] += round(item[f"image_{place}"][0, 0, 0].item(), 5) in values
    assert kept[2] == sum(item["domain_a"] == 2 or item["domain_b"] == 2 for item in streamed(source))
    assert kept[0] + kept[1] < 10


def test_rows_in_order_of_domains_are_refused(table: datasets.Dataset, tmp_path: Path) -> None:
    source = publish(table.sort("domain"), tmp_path, files=1)
    with pytest.raises(
        GalipError, match="12 slices in a row are of T1 alone; publish the rows in mixed order"
    ):
        list(streamed(source, buffer_size=12))


def test_refusals(source: str, tmp_path: Path) -> None:
    for options, message in (
        ({"domains": ["T1"]}, "at least two different"),
        ({"domains": ["T1", "PD"]}, "'PD' is not in the stream; its domains are T1, T2, CT"),
        ({"buffer_size": 5}, "buffer_size 5; expected at least 1 and 6"),
    ):
        with pytest.raises(GalipError, match=message):
            streamed(source, **options)
    with pytest.raises(GalipError, match="nowhere, split 'train', cannot be opened"):
        open_stream(str(tmp_path / "nowhere"), "train")
    (tmp_path / "other").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(str(tmp_path / "other" / "train.parquet"))
    with pytest.raises(GalipError, match=rf"has columns \['text'\]; expected those of a table: {COLUMNS[0]}"):
        open_stream(str(tmp_path / "other"), "train")
