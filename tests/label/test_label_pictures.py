"""What is labeled, in which order, under which names, and in which part of a split."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsvit_edge.label.pictures import STATE_NAME, list_pictures, parse_split, part_chooser
from fsvit_edge.runtime.errors import InputError, SourceError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(*sources: Path | str, every_s: float | None = None) -> list[str]:
    return [entry.name for entry in list_pictures([str(one) for one in sources], every_s).entries]


def test_a_folder_is_read_with_its_sub_folders_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "10.jpg", "2.JPG", "b/1.png", "a/x/1.webp", "a/2.jpg", "notes.txt", ".hidden.jpg", ".cache/1.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert names(tmp_path) == ["2.JPG", "10.jpg", "a/2.jpg", "a/x/1.webp", "b/1.png"]


def test_names_are_below_the_deepest_folder_that_holds_all_sources(tmp_path: Path) -> None:
    touch(tmp_path, "one/day/1.jpg", "two/day/1.jpg", "1.jpg")
    assert names(tmp_path / "one") == ["day/1.jpg"]
    assert names(tmp_path / "two/day", tmp_path / "one/day") == ["two/day/1.jpg", "one/day/1.jpg"]
    assert names(tmp_path / "1.jpg", tmp_path / "one") == ["1.jpg", "one/day/1.jpg"]
    assert names(tmp_path / "one/day/1.jpg") == ["1.jpg"]


def test_a_picture_is_listed_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "2.jpg")
    assert names(tmp_path, tmp_path / "a", tmp_path / "a/../2.jpg") == ["2.jpg", "a/1.jpg"]


def test_a_list_has_a_path_on_each_line_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfb/2.jpg\r\n\n" + os.fsencode(tmp_path) + b"/a/1.jpg\nb/gone.jpg")
    monkeypatch.chdir(tmp_path)
    assert names("list.txt") == ["b/2.jpg", "a/1.jpg", "b/gone.jpg"]


def test_outputs_and_circles_of_links_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "labels/images/clip.mp4/000000.jpg", "b/2.jpg")
    (tmp_path / "b" / "again").symlink_to(tmp_path)
    (tmp_path / "a").symlink_to(tmp_path / "b")
    assert "labels/images/clip.mp4/000000.jpg" in names(tmp_path)  # the control
    (tmp_path / "labels" / STATE_NAME).mkdir()
    assert names(tmp_path) == ["1.jpg", "b/2.jpg"]


def test_what_links_lead_to_is_listed_once(tmp_path: Path) -> None:
    touch(tmp_path, "top/.store/1.jpg", "elsewhere/2.jpg")
    for name in ("a", "b"):
        (tmp_path / "top" / name).symlink_to(tmp_path / "top/.store")
        (tmp_path / "top" / f"other-{name}").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "top") == ["a/1.jpg", "other-a/2.jpg"]


def test_folders_that_link_to_one_another_are_read_in_no_time(tmp_path: Path) -> None:
    folders = [f"{number}" for number in range(12)]  # 12! ways through them
    touch(tmp_path, *(f"{folder}/1.jpg" for folder in folders))
    for folder in folders:
        for other in folders:
            (tmp_path / folder / f"to-{other}").symlink_to(tmp_path / other)
    assert names(tmp_path) == [f"{folder}/1.jpg" for folder in folders]


def test_a_link_to_itself_is_one_picture_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "2.jpg")
    (tmp_path / "1.jpg").symlink_to(tmp_path / "1.jpg")
    assert names(tmp_path) == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_list_that_never_ends_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "list.txt")
    with pytest.raises(InputError, match=r"list\.txt is not a regular file; give a text file"):
        names(tmp_path / "list.txt")


def test_a_list_of_gigabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "list.txt").open("wb") as file:
        file.truncate(20 * 10**9)
    with pytest.raises(InputError, match=r"has 20\.0 GB, more than the 2 GB that are read; split it"):
        names(tmp_path / "list.txt")


def test_masks_beside_images_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "cat/images/1.jpg", "cat/masks/1.png", "dog/images/2.jpg", "dog/masks/2.png", "masks/3.png")
    listing = list_pictures([str(tmp_path)])
    assert [entry.name for entry in listing.entries] == ["cat/images/1.jpg", "dog/images/2.jpg", "masks/3.png"]
    assert listing.notes == (
        f"2 folders, such as {tmp_path}/cat/masks, are left out: beside images/, masks/ has masks.",
    )
    assert names(tmp_path / "cat") == ["images/1.jpg"]
    assert names(tmp_path / "cat/masks") == ["1.png"]  # who asks for them gets them
    (tmp_path / "dog" / "images" / "2.jpg").unlink()
    with pytest.raises(InputError, match="contains no pictures"):
        names(tmp_path / "dog")


def test_videos_are_read_if_it_is_said_how_often(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/clip.mp4", "v/clip.MTS")
    listing = list_pictures([str(tmp_path / "a")])
    assert [entry.name for entry in listing.entries] == ["1.jpg"]
    assert listing.notes == (
        f"The video {tmp_path}/a/clip.mp4 is not read; give --every SECONDS to label frames of videos, too.",
    )
    listing = list_pictures([str(tmp_path)], 2.0)
    assert [(entry.name, entry.is_video) for entry in listing.entries] == [
        ("a/1.jpg", False),
        ("a/clip.mp4", True),
        ("v/clip.MTS", True),
    ]
    for source in ("a/clip.mp4", "v"):
        with pytest.raises(InputError, match="--every SECONDS"):
            list_pictures([str(tmp_path / source)])


@pytest.mark.parametrize(
    ("source", "kind", "sentence"),
    [
        ("none", SourceError, "does not exist; check the path"),
        ("", InputError, "A source is empty; give a picture"),
        ("notes.md", InputError, "is no picture, video or list; expected"),
        ("empty", InputError, "contains no pictures"),
        ("empty.txt", InputError, "is empty; write the path of a picture on each line"),
        ("rtsp://camera/stream", InputError, "is not stored here"),
    ],
)
def test_a_source_of_another_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: type[Exception], sentence: str
) -> None:
    touch(tmp_path, "notes.md", "empty.txt", "empty/.hidden.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=sentence):
        list_pictures([source])


def test_a_name_that_label_files_cannot_hold_is_a_problem_of_that_picture(tmp_path: Path) -> None:
    joiner = "नि\u200dष.jpg"  # a part of Hindi names
    touch(tmp_path, "ok.jpg", joiner, "line\nbreak.jpg", os.fsdecode(b"lat\xe9in.jpg"))
    entries = {entry.name: entry.problem for entry in list_pictures([str(tmp_path)]).entries}
    assert entries["ok.jpg"] == entries[joiner] == ""
    assert "rename it" in entries["line\nbreak.jpg"]
    assert "not UTF-8" in entries["lat\\udce9in.jpg"]


def test_a_folder_that_cannot_be_entered_is_a_problem_of_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "1.jpg", "closed/2.jpg")
    scandir = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    one, closed = list_pictures([str(tmp_path)]).entries
    assert (one.name, one.problem) == ("1.jpg", "")
    assert (closed.name, closed.problem) == (
        "closed",
        f"The folder {tmp_path}/closed cannot be read: Permission denied.",
    )


def test_a_file_of_another_size_or_time_is_another_version(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    listing = list_pictures([str(tmp_path)])
    before = listing.version("1.jpg")
    assert listing.version("1.jpg") == before != ""
    (tmp_path / "1.jpg").write_bytes(b"more")
    larger = listing.version("1.jpg")
    os.utime(tmp_path / "1.jpg", ns=(0, 1))
    later = listing.version("1.jpg")
    (tmp_path / "1.jpg").unlink()
    assert len({before, larger, later, listing.version("1.jpg")}) == 4


def test_a_split_follows_its_shares_and_a_picture_keeps_its_part() -> None:
    part_of = part_chooser(parse_split("0.7/0.2/0.1"))
    parts = [part_of(f"folder/{index}.jpg") for index in range(2000)]
    assert [round(parts.count(part) / 2000, 1) for part in ("train", "val", "test")] == [0.7, 0.2, 0.1]
    # As the documentation states it, so that others can compute it.
    part_of = part_chooser(parse_split("0.5/0.15/0.35"))
    assert [part_of(name) for name in ("a.jpg", "c.jpg", "b/2.png")] == ["train", "val", "test"]


@pytest.mark.parametrize("text", ["0.8", "0.8/0.1", "1/0", "a/b", "0.5/0.3/0.1/0.1", "nan/0.2", "1.2/-0.2", ""])
def test_what_is_no_split_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="add up to 1"):
        parse_split(text)


@pytest.mark.parametrize("every_s", [-1.0, float("nan"), float("inf")])
def test_a_time_between_frames_is_a_number(tmp_path: Path, every_s: float) -> None:
    with pytest.raises(InputError, match="--every must be"):
        list_pictures([str(tmp_path)], every_s)
