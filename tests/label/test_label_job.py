"""A labeling: what is in its output, resumed after any end, refused where it is another's, and beside a second one."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from label_album import Killed, contents, killed_at_replacement, lines, pictures, scene
from PIL import Image
from plain_labeler import PlainLabeler, predict
from sample_files import write_video

from fsvit_edge.label import journal as journal_module
from fsvit_edge.label.fill import Progress
from fsvit_edge.label.job import LabelResult
from fsvit_edge.label.output import WORDS, open_output
from fsvit_edge.label.pictures import STATE_NAME
from fsvit_edge.runtime import pictures as picture_files
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError
from fsvit_edge.runtime.pictures import read_image, write_image
from fsvit_edge.runtime.storage import BusyError

Run = Callable[..., LabelResult]


def test_everything_is_labeled_and_what_cannot_be_is_listed(run: Run, album: Path, tmp_path: Path) -> None:
    result = run("out", "album", every_s=0.5)
    assert (result.labeled, result.failed) == (9, 3)
    frames = [f"v.mp4/{index:06}.jpg" for index in (0, 2, 4, 6)]
    found = pictures(tmp_path / "out")
    assert list(found) == ["0.png", "1.png", "2.png", "3.png", *frames, "sub/5.jpg"]
    failures = {one["path"]: one["reason"] for one in lines(tmp_path / "out" / "errors.jsonl")}
    assert list(failures) == ["cut.png", "empty.jpg", "gone.jpg"]
    assert failures["empty.jpg"] == f"{album}/empty.jpg is empty."
    assert "No such file" in failures["gone.jpg"]
    bright, red = found["2.png"]["classes"]
    assert (bright["present"], bright["parts"][0]["box_xyxy"]) == (True, [3, 2, 20, 6])
    assert red["parts"][0]["area_px"] == 72
    assert [found[name]["time_s"] for name in frames] == [0.0, 0.5, 1.0, 1.5]
    assert result.pictures_of["red"] == sum(one["classes"][1]["present"] for one in found.values())


@pytest.mark.usefixtures("album")
def test_labels_are_those_of_the_picture_that_is_written_for_a_frame(run: Run, tmp_path: Path) -> None:
    run("out", "album/v.mp4", every_s=0.0)
    found = pictures(tmp_path / "out")
    assert len(found) == 8
    for name, one in found.items():
        file = tmp_path / "out" / "images" / name
        assert one["size_hw"] == list(read_image(file).shape[:2])
        areas = [sum(part["area_px"] for part in each["parts"]) for each in one["classes"]]
        assert areas == [each.area_px for each in predict(read_image(file)).results]


def test_a_picture_is_labeled_as_people_see_it(run: Run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    Image.fromarray(scene(1)).save(tmp_path / "turned.png", exif=exif)
    run("out", "turned.png")
    (one,) = pictures(tmp_path / "out").values()
    assert one["size_hw"] == [32, 24]
    assert one["classes"][0]["parts"][0]["box_xyxy"] == [19, 3, 22, 20]


def test_labels_fit_a_large_jpeg_that_is_read_smaller(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = scene(1).repeat(4, axis=0).repeat(4, axis=1)[:95, :127]
    Image.fromarray(picture).save(tmp_path / "whole.jpg", quality=95)
    Image.fromarray(picture).save(tmp_path / "whole-turned.jpg", quality=95, exif=exif)
    run("whole", tmp_path)
    monkeypatch.setattr(picture_files, "MAX_PICTURE_PX", 95 * 127 // 2)
    run("smaller", tmp_path)
    wanted, found = pictures(tmp_path / "whole"), pictures(tmp_path / "smaller")
    assert [one["size_hw"] for one in found.values()] == [[127, 95], [95, 127]]
    for name, one in found.items():
        assert one["size_hw"] == wanted[name]["size_hw"]
        for ours, theirs in zip(one["classes"], wanted[name]["classes"], strict=True):
            (part,), (whole,) = ours["parts"], theirs["parts"]
            np.testing.assert_allclose(part["box_xyxy"], whole["box_xyxy"], atol=2)


def test_what_a_kill_leaves_of_a_frames_picture_is_removed(run: Run, album: Path, tmp_path: Path) -> None:
    with killed_at_replacement(6):
        run("out", album / "v.mp4", every_s=0.0)
    folder = tmp_path / "out" / "images" / "v.mp4"
    left = folder / ".fsvit-edge-1_x"
    left.touch()
    run("out", album / "v.mp4", every_s=0.0)
    assert not left.exists()
    assert len(list(folder.iterdir())) == 8


def test_a_video_of_which_a_part_is_missing_is_labeled_as_far_as_it_goes(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(40)]
    write_video(tmp_path / "whole.avi", noise, 10.0, code="MJPG")
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "part.avi").write_bytes(data[: len(data) // 2])
    result = run("out", "part.avi", every_s=0.0)
    assert 10 < result.labeled < 30
    (failure,) = lines(tmp_path / "out" / "errors.jsonl")
    assert failure["path"] == "part.avi"
    assert "declares 40 frames, but only" in failure["reason"]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    result = run("out2", "bad.mp4", every_s=0.0)
    assert (result.labeled, result.failed) == (0, 1)


# ------------------------------------------------------------------------------------------------------------- resumed


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize("after", range(9))
def test_a_call_that_ends_at_any_picture_is_finished_by_the_same_one(
    run: Run, labeler: type[PlainLabeler], tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("whole", "album", every_s=0.5)
    left = after

    def before() -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1

    monkeypatch.setattr(labeler, "before", staticmethod(before))
    with pytest.raises(Killed):
        run("out", "album", every_s=0.5)
    assert not (tmp_path / "out" / "labels.jsonl").exists()
    monkeypatch.setattr(labeler, "before", staticmethod(lambda: None))
    seen: list[Progress] = []
    result = run("out", "album", every_s=0.5, on_progress=seen.append)
    assert (result.labeled, result.failed) == (9, 3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert seen[-1].share == 1.0
    assert (seen[-1].labeled, seen[-1].failed) == (9, 3)
    assert (after < 8) or seen[-1].here < 12  # what was done is not done again


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize(
    "line", [b'"classes":[]}\n', b'"classes":[{"name":1}],"time_s":null}\n', b'"classes":7,"time_s":0}\n']
)
def test_a_journal_that_somebody_changed_is_refused_in_one_sentence(run: Run, tmp_path: Path, line: bytes) -> None:
    with killed_at_replacement(7):
        run("out", "album")
    journal = tmp_path / "out" / STATE_NAME / "journal.jsonl"
    version = lines(journal)[0]["version"]
    start = f'{{"entry":"0.png","version":"{version}","path":"0.png","size_hw":[24,32],'
    journal.write_bytes(start.encode() + line)
    with pytest.raises(ArtifactError, match=r"journal\.jsonl is damaged at byte 0"):
        run("out", "album")


@pytest.fixture
def unfinished(run: Run, album: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output, "out", whose journal is complete, but whose labels were not written."""

    def fail(*_: object) -> None:
        raise Killed

    run("whole", "album", every_s=0.5)
    with monkeypatch.context() as patch:
        patch.setattr("fsvit_edge.label.job.write_format", fail)
        with pytest.raises(Killed):
            run("out", "album", every_s=0.5)
    return album.with_name("out")


def test_a_journal_that_is_cut_at_any_byte_is_completed(run: Run, unfinished: Path, tmp_path: Path) -> None:
    journal = unfinished / STATE_NAME / "journal.jsonl"
    state, whole = journal.with_name("complete.json"), journal.read_bytes()
    ends = [match.end() for match in re.finditer(rb"\n", whole)]
    cuts = {0, 1, *ends, *(end - 1 for end in ends), *(end + 7 for end in ends[:-1])}
    for cut in sorted(cuts):
        journal.write_bytes(whole[:cut])
        state.unlink(missing_ok=True)
        run("out", "album", every_s=0.5)
        assert contents(unfinished) == contents(tmp_path / "whole"), cut


def test_what_a_power_cut_left_in_the_journal_is_cut_off(run: Run, unfinished: Path, tmp_path: Path) -> None:
    journal = unfinished / STATE_NAME / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:300] + bytes(200) + b"\n" + whole[500:])
    run("out", "album", every_s=0.5)
    assert contents(unfinished) == contents(tmp_path / "whole")


@pytest.mark.parametrize("replaced", range(7))
def test_a_call_that_ends_while_labels_are_put_in_place_is_finished(
    run: Run, unfinished: Path, tmp_path: Path, replaced: int
) -> None:
    with killed_at_replacement(replaced):
        run("out", "album", every_s=0.5)
    run("out", "album", every_s=0.5)
    assert contents(unfinished) == contents(tmp_path / "whole")
    assert [path.name for path in unfinished.iterdir() if path.name.startswith(".")] == [STATE_NAME]
    assert sorted(path.name for path in (unfinished / STATE_NAME).iterdir()) == [
        *("call.json", "complete.json", "files.txt", "journal.jsonl")
    ]


@pytest.mark.usefixtures("album")
def test_a_call_that_is_complete_is_not_done_again(
    run: Run, labeler: type[PlainLabeler], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("out", "album")

    def fail() -> None:
        raise Killed

    monkeypatch.setattr(labeler, "before", staticmethod(fail))
    again = run("out", "album")
    assert again.elapsed_s is None
    assert again.labeled == first.labeled


@pytest.mark.usefixtures("album")
def test_a_full_disk_ends_a_call_which_goes_on_when_there_is_room(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("whole", "album")
    append = journal_module.Journal.append
    left = 2

    def fill(self: journal_module.Journal, line: bytes) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            self._file.write(line[:10])
            with journal_module._disk_errors(self._path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return append(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(journal_module.Journal, "append", fill)
        with pytest.raises(FsvitEdgeError, match="No space left on device; free some space, and the same command"):
            run("out", "album")
    run("out", "album")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize(
    ("sources", "changed", "sentence"),
    [
        pytest.param(
            ["album"], {"bank": "other"}, "made by another bank, of the same classes and levels, but", id="bank"
        ),
        pytest.param(["album"], {"format": "other"}, "made with --format jsonl, not with --format other", id="format"),
        pytest.param(["album"], {"min_score": 0.6}, "made without --min-score, not with --min-score 0.6", id="score"),
        pytest.param(["album"], {"split": "0.8/0.2"}, "made without --split, not with --split 0.8/0.2", id="split"),
        pytest.param(["album", "new.jpg"], {}, "made from .*album, not from .*album, .*new.jpg", id="sources"),
    ],
)
def test_another_call_into_the_same_folder_is_refused(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sources: list[str],
    changed: dict[str, Any],
    sentence: str,
) -> None:
    from fsvit_edge.label import job

    monkeypatch.setattr(job, "FORMATS", {**job.FORMATS, "other": None})
    write_image(tmp_path / "new.jpg", scene(1))
    run("out", "album")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=sentence):
        run("out", *sources, **changed)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"classes": ["cup", "apple"]}, "made for the classes cup, not for the classes cup, apple;"),
        ({"levels": ["cup 0.6"]}, "made at the levels cup 0.5, not at the levels cup 0.6;"),
        ({}, "made by another bank, of the same classes and levels, but with other pictures, zones or verdicts;"),
    ],
)
def test_what_differs_between_two_banks_is_told(tmp_path: Path, changed: dict[str, Any], sentence: str) -> None:
    call = dict.fromkeys(WORDS, "same") | {"classes": ["cup"], "levels": ["cup 0.5"]}
    with open_output(tmp_path / "out") as output:
        output.begin(call)
        output.begin(call)
        with pytest.raises(InputError, match=re.escape(sentence)):
            output.begin({**call, **changed, "bank_sha256": "another"})


@pytest.mark.usefixtures("album")
def test_another_engine_is_another_call(run: Run, labeler: type[PlainLabeler], monkeypatch: pytest.MonkeyPatch) -> None:
    run("out", "album")
    with monkeypatch.context() as patch:
        patch.setattr(labeler, "engine", "faster")
        with pytest.raises(InputError, match="made on the engine plain, not on the engine faster"):
            run("out", "album")


def test_a_folder_with_something_else_is_refused(run: Run, album: Path, tmp_path: Path) -> None:
    for output, sentence in (("album", "contains other files, such as"), ("album/1.png", "is a file")):
        with pytest.raises(InputError, match=sentence):
            run(output, "album/0.png")
    assert not (album / STATE_NAME).exists()
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / STATE_NAME).mkdir(parents=True)  # by a call that was killed before it wrote anything
    assert run("empty", "album/0.png").labeled == run("begun", "album/0.png").labeled == 1


@pytest.mark.usefixtures("album")
def test_a_second_call_beside_the_first_is_refused(run: Run, tmp_path: Path) -> None:
    with (
        open_output(tmp_path / "out"),
        pytest.raises(BusyError, match=r"Another fsvit-edge label is writing to .*out; wait for it"),
    ):
        run("out", "album")
    assert run("out", "album").labeled == 5


def test_pictures_of_one_stem_are_refused_before_the_first_is_read(
    run: Run, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsvit_edge.label import job

    write_image(album / "1.jpg", scene(1))
    monkeypatch.setattr(job, "FORMATS", {**job.FORMATS, "yolo": job.FORMATS["jsonl"]})
    assert run("out", "album").labeled == 6  # where names keep their suffix
    with pytest.raises(InputError, match=r"1\.jpg and 1\.png differ only in their suffix, and --format yolo"):
        run("out2", "album", format="yolo")


@pytest.mark.usefixtures("album")
def test_an_unknown_format_is_refused_with_those_that_are_known(
    run: Run,
) -> None:
    with pytest.raises(InputError, match=r"--format must be one of .*jsonl.*, got 'voc'"):
        run("out", "album", format="voc")


# --------------------------------------------------------------------------------------------------------------- split


def test_a_split_keeps_the_frames_of_a_video_together(run: Run, album: Path, tmp_path: Path) -> None:
    for index in range(10, 40):
        write_image(album / f"{index}.png", scene(index))
    result = run("out", "album", every_s=0.0, split="0.5/0.5")
    found = pictures(tmp_path / "out")
    assert {one["split"] for one in found.values()} == {"train", "val"}
    assert len({one["split"] for name, one in found.items() if name.startswith("v.mp4/")}) == 1
    assert result.pictures_in == {
        part: sum(one["split"] == part for one in found.values()) for part in result.pictures_in
    }


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize("format_name", ["jsonl", "yolo"])
def test_a_part_of_the_split_without_pictures_is_told(run: Run, format_name: str) -> None:
    warning = "Warning: No picture is in val; the name of a picture decides, and that of a video for all of its frames."
    note = "Note: data.yaml has the pictures of train.txt for validation, too"
    said: list[str] = []
    result = run("out", "album/v.mp4", every_s=0.0, split="0.99/0.01", format=format_name, say=said.append)
    assert result.pictures_in == {"train": 8, "val": 0}
    assert said == ([warning, f"{note}."] if format_name == "yolo" else [warning])
    first = list(said)
    run("out", "album/v.mp4", every_s=0.0, split="0.99/0.01", format=format_name, say=said.append)
    assert said == first * 2  # it is still so
    said.clear()
    run("whole", "album", format=format_name, say=said.append)
    assert said[1:] == ([f"{note}; --split 0.8/0.2 keeps some for validation."] if format_name == "yolo" else [])
    said.clear()
    run("both", "album", split="0.5/0.5", format=format_name, say=said.append)
    assert len(said) == 1  # the control: only that the video is not read


# ----------------------------------------------------------------------------------------------------- pictures of YOLO


@pytest.mark.parametrize("format_name", ["yolo", "jsonl"])
def test_the_lists_of_yolo_find_their_pictures(run: Run, album: Path, tmp_path: Path, format_name: str) -> None:
    said: list[str] = []
    run("out", "album", format=format_name, say=said.append)
    assert not [one for one in said if "ln -s" in one]
    if format_name != "yolo":
        assert not os.path.lexists(tmp_path / "out/images")
        return
    listed = (tmp_path / "out/train.txt").read_text().split()
    assert "./images/sub/5.jpg" in listed
    assert all((tmp_path / "out" / one).is_file() for one in listed)
    assert (tmp_path / "out/images").readlink() == album
    (tmp_path / "out/images").unlink()
    (tmp_path / "out/images").mkdir()  # a copy of the user's
    assert run("out", "album", format="yolo").elapsed_s is None
    assert not (tmp_path / "out/images").is_symlink()


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize(
    ("output", "sources"), [("out", ["album/sub", "album/1.png"]), ("out", ["album/1.png"]), ("album/out", ["album"])]
)
def test_where_no_link_is_made_the_line_is_said_that_does(
    run: Run, tmp_path: Path, output: str, sources: list[str]
) -> None:
    said: list[str] = []
    run(output, *sources, format="yolo", say=said.append)
    assert not os.path.lexists(tmp_path / output / "images")
    assert f"make a link to them: ln -s {tmp_path}/album {tmp_path}/{output}/images" in "\n".join(said)
    (tmp_path / output / "images").symlink_to(tmp_path / "album")
    said.clear()
    run(output, *sources, format="yolo", say=said.append)
    assert "ln -s" not in "".join(said)


def test_the_advice_for_folders_named_images_works(run: Run, tmp_path: Path) -> None:
    for name in ("A", "B"):
        write_image(tmp_path / name / "images" / "1.png", scene(1))
    for sources in (["A", "B"], ["A/images", "B/images"], ["A"]):
        with pytest.raises(InputError, match="label that folder alone, with an --output of its own, or rename it, or"):
            run("out", *sources, format="yolo")
    assert run("out_a", "A/images", format="yolo").labeled == run("out_b", "B/images", format="yolo").labeled == 1
    (tmp_path / "A/images").rename(tmp_path / "A/pictures")
    (tmp_path / "B/images").rename(tmp_path / "B/pictures")
    assert run("out", "A", "B", format="yolo").labeled == 2


def test_frames_are_never_written_among_the_pictures(run: Run, album: Path, tmp_path: Path) -> None:
    before = contents(album)
    said: list[str] = []
    run("out", "album", every_s=0.0, format="yolo", say=said.append)
    assert not (tmp_path / "out/images").is_symlink()
    assert f"Note: Copy the pictures of {album} to {tmp_path}/out/images, where" in "\n".join(said)
    assert contents(album) == before
    said.clear()
    run("out2", "album/v.mp4", every_s=0.0, format="yolo", say=said.append)
    assert "Copy" not in "".join(said)
    listed = (tmp_path / "out2/train.txt").read_text().split()
    assert len(listed) == 8
    assert all((tmp_path / "out2" / one).is_file() for one in listed)


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.usefixtures("album")
def test_a_path_too_long_for_a_frame_is_a_failure_of_that_frame(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsvit_edge.label.output import Output

    write = Output.write_picture

    def refuse(self: Output, name: str, data: bytes) -> None:
        if name.endswith("4.jpg"):
            name = "x" * 300 + ".jpg"
        write(self, name, data)

    monkeypatch.setattr(Output, "write_picture", refuse)
    result = run("out", "album/v.mp4", every_s=0.5)
    assert (result.labeled, result.failed) == (3, 1)
    (failure,) = lines(tmp_path / "out" / "errors.jsonl")
    assert failure["path"] == "v.mp4/000004.jpg"
    assert "File name too long" in failure["reason"]


@pytest.mark.usefixtures("album")
def test_a_name_that_the_format_cannot_hold_is_refused_before_the_first_picture(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def check(name: str, picture: str) -> None:
        seen.append((name, picture))
        if picture == "sub/5.jpg":
            raise InputError(f"{picture} cannot be named.")

    monkeypatch.setattr("fsvit_edge.label.job.check_path", check)
    with pytest.raises(InputError, match=r"sub/5\.jpg cannot be named"):
        run("out", "album", every_s=0.5)
    assert ("jsonl", "v.mp4/000000.jpg") in seen  # the frames of a video, by their own name
    assert not (tmp_path / "out").exists()


def test_a_video_with_the_longest_name_is_labeled(run: Run, tmp_path: Path) -> None:
    name = "नि\u200dष" + "x" * 239 + ".avi"
    assert len(os.fsencode(name)) == 255
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (64, 48))
    writer.write(scene(1, 48, 64))
    writer.release()
    (tmp_path / "videos").mkdir()
    (tmp_path / "a.avi").rename(tmp_path / "videos" / name)
    assert run("out", "videos", every_s=1.0).labeled == 1
    assert (tmp_path / "out" / "images" / name / "000000.jpg").is_file()
