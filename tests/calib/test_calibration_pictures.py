import shutil
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fsvit_edge.calib import pictures
from fsvit_edge.calib.pictures import CalibrationSet, sample_pictures
from fsvit_edge.live.sources.base import Source
from fsvit_edge.live.sources.files import FileSource
from fsvit_edge.runtime.errors import InputError, SourceError


def save_picture(path: Path, value: int) -> None:
    """A gray picture of 4 x 2 pixels whose every pixel is `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2), (value, value, value)).save(path)


def save_video(path: Path, frames: int) -> None:
    """Frames that become brighter by 2 from each to the next."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"FFV1"), 10.0, (64, 48))
    for index in range(frames):
        writer.write(np.full((48, 64, 3), 2 * index, np.uint8))
    writer.release()


def values(pictures: Iterable[np.ndarray]) -> list[int]:
    """The first pixel of every picture."""
    return [int(picture[0, 0, 0]) for picture in pictures]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Forty pictures, two and three folders deep, with other files among them."""
    for value in range(40):
        folder = ("a", "b/c")[value % 2]
        save_picture(tmp_path / "album" / folder / f"{value}.png", value)
    (tmp_path / "album" / "notes.txt").write_text("not a picture")
    save_picture(tmp_path / "album" / ".hidden" / "1.png", 100)
    save_picture(tmp_path / "album" / "a" / "._1.png", 101)
    return tmp_path / "album"


def test_a_folder_is_searched_recursively_and_each_picture_comes_once(album: Path) -> None:
    found = sample_pictures(str(album), 100, seed=0)
    assert found.count == 40
    assert sorted(values(found)) == list(range(40))
    assert found.unreadable == 0
    picture = next(iter(found))
    assert (picture.shape, picture.dtype) == ((2, 4, 3), np.uint8)
    save_picture(album.parent / "x.PNG", 9)
    one = sample_pictures(str(album.parent / "x.PNG"), 5, seed=0)
    assert (one.count, values(one)) == (1, [9])


def test_a_seed_gives_the_same_pictures_wherever_the_folder_is(album: Path) -> None:
    first = values(sample_pictures(str(album), 10, seed=1))
    assert len(set(first)) == 10
    assert values(sample_pictures(str(album), 10, seed=1)) == first
    assert values(sample_pictures(f"{album}/../album/", 10, seed=1)) == first
    moved = album.parent / "elsewhere" / "moved"
    shutil.copytree(album, moved)
    assert values(sample_pictures(str(moved), 10, seed=1)) == first
    assert set(values(sample_pictures(str(album), 10, seed=2))) != set(first)
    assert set(first) != set(range(10))  # not simply the first ones


def test_the_order_in_which_the_disk_lists_does_not_matter(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = values(sample_pictures(str(album), 10, seed=1))
    walk = pictures.os.walk

    def backwards(*arguments: object, **options: object) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, folders, files in walk(*arguments, **options):  # type: ignore[call-overload]  # passes on what it was given
            folders.reverse()
            yield folder, folders, files[::-1]

    monkeypatch.setattr(pictures.os, "walk", backwards)
    assert values(sample_pictures(str(album), 10, seed=1)) == expected


def test_a_new_picture_changes_at_most_one_choice(album: Path) -> None:
    before = set(values(sample_pictures(str(album), 10, seed=1)))
    for value in range(50, 60):
        save_picture(album / f"{value}.png", value)
        after = set(values(sample_pictures(str(album), 10, seed=1)))
        assert len(before - after) <= 1
        before = after


def test_masks_next_to_pictures_are_skipped_but_a_class_can_be_named_masks(tmp_path: Path) -> None:
    for place, value in [("masks/images", 1), ("masks/masks", 91), ("cat/images", 2), ("cat/masks", 92)]:
        save_picture(tmp_path / place / "x.png", value)
    save_picture(tmp_path / "voc" / "JPEGImages" / "x.jpg", 3)
    save_picture(tmp_path / "voc" / "SegmentationClassAug" / "x.png", 93)
    assert sorted(values(sample_pictures(str(tmp_path), 9, seed=0))) == [1, 2, 3]
    assert values(sample_pictures(str(tmp_path / "cat" / "masks"), 9, seed=0)) == [92]


def test_linked_folders_are_followed_and_cycles_end(album: Path) -> None:
    elsewhere = album.parent / "disk"
    save_picture(elsewhere / "x.png", 77)
    (album / "link").symlink_to(elsewhere)
    (album / "a" / "circle").symlink_to(album)
    assert sorted(values(sample_pictures(str(album), 99, seed=0))) == [*range(40), 77]


def test_damaged_pictures_are_replaced_and_counted(album: Path) -> None:
    chosen = values(sample_pictures(str(album), 10, seed=1))
    for value in chosen[:3]:
        (album / ("a", "b/c")[value % 2] / f"{value}.png").write_bytes(b"garbage")
    found = sample_pictures(str(album), 10, seed=1)
    kept = values(found)
    assert len(kept) == 10
    assert kept[:7] == chosen[3:]
    assert found.unreadable == 3
    assert f"{chosen[0]}.png is damaged" in found.first_error
    assert values(found) == kept
    assert found.unreadable == 3  # of the last reading, not of both


def test_if_no_picture_can_be_read_the_error_names_the_first(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"has no picture to calibrate with: .*\.png is damaged") as error:
        list(sample_pictures(str(tmp_path), 5, seed=0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "kind", "text"),
    [
        ("none", SourceError, "none cannot be opened: No such file"),
        ("none.txt", SourceError, "none.txt cannot be opened: No such file"),
        ("none.png", SourceError, "none.png cannot be opened: No such file"),
        ("empty", InputError, "The folder empty contains no picture"),
        ("notes.doc", InputError, "is not a picture or video"),
        ("broken.mp4", SourceError, "broken.mp4 cannot be opened"),
        ("empty.txt", InputError, r"The list empty.txt is empty; write one picture"),
        ("nested.txt", InputError, "nested.txt contains empty.txt, another list"),
        ("binary.txt", InputError, "The list binary.txt cannot be read as text"),
        ("missing.txt", SourceError, "nowhere cannot be opened"),
        ("999", SourceError, "Camera /dev/video999 does not exist"),
        ("ftp://host/x.mp4", InputError, "Unsupported source ftp:"),
        ("demo", InputError, "The demo cannot be used to calibrate"),
        ("", InputError, "Unsupported source"),
        ("a\0b", InputError, "Unsupported source"),
    ],
)
def test_unsupported_sources_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: type[Exception], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty/folder").mkdir(parents=True)
    Path("notes.doc").write_text("?")
    Path("broken.mp4").write_bytes(b"garbage")
    Path("empty.txt").write_text("\n  \n")
    Path("nested.txt").write_text("empty.txt\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x80")
    Path("missing.txt").write_text("nowhere\n")
    with pytest.raises(kind, match=text) as error:
        sample_pictures(source, 5, seed=0)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_searched_is_refused(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = pictures.os.scandir

    def refuse(path: str | int) -> object:
        if str(path).endswith("c"):  # pytest tidies up by number
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(pictures.os, "scandir", refuse)
    with pytest.raises(InputError, match=r"b/c cannot be searched: Permission denied"):
        sample_pictures(str(album), 5, seed=0)


def test_a_list_is_read_relative_to_itself(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    lines = [f"a/{value}.png" for value in range(0, 20, 2)] + ["", f" {album}/b/c/1.png ", "a/none.png"]
    (album / "list.txt").write_text("\n".join(lines))
    found = sample_pictures(str(album / "list.txt"), 99, seed=0)
    assert sorted(values(found)) == sorted([*range(0, 20, 2), 1])
    assert found.unreadable == 1
    assert "none.png cannot be read: No such file" in found.first_error
    some = values(sample_pictures(str(album / "list.txt"), 5, seed=3))
    assert values(sample_pictures(str(album / "list.txt"), 5, seed=3)) == some
    assert len(set(some)) == 5


def test_the_parts_of_a_list_contribute_equally_as_far_as_they_can(album: Path) -> None:
    save_video(album / "clip.avi", 100)
    for value in range(200, 203):
        save_picture(album / "few" / f"{value}.png", value)
    lines = ["few", "b", "clip.avi", *(f"a/{value}.png" for value in range(0, 40, 2))]
    (album / "list.txt").write_text("\n".join(lines))
    found = sample_pictures(str(album / "list.txt"), 33, seed=0)
    shapes = Counter()
    for picture in found:
        value = int(picture[0, 0, 0])
        shapes["clip" if picture.shape[0] == 48 else "few" if value >= 200 else "ab"[value % 2]] += 1
    assert found.count == 33
    assert shapes == {"few": 3, "a": 10, "b": 10, "clip": 10}
    assert sample_pictures(str(album / "list.txt"), 2, seed=0).count == 2


def test_a_videos_sample_is_spread_over_its_time(tmp_path: Path) -> None:
    save_video(tmp_path / "clip.avi", 100)
    found = sample_pictures(str(tmp_path / "clip.avi"), 10, seed=0)
    assert found.count == 10
    times = [round(value / 2) for value in values(found)]
    assert [time // 10 for time in times] == list(range(10))  # one of each tenth
    assert len(np.unique(np.diff(times))) > 1  # not every tenth frame
    assert values(found) == values(sample_pictures(str(tmp_path / "clip.avi"), 10, seed=0))
    assert values(found) != values(sample_pictures(str(tmp_path / "clip.avi"), 10, seed=1))
    save_video(tmp_path / "short.avi", 7)
    short = sample_pictures(str(tmp_path / "short.avi"), 10, seed=0)
    assert (short.count, [round(value / 2) for value in values(short)]) == (7, list(range(7)))


def test_a_video_with_no_or_a_wrong_length_gives_the_frames_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_video(tmp_path / "clip.avi", 100)
    opened = pictures.open_source

    def sample(declared: int | None) -> list[int]:
        def unsure(uri: str) -> Source:
            source = opened(uri)
            source.num_frames = declared
            return source

        monkeypatch.setattr(pictures, "open_source", unsure)
        return values(sample_pictures(str(tmp_path / "clip.avi"), 10, seed=0))

    assert len(sample(None)) == pytest.approx(10, abs=1)
    assert len(sample(400)) == pytest.approx(2, abs=1)
    with pytest.raises(InputError, match=r"clip\.avi ends before its frame [0-9]+\.$"):
        sample(10**6)


class FakeCamera(FileSource):
    """Thirty frames a second by a clock of its own, each as bright as the second it was taken in."""

    is_live = True  # type: ignore[assignment]

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames, self.closed, self.lasts_s = 0, 0, 1e9
        monkeypatch.setattr(pictures, "open_source", lambda _: self.open())
        monkeypatch.setattr("time.monotonic", lambda: 100 + self.frames / 30)

    def open(self) -> "FakeCamera":
        super().__init__(self.images(), name="0", close=self.count)
        return self

    def count(self) -> None:
        self.closed += 1

    def images(self) -> Iterator[tuple[str, np.ndarray, tuple[int, int] | None]]:
        while self.frames / 30 < self.lasts_s:
            self.frames += 1
            yield "0", np.full((2, 2, 3), self.frames // 30, np.uint8), None
        raise SourceError("0 stopped delivering frames.")


def test_a_cameras_sample_is_spread_over_the_given_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = FakeCamera(monkeypatch)
    found = sample_pictures("0", 6, seed=0, seconds=60)
    assert found.count == 6
    assert values(found) == [0, 10, 20, 30, 40, 50]
    assert camera.closed == 2  # once to see what it is
    camera.lasts_s = camera.frames / 30 + 15
    with pytest.raises(SourceError, match="stopped delivering"):
        list(sample_pictures("0", 6, seed=0, seconds=60))


def test_pictures_are_read_one_at_a_time(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read_image = pictures.read_image
    monkeypatch.setattr(pictures, "read_image", lambda path: reads.append(path) or read_image(path))
    found = iter(sample_pictures(str(album), 10, seed=0))
    assert reads == []
    next(found)
    next(found)
    assert len(reads) == 2


def test_a_long_list_is_not_kept_in_memory(tmp_path: Path) -> None:
    def peak(lines: int) -> int:
        path = tmp_path / "list.txt"
        with path.open("w") as file:
            file.writelines(f"a/rather/long/name/of/a/picture/{line:08}.jpg\n" for line in range(lines))
        tracemalloc.start()
        try:
            found: CalibrationSet = sample_pictures(str(path), 16, seed=0)
            assert found.count == 16
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(1000) < 100_000
    assert peak(20_000) < 100_000
