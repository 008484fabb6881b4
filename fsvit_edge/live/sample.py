"""A few frames of a source, spread over it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.live.sources.base import MAX_WAIT_S, EndOfSourceError, Source, SourceOptions
from fsvit_edge.live.sources.demo import demo_length
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.runtime.errors import SourceError

_WAIT_S = 0.1


@dataclass(frozen=True)
class Sample:
    """Frames of a source, with what it left unread.

    Attributes:
        frames: (H, W, 3) uint8 RGB, at least one.
        notes: What the source has beside what was read, see `Source.notes`.
        problem: What could not be read, see `Source.problem`.
    """

    frames: list[Image]
    notes: Sequence[str]
    problem: str


def sample_frames(uri: str, count: int, seconds: float = 4.0, options: SourceOptions = SourceOptions()) -> Sample:  # noqa: B008 - frozen
    """Read at most `count` frames, evenly spread over a file, or over some seconds of a live source.

    Args:
        uri: As `open_source` takes it.
        count: Number of frames, at least 1.
        seconds: How long to watch a live source.
        options: How to read it.

    Raises:
        InputError: The source is unsupported, or one of its pictures cannot be used.
        SourceError: The source cannot be opened or read, or a live one delivers nothing for 20 s.
        EnvironmentLacksError: The source needs a package that is missing.
    """
    with open_source(uri, options) as source:
        if source.is_live:
            frames = _over_time(source, count, seconds)
        else:
            frames = _over_file(source, count, demo_length() if uri == "demo" else None)
        return Sample(frames, source.notes, source.problem)


def _over_file(source: Source, count: int, length: int | None) -> list[Image]:
    frames: list[Image] = []
    index, stride = 0, 1
    while length is None or index < length:
        try:
            frame = source.read(_WAIT_S)
        except EndOfSourceError:
            break
        if frame is not None and index % stride == 0:
            frames.append(frame.image)
        if len(frames) == 2 * count:
            frames, stride = frames[::2], 2 * stride
        index += 1
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return [frames[place] for place in chosen]


def _over_time(source: Source, count: int, seconds: float) -> list[Image]:
    frames: list[Image] = []
    last_s = due_s = time.monotonic()
    while len(frames) < count:
        try:
            frame, now_s = source.read(_WAIT_S), time.monotonic()
        except EndOfSourceError:
            break
        if frame is not None and now_s >= due_s:
            frames.append(frame.image)
            due_s = now_s + seconds / count
        if frame is not None:
            last_s = now_s
        elif now_s - last_s > MAX_WAIT_S:
            reason = source.status.message or "Is it connected?"
            raise SourceError(f"{source.name} delivered no frame for {MAX_WAIT_S:.0f} s. {reason}")
    return frames
