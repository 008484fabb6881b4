"""What every source of frames offers, and the options it takes."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import SourceStatus
from fsvit_edge.runtime.errors import InputError, SourceError

Flip = Literal["none", "horizontal", "vertical", "both"]
FLIPS: tuple[Flip, ...] = ("none", "horizontal", "vertical", "both")

DEFAULT_FPS = 25.0  # of a source that declares none
MAX_WAIT_S = 20.0  # how long iterating over a live source waits for a frame
_MAX_SIDE_PX = 16384


class EndOfSourceError(Exception):
    """The last frame has been read: the end of a file, not a failure."""


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; None leaves a value to the source.

    Attributes:
        width: Frame width in pixels; cameras only.
        height: Frame height in pixels; cameras only.
        fps: Frames per second of a camera, or of a file or the demo with `realtime`.
        flip: "horizontal" swaps left and right, "vertical" top and bottom, "both" rotates by 180 degrees.
        loop: Whether a file starts again at its end.
        realtime: Whether a file or the demo plays at its own speed like a camera, and drops frames that are not read.

    Raises:
        InputError: A value is out of range.
    """

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    flip: Flip = "none"
    loop: bool = False
    realtime: bool = False

    def __post_init__(self) -> None:
        if self.flip not in FLIPS:
            raise InputError(f"--flip must be one of {', '.join(FLIPS)}, got {self.flip!r}.")
        for name, value in (("width", self.width), ("height", self.height)):
            if value is not None and not 1 <= value <= _MAX_SIDE_PX:
                raise InputError(f"--{name} must be 1 to {_MAX_SIDE_PX} pixels, got {value}.")
        if self.fps is not None and not 0.01 <= self.fps <= 1000:
            raise InputError(f"--fps must be 0.01 to 1000 frames per second, got {self.fps:g}.")


class Source(ABC):
    """An open source: read its frames, once. As a context manager, it closes itself."""

    name: str  # safe to print: without the user name and password of a stream
    is_live: bool  # whether frames arrive at their own pace and are lost if nobody reads them
    fps: float | None  # declared by the source; None if it declares none
    num_frames: int | None  # declared by a video, which can be wrong; None if it declares none
    notes: Sequence[str] = ()  # what to say of it before it is read, in sentences
    has_ended = has_failed = False  # one of several sources: whether the run goes on without it, and because it failed
    woken: threading.Event | None = None  # is set by a live source when there may be something to read

    @abstractmethod
    def read(self, timeout_s: float) -> Frame | None:
        """Read the next frame; from a live source, the newest one that was not read yet, or None after `timeout_s`.

        Raises:
            EndOfSourceError: There are no more frames.
            InputError: A picture, or every picture in a folder, cannot be used.
            SourceError: A video contains no frame. A camera or stream never raises it: it is "lost" until it is back.
        """

    @property
    @abstractmethod
    def status(self) -> SourceStatus:
        """The current state; safe to read from any thread."""

    @property
    def problem(self) -> str:
        """What of it could not be read so far although it went on, in one sentence; empty if nothing."""
        return ""

    @abstractmethod
    def waiting_since_s(self) -> float | None:
        """Since when something has been waiting to be read, monotonic; None if `read` would have to wait for it.

        For a live source, this is the capture of the first frame since the last read, of which only a newer one may be
        left: a source of many frames has then waited as long as one of few.
        """

    @property
    def process_id(self) -> int | None:
        """ID of the process that reads this source; None if there is none."""
        return None

    @property
    def parts(self) -> Mapping[str, "Source"]:
        """What it consists of, by `Frame.camera`: several sources, or only itself."""
        return {"": self}

    @abstractmethod
    def close(self) -> None:
        """Release the file, camera or stream; a second call does nothing."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        """Read the next frame; raises like `read`, and SourceError if a live source has delivered none for 20 s."""
        try:
            frame = self.read(timeout_s=MAX_WAIT_S)
        except EndOfSourceError:
            raise StopIteration from None
        if frame is None:
            raise SourceError(self.status.message or f"{self.name} delivers no frames; check it and start again.")
        return frame
