"""Parquet files of what was found: records come back as they were, and each picture has one row in the end."""

from dataclasses import replace
from pathlib import Path

import pytest
from label_records import ABOUT, NAMES, sample

from fsvit_edge.label.journal import Failure, Kept, Record
from fsvit_edge.label.pictures import Listing, Stored
from fsvit_edge.label.shards import Shards, to_rows
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError

pq = pytest.importorskip("pyarrow.parquet", reason='pyarrow is not installed: pip install "fsvit-edge[ray]"')

PICTURES: list[Record] = [replace(one, time_s=None) for one in sample()]


class Versions(Listing):
    """Pictures that are there, by name and version."""

    def __init__(self, **versions: str) -> None:
        super().__init__(Path("/"), [Stored(name) for name in versions])
        self.__dict__["known"] = versions

    def version(self, name: str) -> str:
        return str(self.__dict__["known"][name])


def listing(*names: str) -> Versions:
    return Versions(**dict.fromkeys(names, "1"))


def add(shards: Shards, kept: Kept, *records: Record, version: str = "1") -> None:
    shards.append(to_rows(records, [version] * len(records), ABOUT), kept)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [*PICTURES, Failure("bad.jpg", "bad.jpg is empty.")]
    here = listing(*(one.path for one in records))
    shards, kept = Shards(tmp_path / "parquet", ABOUT), Kept()
    add(shards, kept, *records[:2])
    add(shards, kept, *records[2:])
    again = Shards(tmp_path / "parquet", ABOUT)
    kept_again = again.read_kept(here)
    assert list(again.read(kept_again.items(here))) == records
    assert list(shards.read([*kept.labeled.values(), Failure("x", "y")])) == [*PICTURES, Failure("x", "y")]
    assert list(kept_again.failed) == ["bad.jpg"]
    assert not again.tidy()
    file = pq.ParquetFile(tmp_path / "parquet" / "000001.parquet")
    assert b'"bank_sha256": "' + ABOUT.bank_sha256.encode() in file.schema_arrow.metadata[b"fsvit_edge"]
    assert [one["name"] for one in file.read().to_pylist()[0]["classes"]] == list(NAMES)


def test_rows_of_what_is_gone_replaced_or_labeled_later_are_removed(tmp_path: Path) -> None:
    first, second, third, fourth = PICTURES
    shards, kept = Shards(tmp_path, ABOUT), Kept()
    add(shards, kept, Failure(first.path, "why"), second, third)
    add(shards, kept, fourth)
    add(shards, kept, first, third)
    there = Versions(**{first.path: "1", second.path: "2", third.path: "1"})
    again = Shards(tmp_path, ABOUT)
    before = again.read_kept(there)
    assert (list(before.labeled), before.failed, before.gone) == ([first.path, third.path], {}, {fourth.path})
    assert again.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000003.parquet"]
    after = again.read_kept(there)
    assert list(again.read(after.items(there))) == [first, third]
    assert not again.tidy()
    add(again, after, replace(second, path="b"), version="2")
    assert (tmp_path / "000004.parquet").exists()


def test_a_failure_that_repeats_itself_is_no_news(tmp_path: Path) -> None:
    shards, kept = Shards(tmp_path, ABOUT), Kept()
    add(shards, kept, Failure("a", "It is empty."), PICTURES[0])
    shards.read_kept(listing("a", PICTURES[0].path))
    assert not shards.is_news("a", "It is empty.")
    assert shards.is_news("a", "It is damaged.")
    assert shards.is_news("a", None)
    assert shards.is_news("b", "It is empty.")


def test_rows_of_several_groups_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsvit_edge.label.shards._GROUP_ROWS", 2)
    shards, kept = Shards(tmp_path, ABOUT), Kept()
    records = [replace(PICTURES[index % 4], path=f"{index}") for index in range(9)]
    add(shards, kept, *records)
    assert pq.ParquetFile(tmp_path / "000001.parquet").num_row_groups == 5
    places = list(kept.labeled.values())
    assert list(shards.read(places[::-1])) == records[::-1]


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    shards, kept = Shards(tmp_path, ABOUT), Kept()
    add(shards, kept, PICTURES[0])
    file = tmp_path / "000001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"000001\.parquet is damaged: .*; remove it, and the same command labels"):
        Shards(tmp_path, ABOUT).read_kept(listing(PICTURES[0].path))


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    shards, kept = Shards(tmp_path, ABOUT), Kept()
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(FsvitEdgeError, match="No space left"):
        add(shards, kept, PICTURES[0])
    assert list(tmp_path.iterdir()) == []
    assert not kept.labeled


def test_a_page_that_rotted_gives_no_other_labels(tmp_path: Path) -> None:
    shards, kept = Shards(tmp_path, ABOUT), Kept()
    records = [replace(PICTURES[index % 4], path=f"{index:03}") for index in range(99)]
    add(shards, kept, *records)
    here, file = listing(*(one.path for one in records)), tmp_path / "000001.parquet"
    whole = file.read_bytes()
    told = 0
    for place in range(100, len(whole) - 100, len(whole) // 60):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        again = Shards(tmp_path, ABOUT)
        try:
            assert list(again.read(again.read_kept(here).items(here))) == records
        except ArtifactError:
            told += 1
    assert told > 30


def test_a_file_of_another_bank_or_program_is_refused(tmp_path: Path) -> None:
    there = listing(PICTURES[0].path)
    shards, kept = Shards(tmp_path, ABOUT), Kept()
    add(shards, kept, PICTURES[0])
    rounded = replace(ABOUT, levels=tuple(level + 1e-6 for level in ABOUT.levels), outlines="plain")
    assert list(Shards(tmp_path, rounded).read_kept(there).labeled) == [PICTURES[0].path]
    for other in (replace(ABOUT, bank_sha256="d" * 64), replace(ABOUT, levels=(0.5, 0.5, 0.5))):
        with pytest.raises(ArtifactError, match=r"000001\.parquet was not written by this command"):
            Shards(tmp_path, other).read_kept(there)
    file = tmp_path / "000001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["version"]), file)
    with pytest.raises(ArtifactError, match=r"000001\.parquet was not written by this command.*; move it away"):
        Shards(tmp_path, ABOUT).read_kept(there)


def test_a_file_that_was_written_anew_with_other_groups_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsvit_edge.label.shards._GROUP_ROWS", 2)
    shards, kept = Shards(tmp_path, ABOUT), Kept()
    add(shards, kept, *PICTURES)
    file, there = tmp_path / "000001.parquet", listing(*(one.path for one in PICTURES))
    assert len(Shards(tmp_path, ABOUT).read_kept(there).labeled) == 4
    for rows in (1, 3, 4):
        pq.write_table(pq.read_table(file), file, row_group_size=rows)
        with pytest.raises(ArtifactError, match="was not written by this command"):
            Shards(tmp_path, ABOUT).read_kept(there)


def test_what_a_killed_call_left_of_a_file_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".fsvit-edge-123_abc"
    left.write_bytes(b"half")
    Shards(tmp_path, ABOUT)
    assert not left.exists()
