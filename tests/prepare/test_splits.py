"""Splits: by subject, by group, from a seed or a file, with a hash of the assignment."""

import hashlib
import json
from pathlib import Path

import pytest

from galip_hf.model.errors import GalipError
from galip_hf.prepare.splits import check_groups, read_splits, split_hash, split_subjects, splits_document


def test_split_subjects_by_count() -> None:
    subjects = [f"s{i}" for i in range(12)]
    split = split_subjects(subjects, {"train": 6, "validation": 2, "test": 3}, seed=3)
    assert {name: len(members) for name, members in split.items()} == {"train": 6, "validation": 2, "test": 3}
    members = [subject for its in split.values() for subject in its]
    assert len(set(members)) == 11 and set(members) <= set(subjects)
    assert split == split_subjects(
        [*reversed(subjects), "s4"], {"train": 6, "validation": 2, "test": 3}, seed=3
    )
    assert split != split_subjects(subjects, {"train": 6, "validation": 2, "test": 3}, seed=4)


def test_split_subjects_by_fraction_uses_everyone() -> None:
    subjects = [f"s{i}" for i in range(11)]
    split = split_subjects(subjects, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed=0)
    assert sorted(subject for members in split.values() for subject in members) == sorted(subjects)
    assert [len(members) for members in split.values()] == [8, 1, 2]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"train": 9, "test": 2}, "11 subjects asked for, 10 available"),
        ({"train": 0.5, "test": 0.4}, "sum to 0.9"),
        ({"train": 0.99, "test": 0.01}, "test would get 0 of 10"),
        ({"train": 5, "test": 0.5}, "all counts"),
        ({"train": 5, "dev": 5}, "expected some of train, validation, test"),
        ({}, "expected some of"),
    ],
)
def test_split_subjects_refuses(wanted: dict[str, float], message: str) -> None:
    with pytest.raises(GalipError, match=message):
        split_subjects([f"s{i}" for i in range(10)], wanted, seed=0)


def test_groups_stay_together() -> None:
    subjects = [f"s{i:02d}" for i in range(20)]
    groups = {subject: f"g{int(subject[1:]) // 4}" for subject in subjects[:12]}
    for seed in range(5):
        split = split_subjects(subjects, {"train": 0.6, "validation": 0.2, "test": 0.2}, seed, groups)
        assert sorted(subject for its in split.values() for subject in its) == subjects
        check_groups(split, groups)
    with pytest.raises(GalipError, match="the groups cannot be divided so"):
        split_subjects(subjects[:4], {"train": 3, "test": 1}, 0, groups)
    with pytest.raises(GalipError, match="group 'g0' lies in two splits: 's00' in 'train', 's01' in 'test'"):
        check_groups({"train": ["s00"], "test": ["s01"]}, groups)


def test_hash_is_of_the_canonical_form() -> None:
    expected = hashlib.sha256('{"test":["é"],"train":["a","b"]}'.encode()).hexdigest()
    assert split_hash({"train": ["b", "a"], "test": ["é"]}) == expected
    assert split_hash({"train": ["a"], "test": ["b", "é"]}) != expected


def test_a_split_file_round_trips(tmp_path: Path) -> None:
    split = {"train": ["s1", "s2"], "test": ["s3"]}
    document = splits_document(split, {"s1": "g"}, ["s3", "s4"], "file")
    assert document["unused"] == ["s4"] and document["groups"] == {"s1": "g"}
    for name, text in (
        ("splits.json", json.dumps(document)),
        ("plain.json", json.dumps(split)),
        ("splits.csv", "subject,split\ns1,train\ns2,train\ns3,test\n"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_splits(tmp_path / name, ["s1", "s2", "s3", "s4"]) == split


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "subject,split\ns1,train\ns1,test\n", "'s1' lies in both 'train' and 'test'"),
        ("a.csv", "subject,split\ns1,dev\n", "split 'dev' of 's1' is unknown"),
        ("a.csv", "subject,split\ns8,train\n", "names 1 subjects that were not found: s8"),
        ("a.csv", "name,split\ns8,train\n", "not a readable split file"),
        ("a.json", "[1]", "not a readable split file"),
        ("a.json", '{"train": "s1"}', "not a list of subjects"),
        ("a.json", "{", "not a readable split file"),
    ],
)
def test_bad_split_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(GalipError, match=message):
        read_splits(tmp_path / name, ["s1", "s2"])
