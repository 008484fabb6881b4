"""The same call again: what is new, changed, repaired or gone since, and what was done to the label files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from label_album import Killed, contents, killed_at_replacement, lines, pictures, scene
from plain_labeler import PlainLabeler
from sample_files import write_video

from fsvit_edge.label.job import LabelResult
from fsvit_edge.label.pictures import STATE_NAME
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.pictures import write_image

Run = Callable[..., LabelResult]


@pytest.fixture
def count(labeler: type[PlainLabeler], monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return how many pictures the model has seen since the last time."""
    seen = 0

    def add() -> None:
        nonlocal seen
        seen += 1

    def take() -> int:
        nonlocal seen
        taken, seen = seen, 0
        return taken

    monkeypatch.setattr(labeler, "before", staticmethod(add))
    return take


def test_a_picture_that_was_replaced_is_labeled_again(
    run: Run, album: Path, tmp_path: Path, count: Callable[[], int]
) -> None:
    run("out", "album")
    before, _ = contents(tmp_path / "out"), count()
    write_image(album / "2.png", scene(7))
    said: list[str] = []
    result = run("out", "album", say=said.append)
    assert (result.labeled, result.earlier, count()) == (5, 4, 1)
    assert said[1:] == ["Note: 4 pictures were labeled by an earlier command; new or changed: 2.png."]
    run("fresh", "album")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") != before


@pytest.mark.parametrize("format_name", ["jsonl", "yolo", "coco"])
def test_pictures_that_came_or_went_give_what_one_call_for_all_gives(
    run: Run, album: Path, tmp_path: Path, count: Callable[[], int], format_name: str
) -> None:
    run("out", "album", format=format_name)
    before, _ = contents(tmp_path / "out"), count()
    write_image(album / "1a.png", scene(4))
    (album / "0.png").unlink()
    (album / "sub" / "5.jpg").unlink()
    said: list[str] = []
    assert run("out", "album", format=format_name, say=said.append).labeled == 4
    assert "Note: Labels are left out of what is no longer there: 0.png and 1 more." in said
    assert count() == 1
    run("fresh", "album", format=format_name)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") != before
    said.clear()
    assert run("out", "album", format=format_name, say=said.append).elapsed_s is None
    assert "no longer" not in "".join(said)  # it is no news
    write_image(album / "sub" / "5.jpg", scene(5))
    (album / "1a.png").unlink()
    write_image(album / "0.png", scene(0))
    run("out", "album", format=format_name)
    assert contents(tmp_path / "out") == before


def test_a_video_that_was_replaced_or_went_leaves_no_frames_behind(
    run: Run, album: Path, tmp_path: Path, count: Callable[[], int]
) -> None:
    run("out", "album", every_s=0.0)
    before, _ = contents(tmp_path / "out"), count()
    write_video(album / "v.mp4", [scene(index, 48, 64) for index in range(5)], 4.0)
    write_video(album / "w.mp4", [scene(index, 48, 64) for index in range(2)], 4.0)
    run("out", "album", every_s=0.0)
    assert count() == 7
    run("fresh", "album", every_s=0.0)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") != before
    assert run("out", "album", every_s=0.0).elapsed_s is None
    (album / "v.mp4").unlink()
    run("out", "album", every_s=0.0)
    run("fresh2", "album", every_s=0.0)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh2")
    assert not (tmp_path / "out/images/v.mp4").exists()


def test_a_picture_of_a_frame_that_is_gone_is_written_again(
    run: Run, album: Path, tmp_path: Path, count: Callable[[], int]
) -> None:
    run("out", "album", every_s=0.5)
    before, _ = contents(tmp_path / "out"), count()
    (tmp_path / "out/images/v.mp4/000004.jpg").unlink()
    run("out", str(album), every_s=0.5)
    assert count() == 1
    assert contents(tmp_path / "out") == before
    assert run("out", "album", every_s=0.5).elapsed_s is None


def test_what_could_not_be_labeled_is_tried_again(
    run: Run, album: Path, tmp_path: Path, count: Callable[[], int]
) -> None:
    run("out", "album")
    before, _ = contents(tmp_path / "out"), count()
    journal = (tmp_path / "out" / STATE_NAME / "journal.jsonl").read_bytes()
    again = run("out", "album")  # what fails as before is no news
    assert (again.failed, again.elapsed_s) == (3, None)
    assert (tmp_path / "out" / STATE_NAME / "journal.jsonl").read_bytes() == journal
    assert contents(tmp_path / "out") == before
    write_image(album / "cut.png", scene(7))
    result = run("out", "album")
    assert (result.labeled, result.failed, count()) == (6, 2, 1)
    assert [one["path"] for one in lines(tmp_path / "out/errors.jsonl")] == ["empty.jpg", "gone.jpg"]
    write_image(album / "nowhere.jpg", scene(1))
    write_image(album / "empty.jpg", scene(2))
    assert run("out", "album").failed == 0
    run("fresh", "album")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert not (tmp_path / "out/errors.jsonl").exists()


def test_a_frame_that_could_not_be_written_is_tried_again(
    run: Run, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsvit_edge.label.output import Output

    write = Output.write_picture

    def refuse(self: Output, name: str, data: bytes) -> None:
        write(self, "x" * 300 + ".jpg" if name.endswith("4.jpg") else name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "write_picture", refuse)
        assert run("out", "album/v.mp4", every_s=0.5).failed == 1
    assert run("out", str(album / "v.mp4"), every_s=0.5).failed == 0
    run("fresh", "album/v.mp4", every_s=0.5)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.usefixtures("album")
def test_a_label_file_that_is_gone_is_written_again(run: Run, tmp_path: Path, count: Callable[[], int]) -> None:
    run("out", "album", format="yolo")
    before, _ = contents(tmp_path / "out"), count()
    (tmp_path / "out/labels/2.txt").unlink()
    said: list[str] = []
    result = run("out", "album", format="yolo", say=said.append)
    assert (result.elapsed_s is None, count()) == (False, 0)
    assert f"Note: labels/2.txt is missing in {tmp_path}/out; the label files are written again." in said
    assert contents(tmp_path / "out") == before


def test_a_label_file_that_somebody_corrected_is_not_written_over(run: Run, album: Path, tmp_path: Path) -> None:
    run("out", "album", format="yolo")
    corrected = tmp_path / "out/labels/2.txt"
    corrected.write_text("0 0.1 0.1 0.2 0.2 0.3 0.1\n")
    assert run("out", "album", format="yolo").elapsed_s is None
    write_image(album / "later.jpg", scene(1))
    before = contents(tmp_path / "out")
    for _ in range(2):
        with pytest.raises(InputError, match=r"out/labels/2\.txt was changed since it was written, and would be"):
            run("out", "album", format="yolo")
        assert contents(tmp_path / "out") == before
    corrected.unlink()
    run("out", "album", format="yolo")
    run("fresh", "album", format="yolo")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("replaced", range(9))
def test_a_call_that_ends_while_it_replaces_labels_is_finished(
    run: Run, album: Path, tmp_path: Path, replaced: int
) -> None:
    run("out", "album", format="yolo")
    before = contents(tmp_path / "out")
    write_image(album / "2.png", scene(7))
    (album / "sub" / "5.jpg").rename(album / "sub" / "6.jpg")
    with killed_at_replacement(replaced):
        run("out", "album", format="yolo")
    if replaced % 2:  # and what was new has gone meanwhile
        (album / "sub" / "6.jpg").rename(album / "sub" / "5.jpg")
    run("out", "album", format="yolo")
    run("fresh", "album", format="yolo")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") != before


@pytest.mark.parametrize("replaced", range(9))
def test_a_picture_that_is_what_it_was_again_has_its_labels_again(
    run: Run, album: Path, tmp_path: Path, replaced: int
) -> None:
    run("out", "album", format="yolo")
    before = contents(tmp_path / "out")
    first, time_ns = (album / "2.png").read_bytes(), (album / "2.png").stat().st_mtime_ns
    write_image(album / "2.png", scene(7))
    with killed_at_replacement(replaced):
        run("out", "album", format="yolo")
    (album / "2.png").write_bytes(first)
    os.utime(album / "2.png", ns=(time_ns, time_ns))
    run("out", "album", format="yolo")
    assert contents(tmp_path / "out") == before


def test_a_video_that_is_replaced_while_it_is_read_is_labeled_again(
    run: Run, album: Path, tmp_path: Path, labeler: type[PlainLabeler], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsvit_edge.label import fill

    seen = 0

    def kill() -> None:
        nonlocal seen
        seen += 1
        if seen == 7:
            raise Killed

    def replaced() -> int:
        os.utime(album / "v.mp4", ns=(1, 1))
        return 1

    monkeypatch.setattr(fill, "usable_cores", lambda: 1)  # two answers wait to be written, and four are kept
    with monkeypatch.context() as patch:
        patch.setattr(labeler, "before", staticmethod(kill))
        with pytest.raises(Killed):
            run("out", "album/v.mp4", every_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(fill, "usable_cores", replaced)  # behind the look at what is kept
        assert run("out", "album/v.mp4", every_s=0.0).earlier == 4
    assert run("out", "album/v.mp4", every_s=0.0).earlier == 0
    run("fresh", "album/v.mp4", every_s=0.0)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_line_of_another_picture_is_left_out(run: Run, album: Path, tmp_path: Path) -> None:
    run("out", "album")
    before = contents(tmp_path / "out")
    journal = tmp_path / "out" / STATE_NAME / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"2.png", b"7.png"))
    run("out", str(album))
    assert contents(tmp_path / "out") == before
    assert "2.png" in pictures(tmp_path / "out")


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', "null", '{"written_from": "x"}'])
@pytest.mark.parametrize("name", ["call.json", "complete.json"])
def test_a_note_of_the_folder_that_is_something_else_is_said(
    run: Run, album: Path, tmp_path: Path, name: str, content: str
) -> None:
    assert run("out", album.name, every_s=1).labeled
    (tmp_path / "out" / STATE_NAME / name).write_text(content)
    with pytest.raises(FsvitEdgeError, match=r"is damaged: it has something else; remove the folder|labels made "):
        run("out", album.name, every_s=1)


def test_a_note_that_cannot_be_read_is_told_in_words(run: Run, album: Path, tmp_path: Path) -> None:
    run("out", album.name)
    note = tmp_path / "out" / STATE_NAME / "complete.json"
    note.unlink()
    note.mkdir()
    with pytest.raises(FsvitEdgeError, match=r"complete\.json is damaged: Is a directory; remove the folder "):
        run("out", album.name)
