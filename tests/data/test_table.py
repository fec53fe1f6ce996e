"""The slice table: what is written is what is read, subjects stay in one split, nothing half-written."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from galip_hf.cli import main
from galip_hf.data.table import SliceReader, domain_slices, load_table
from galip_hf.data.table_writer import SubjectVolume, crop_or_pad, write_table
from galip_hf.model.errors import GalipError

DOMAINS = ["T2", "T1"]


def volume(
    subject: str,
    domain: str,
    split: str = "train",
    shape: tuple[int, ...] = (3, 8, 6),
    empty: tuple[int, ...] = (),
) -> SubjectVolume:
    seed = [int(subject[1:]), DOMAINS.index(domain) if domain in DOMAINS else 9]
    array = np.random.default_rng(seed).random(shape, dtype=np.float32)
    array[list(empty)] = 0
    return SubjectVolume(array, domain, subject, split)


@pytest.fixture
def volumes() -> list[SubjectVolume]:
    return [
        volume("s1", "T1"),
        volume("s9", "T2", "test"),
        volume("s1", "T2", empty=(0,)),
        volume("s2", "T2"),
        volume("s9", "T1", "test"),
    ]


def test_round_trip(volumes: list[SubjectVolume], tmp_path: Path) -> None:
    directory = write_table(iter(volumes), tmp_path / "new" / "table", domains=DOMAINS, image_size=None)
    tables = load_table(directory)
    assert list(tables) == ["train", "test"]
    train = tables["train"]
    assert train.features["domain"].names == DOMAINS
    assert train["subject"][:] == ["s1"] * 5 + ["s2"] * 3
    assert train["domain"][:] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert train["slice"][:] == [0, 1, 2, 1, 2, 0, 1, 2]
    expected = np.concatenate([volumes[0].array, volumes[2].array[1:], volumes[3].array])
    np.testing.assert_array_equal(np.array(train["pixel_values"][:], dtype=np.float32), expected)
    np.testing.assert_array_equal(domain_slices(tables["test"], "T1"), volumes[4].array)
    assert os.listdir(tmp_path / "new") == ["table"]


def test_plain_datasets_reads_it_memory_mapped(volumes: list[SubjectVolume], tmp_path: Path) -> None:
    directory = write_table(volumes, tmp_path / "table", domains=DOMAINS, image_size=None)
    train = datasets.load_from_disk(str(directory))["train"]
    assert train.cache_files, "the rows are in memory, not in a mapped file"
    row = train.with_format("numpy")[3]
    np.testing.assert_array_equal(row["pixel_values"], volumes[2].array[1])


def test_summary_counts_what_was_left_out(volumes: list[SubjectVolume], tmp_path: Path) -> None:
    directory = write_table(volumes, tmp_path / "table", domains=DOMAINS, image_size=16)
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    assert summary["slice_shape"] == [16, 16] and summary["domains"] == DOMAINS
    assert summary["splits"]["train"] == {
        "subjects": ["s1", "s2"],
        "slices": {"T2": 5, "T1": 3},
        "left_out": {"T2": 1, "T1": 0},
    }
    everything = write_table(
        volumes, tmp_path / "all", domains=DOMAINS, image_size=None, minimum_foreground=0.0
    )
    assert len(load_table(everything)["train"]) == 9


def test_near_empty_is_less_than_two_percent_above_the_level(tmp_path: Path) -> None:
    array = np.zeros((4, 10, 10), dtype=np.float32)
    array[0, 0, :2] = 0.06  # 2 %: kept
    array[1, 0, :1] = 0.06  # 1 %
    array[2] = 0.05  # not above the level
    one = [SubjectVolume(array, "T1", "s1", "train")]
    table = load_table(write_table(one, tmp_path / "table", domains=["T1"], image_size=None))["train"]
    assert table["slice"][:] == [0]


def test_many_record_batches(tmp_path: Path) -> None:
    many = [volume(f"s{i}", domain, shape=(150, 4, 4)) for i in range(8) for domain in DOMAINS]
    table = load_table(write_table(many, tmp_path / "table", domains=DOMAINS, image_size=None))["train"]
    reader = SliceReader(table)
    assert len(reader) == len(table) == 2400 and len(table.data.column("pixel_values").chunks) > 1
    np.testing.assert_array_equal(
        np.array([reader[row] for row in range(len(reader))]), np.concatenate([one.array for one in many])
    )
    expected = np.concatenate([one.array for one in many if one.domain == "T1"])
    np.testing.assert_array_equal(domain_slices(table, "T1"), expected)
    np.testing.assert_array_equal(domain_slices(table, "T1", limit=7), expected[:7])
    with pytest.raises(ValueError, match="read-only"):
        reader[0][0, 0] = 1
    with pytest.raises(IndexError):
        reader[2400]
    with pytest.raises(GalipError, match="flatten_indices"):
        SliceReader(table.select([3, 1]))
    with pytest.raises(GalipError, match="'CT' is not in the table; its domains are T2, T1"):
        domain_slices(table, "CT")


def test_crop_or_pad_is_centred() -> None:
    image = np.arange(1, 31, dtype=np.float32).reshape(5, 6)
    np.testing.assert_array_equal(crop_or_pad(image, 3), image[1:4, 1:4])
    padded = crop_or_pad(image[None], 8)
    np.testing.assert_array_equal(padded[0, 1:6, 1:7], image)
    assert padded.shape == (1, 8, 8) and padded.sum() == image.sum() and padded.dtype == np.float32
    mixed = crop_or_pad(image, 5)
    np.testing.assert_array_equal(mixed, image[:, :5])


def test_a_subject_in_two_splits_is_refused(volumes: list[SubjectVolume], tmp_path: Path) -> None:
    leaking = [*volumes, volume("s2", "T1", "test")]
    with pytest.raises(GalipError, match="'s2' lies in both 'train' and 'test'"):
        write_table(leaking, tmp_path / "table", domains=DOMAINS, image_size=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (volume("s1", "T1"), "'s1', T1: given twice"),
        (volume("s3", "CT"), "'s3', CT: unknown domain; expected one of T2, T1"),
        (volume("s3", "T1", "dev"), "split is 'dev'; expected one of train, validation, test"),
        (volume("s3", "T1", shape=(3, 8, 7)), "slices are 8x7, earlier ones 8x6; give image_size"),
        (SubjectVolume(np.full((2, 8, 6), np.nan), "T1", "s3", "train"), "96 of 96 values are NaN"),
        (
            SubjectVolume(np.full((2, 8, 6), -900.0), "T1", "s3", "train"),
            r"-900\.\.-900 are not in model space",
        ),
        (SubjectVolume(np.ones((2, 8, 6), dtype=np.uint8), "T1", "s3", "train"), "uint8"),
        (SubjectVolume(np.ones((8, 6)), "T1", "s3", "train"), r"\(8, 6\)"),
        (volume("s3", "T1", "validation", empty=(0, 1, 2)), "validation: all 3 slices are near-empty"),
    ],
)
def test_bad_volumes_are_refused(
    volumes: list[SubjectVolume], bad: SubjectVolume, message: str, tmp_path: Path
) -> None:
    with pytest.raises(GalipError, match=message):
        write_table([*volumes, bad], tmp_path / "table", domains=DOMAINS, image_size=None)
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused(volumes: list[SubjectVolume], tmp_path: Path) -> None:
    for domains in ([], ["T1", "T1"]):
        with pytest.raises(GalipError, match="domains: found"):
            write_table(volumes, tmp_path / "table", domains=domains, image_size=None)
    with pytest.raises(GalipError, match="image_size: found 0"):
        write_table(volumes, tmp_path / "table", domains=DOMAINS, image_size=0)
    with pytest.raises(GalipError, match="no volumes"):
        write_table([], tmp_path / "table", domains=DOMAINS, image_size=None)
    only_test_has_t1 = [one for one in volumes if one.domain == "T2" or one.split == "test"]
    with pytest.raises(GalipError, match="no slices of T1 in the train split"):
        write_table(only_test_has_t1, tmp_path / "table", domains=DOMAINS, image_size=None)
    with pytest.raises(GalipError, match="no slices of CT;"):
        write_table([volume("s1", "T1", "test")], tmp_path / "table", domains=["T1", "CT"], image_size=None)


def test_an_existing_folder_is_kept(volumes: list[SubjectVolume], tmp_path: Path) -> None:
    directory = write_table(volumes, tmp_path / "table", domains=DOMAINS, image_size=None)
    with pytest.raises(GalipError, match="give overwrite=True"):
        write_table(volumes, directory, domains=DOMAINS, image_size=None)

    def broken() -> Iterator[SubjectVolume]:
        yield volume("s1", "T1")
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        write_table(broken(), directory, domains=DOMAINS, image_size=None, overwrite=True)
    assert len(load_table(directory)["train"]) == 8
    write_table(volumes[3:4], directory, domains=["T2"], image_size=None, overwrite=True)
    assert list(load_table(directory)) == ["train"] and len(load_table(directory)["train"]) == 3
    (tmp_path / "photos").mkdir()
    with pytest.raises(GalipError, match="photos: exists already; not a table"):
        write_table(volumes, tmp_path / "photos", domains=DOMAINS, image_size=None, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"table", "photos"}


def test_load_refuses_other_folders(tmp_path: Path) -> None:
    with pytest.raises(GalipError, match="absent: no such folder"):
        load_table(tmp_path / "absent")
    with pytest.raises(GalipError, match="no table in this folder"):
        load_table(tmp_path)
    other = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})})
    other.save_to_disk(tmp_path / "other")
    with pytest.raises(GalipError, match=r"train has columns \['text'\]"):
        load_table(tmp_path / "other")


def test_an_identical_slice_in_two_splits_is_refused(volumes: list[SubjectVolume], tmp_path: Path) -> None:
    array = volume("s7", "T1").array.copy()
    array[2] = volumes[0].array[1]
    copied = SubjectVolume(array, "T1", "s7", "test", first_slice=40)
    message = r"'s1' \(train, T1, slice 1\) and 's7' \(test, T1, slice 42\) have a byte-identical slice"
    with pytest.raises(GalipError, match=message):
        write_table([*volumes, copied], tmp_path / "table", domains=DOMAINS, image_size=None)
    assert not list(tmp_path.iterdir())
    same_split = SubjectVolume(array, "T1", "s7", "train", first_slice=40)
    written = write_table([*volumes, same_split], tmp_path / "table", domains=DOMAINS, image_size=None)
    assert json.loads((written / "summary.json").read_text(encoding="utf-8"))["identical_slice_count"] == 1
    assert load_table(written)["train"]["slice"][-3:] == [40, 41, 42]


def test_the_same_volumes_give_the_same_bytes(volumes: list[SubjectVolume], tmp_path: Path) -> None:
    folders = [
        write_table(volumes, tmp_path / name, domains=DOMAINS, image_size=None) for name in ("one", "two")
    ]
    files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*") if path.is_file())
    assert len(files) >= 8
    for file in files:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file


def test_the_optional_column_of_body_masks(tmp_path: Path) -> None:
    def masked(subject: str, rows: tuple[int, int] | None) -> SubjectVolume:
        mask = None
        if rows:
            mask = np.zeros((3, 12, 10), bool)
            mask[:, rows[0] : rows[1], 2:7] = True
        return replace(volume(subject, "T1", shape=(3, 12, 10)), mask=mask)

    given = [masked("s1", (3, 8)), masked("s2", None)]
    written = write_table(given, tmp_path / "table", domains=["T1"], image_size=12, masks=True)
    table = load_table(written)["train"]
    reader = SliceReader(table, "mask")
    assert [int(reader[row].sum()) for row in range(6)] == [25, 25, 25, 0, 0, 0]
    assert reader[0].dtype == np.uint8 and reader[0][5, 3:8].all()  # padded as the slices are
    restored = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(restored[1], reader[1])
    plain = write_table([volume("s1", "T1")], tmp_path / "plain", domains=["T1"], image_size=None)
    assert "mask" not in load_table(plain)["train"].column_names
    with pytest.raises(GalipError, match="with masks=True"):
        write_table(given, tmp_path / "refused", domains=["T1"], image_size=12)
    with pytest.raises(GalipError, match="found a bool mask"):
        wrong = replace(given[0], mask=np.zeros((3, 12, 10), bool))
        write_table([wrong], tmp_path / "refused", domains=["T1"], image_size=12, masks=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset_dict.json", '{"splits": [[]]}'),
        ("dataset_dict.json", '{"splits": []}'),
        ("dataset_dict.json", "1e30"),
        ("train/state.json", '{"_data_files": "x"}'),
        ("train/dataset_info.json", "[" * 100000),
        ("summary.json", "[]"),
        ("summary.json", '{"excluded": true}'),
        ("summary.json", '{"intensities": {"T1": 1' + "0" * 5000 + "}}"),
        ("summary.json", '{"split_hash": [1]}'),
    ],
)
def test_odd_json_is_one_line(
    name: str, text: str, table_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table"
    shutil.copytree(table_directory, table)
    (table / name).write_text(text)
    assert main(["inspect", str(table), "--montage", str(tmp_path / "montage.png")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("galip-hf: error: ") and told.count("\n") == 1 and len(told) < 500
    assert not (tmp_path / "montage.png").exists()
