"""A few frames of a source, spread over it."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from fsvit_edge.live.sample import sample_frames
from fsvit_edge.live.sources.base import SourceOptions
from fsvit_edge.runtime.errors import SourceError


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """41 frames that grow brighter by 5."""
    path = tmp_path / "video.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 20.0, (64, 48))
    for level in range(41):
        writer.write(np.full((48, 64, 3), 5 * level, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("count", [1, 2, 5, 16, 41, 100])
def test_frames_of_a_file_are_spread_over_all_of_it(video: Path, count: int) -> None:
    frames = sample_frames(str(video), count).frames

    places = np.array([frame.mean() / 5 for frame in frames])
    assert len(frames) == min(count, 41)
    assert places[0] == pytest.approx(0, abs=1)
    assert np.diff([*places, 41]).max() <= 2.2 * 41 / min(count, 41) + 1


def test_frames_of_a_live_source_are_spread_over_time(video: Path) -> None:
    frames = sample_frames(str(video), 4, seconds=1.2, options=SourceOptions(realtime=True, loop=True)).frames

    places = np.array([frame.mean() / 5 for frame in frames])
    assert len(frames) == 4
    assert (np.diff(places) % 41 > 1.5).all()  # 6 on an idle machine, 1 if they were not spread


def test_a_source_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing"):
        sample_frames(str(tmp_path / "nothing.mp4"), 3)
