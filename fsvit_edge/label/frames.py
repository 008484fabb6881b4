"""Frames of a stored video, a few seconds apart, and the names of the pictures that stand for them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.live.sources.base import DEFAULT_FPS, SourceOptions
from fsvit_edge.live.sources.files import open_file
from fsvit_edge.live.uri import SourceAddress, printable
from fsvit_edge.runtime.errors import SourceError

_ROUNDING_S = 1e-3  # the times in a file are whole numbers of its time base


class VideoFrame(NamedTuple):
    """A frame to label."""

    name: str  # the video's own name as a folder, then the number of the frame: clip.mp4/000123.jpg
    time_s: float
    share: float  # of the video that is read, in [0, 1]; 0 if the video does not say how long it is
    image: Image  # (H, W, 3) uint8 RGB


def frame_name(video: str, index: int) -> str:
    """Return the name of the picture that stands for a frame, counted from 0."""
    return f"{video}/{index:06}.jpg"


def frames_of(video: Path, name: str, every_s: float) -> Iterator[VideoFrame]:
    """Yield the first frame of a video, and then the first one at or after each `every_s` seconds; 0: every frame.

    Raises:
        InputError: The frames are too large.
        SourceError: It cannot be opened or has no frame; or, behind the last frame, a part of it is missing.
    """
    with open_file(SourceAddress("path", str(video), printable(str(video))), SourceOptions()) as source:
        due_s = 0.0
        for frame in source:
            time_s = frame.index / (source.fps or DEFAULT_FPS) if frame.media_time_s is None else frame.media_time_s
            if time_s + _ROUNDING_S < due_s:
                continue
            if every_s:
                due_s = (math.floor((time_s + _ROUNDING_S) / every_s) + 1) * every_s
            share = 0.0 if source.num_frames is None else min(frame.index / source.num_frames, 1.0)
            yield VideoFrame(frame_name(name, frame.index), time_s, share, frame.image)
        if source.problem:
            raise SourceError(source.problem)
