"""A video of which the end is missing, as a download that was cut short: each command says so, and fails."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from fsvit_edge import FewShotModel
from fsvit_edge.enroll.support_files import read_supports
from fsvit_edge.live.run import RunOptions, run_source
from fsvit_edge.live.sample import sample_frames
from fsvit_edge.live.sources.base import SourceOptions
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.runtime.errors import InputError


def cut_video(path: Path, keeps: float) -> Path:
    """A video that declares 20 frames, with a part of their data."""
    fourcc = "mp4v" if path.suffix == ".mp4" else "MJPG"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*fourcc), 100, (64, 48))
    for index in range(20):
        writer.write(np.full((48, 64, 3), (0, 0, 100 + 5 * index), np.uint8))
    writer.release()
    data = bytearray(path.read_bytes())
    media = data.index(b"mdat" if path.suffix == ".mp4" else b"movi")
    size = (data.index(b"moov") if path.suffix == ".mp4" else data.index(b"idx1")) - media
    lost = slice(media + int(size * keeps), media + size - 4 if keeps < 1 else 0)
    data[lost] = bytes(len(data[lost]))  # a download leaves what it has not fetched empty
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "keeps", "realtime"),
    [("half.mp4", 0.5, False), ("half.mp4", 0.5, True), ("half.avi", 0.5, False), ("whole.mp4", 1.0, False)],
)
def test_a_video_of_which_the_end_is_missing_says_so(tmp_path: Path, name: str, keeps: float, realtime: bool) -> None:
    path = cut_video(tmp_path / name, keeps)
    with open_source(str(path), SourceOptions(realtime=realtime)) as source:
        count = len(list(source)) + source.status.dropped
        assert (4 < count < 14) if keeps < 1 else count == 20
        said = f"{path} declares 20 frames, but only {count} could be decoded: the rest is missing or damaged"
        assert source.problem.startswith(said) if keeps < 1 else source.problem == ""


@pytest.mark.skipif(not hasattr(cv2, "CAP_PROP_PTS"), reason="OpenCV tells the time of a frame from 4.12 on")
@pytest.mark.parametrize(("suffix", "keeps"), [(".mkv", 0.5), (".mkv", 1.0), (".wmv", 1.0)])
@pytest.mark.parametrize("start", [0, 600])
def test_a_piece_of_a_recording_begins_where_the_one_before_ended(
    tmp_path: Path, keeps: float, start: int, suffix: str
) -> None:
    """As `ffmpeg -f segment` cuts Matroska files: what such a file says of its length counts from the first piece."""
    av = pytest.importorskip("av")
    path = tmp_path / f"piece{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10, width=64, height=48, pix_fmt="yuvj420p")
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * index, np.uint8))
            frame.pts, frame.time_base = start * 10 + index, Fraction(1, 10)
            container.mux(stream.encode(frame))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keeps)])
    with open_source(str(path), SourceOptions()) as source:
        assert source.num_frames == 30
        assert [frame.media_time_s for frame in source][:2] == [0.0, pytest.approx(0.1)]
        assert source.problem.startswith(f"{path} declares 30 frames, but only ") == (keeps < 1)


@pytest.mark.parametrize("keeps", [0.5, 1.0])
@pytest.mark.parametrize("realtime", [False, True])
def test_a_video_that_is_played_again_and_again_says_so_too(tmp_path: Path, keeps: float, realtime: bool) -> None:
    path = cut_video(tmp_path / "clip.mp4", keeps)
    with open_source(str(path), SourceOptions(realtime=realtime, loop=True)) as source:
        assert source.status.declared_frames is None
        while source.status.captured < 21:
            next(source)
        assert source.problem.startswith(f"{path} declares 20 frames, but only ") == (keeps < 1)


def test_a_frame_that_is_missing_because_the_rest_is_is_refused_as_such(tmp_path: Path) -> None:
    path = cut_video(tmp_path / "half.mp4", 0.5)
    for asked, what in (({"frames": [17]}, "17"), ({"seconds": [0.17]}, r"at 0\.17 s")):
        with pytest.raises(
            InputError, match=rf"^There is no frame {what}: .*half\.mp4 declares 20 frames, but only \d+ "
        ):
            read_supports([path], **asked)


@pytest.mark.parametrize("keeps", [0.5, 1.0])
@pytest.mark.parametrize("realtime", [False, True])
def test_a_run_ends_with_1_and_a_scene_tells_it(tmp_path: Path, keeps: float, realtime: bool) -> None:
    path, said, code = cut_video(tmp_path / "clip.mp4", keeps), list[str](), int(keeps < 1)
    with FewShotModel.load(threads=1) as model:
        model.save_bank(tmp_path / "bank.safetensors")
    options = RunOptions(SourceOptions(realtime=realtime), bank=tmp_path / "bank.safetensors")
    assert run_source(str(path), options=options, say=said.append).exit_code == code
    assert [text.partition(" but ")[0] for text in said if " but " in text] == [f"{path} declares 20 frames,"] * code
    assert bool(sample_frames(str(path), 4).problem) == bool(code)
