"""What every source of frames offers."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.uri import printable
from fsvit_edge.runtime.errors import SourceError

Images = Generator[tuple[str, npt.NDArray[np.uint8]], None, None]
"""What each frame was read from, and the frame."""
SourceState = Literal["connecting", "live", "lost"]


_LONGEST_WAIT_S = 20.0


class EndOfSourceError(Exception):
    """The last frame has been read: the end of a file, not a failure."""


@dataclass(frozen=True)
class SourceStatus:
    """How a source fares.

    Attributes:
        state: "connecting" until the first frame, "live" while frames come, "lost" while a live source delivers none
            and is being started again. A file is always "live".
        since_s: Monotonic seconds at which this state began.
        captured: Frames that the source has delivered; those dropped are among them.
        dropped: Frames that a newer one replaced before they were read.
        reconnects: How often a live source was started again.
        is_frozen: Whether the newest frames hold the same pixels for so long that the camera must hang.
        message: What is wrong, in one sentence fit to print; empty while nothing is.
    """

    state: SourceState
    since_s: float
    captured: int = 0
    dropped: int = 0
    reconnects: int = 0
    is_frozen: bool = False
    message: str = ""


class Source(ABC):
    """An open source: read its frames, once; use it as a context manager so that it is closed.

    Attributes:
        name: The source, fit to print (a stream's user name and password are left out).
        is_live: Whether frames come at their own pace and are lost when nobody reads.
        fps: Frames per second that the source declares; None where it declares none.
        num_frames: Frames that a video declares, which can be wrong; None where it declares none.
    """

    name: str
    is_live: bool
    fps: float | None
    num_frames: int | None

    @abstractmethod
    def read(self, timeout_s: float) -> Frame | None:
        """Read the next frame; of a live source the newest one that was not read yet.

        Args:
            timeout_s: Seconds after which to give up waiting for a live source; a file takes the time it needs.

        Returns:
            The frame; None where none came within the time.

        Raises:
            EndOfSourceError: There are no more frames.
            InputError: A picture of the folder cannot be used.
            SourceError: A video holds no frame. A camera or stream never raises it: it is "lost" until it is back.
        """

    @property
    @abstractmethod
    def status(self) -> SourceStatus:
        """How it fares; may be asked by any thread."""

    @property
    def process_id(self) -> int | None:
        """Of the process that reads for this source; None where none does."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free the file, camera or stream; a second call does nothing."""

    def __enter__(self) -> "Source":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        """Return itself."""
        return self

    def __next__(self) -> Frame:
        """Read the next frame; see `read`.

        Raises:
            SourceError: Also where a live source has delivered none for 20 s.
        """
        try:
            frame = self.read(timeout_s=_LONGEST_WAIT_S)
        except EndOfSourceError:
            raise StopIteration from None
        if frame is None:
            raise SourceError(self.status.message or f"{self.name} delivers no frames; check it and start again.")
        return frame


class FileSource(Source):
    """A source that waits for its reader: pictures, a video, the demo.

    Args:
        images: Gives for each frame what it was read from and the (H, W, 3) uint8 RGB picture.
        name: See `Source`.
        fps: See `Source`.
        num_frames: See `Source`.
        close: Frees what `images` reads from.
    """

    is_live = False

    def __init__(
        self,
        images: Images,
        *,
        name: str,
        fps: float | None = None,
        num_frames: int | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.name = printable(name)
        self.fps = fps
        self.num_frames = num_frames
        self._images = images
        self._close = close
        self._opened_s = time.monotonic()
        self._count = 0

    def read(self, timeout_s: float) -> Frame | None:  # noqa: ARG002 - a file takes the time it needs
        """See `Source.read`."""
        started = time.perf_counter()
        try:
            source, image = next(self._images)
        except StopIteration:
            raise EndOfSourceError from None
        decode_ms = (time.perf_counter() - started) * 1e3
        index, self._count = self._count, self._count + 1
        return Frame(image, index, printable(source), time.time(), time.monotonic(), decode_ms)

    @property
    def status(self) -> SourceStatus:
        """See `Source.status`."""
        return SourceStatus("live", self._opened_s, captured=self._count)

    def close(self) -> None:
        """See `Source.close`."""
        self._images.close()
        if self._close is not None:
            self._close()
