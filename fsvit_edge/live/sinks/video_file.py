"""A video file, H.264 in MP4, which plays up to its last second even if its writer is killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.runtime.disk_steps import flush_open
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError, package_error

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

_TICK = Fraction(1, 90_000)  # seconds; MPEG's own, in which the times of any frame rate are right within 6 us
_FRAGMENT_S = 1.0
# Fragments, to which an index of the whole is added at the end: a player then knows the duration, and can seek.
_CONTAINER = {"movflags": "+hybrid_fragmented+empty_moov+frag_keyframe+default_base_moof"}
# The fastest preset, with the deblocking filter that it lacks (0.4 dB for no measurable time), at a rate factor that
# beats OpenCV's MPEG-4 in time, quality and size: 4.6 ms, 39.3 dB and 8.3 KiB per frame beside 4.9 ms, 38.0 dB and
# 10.3 KiB (benchmarks/recording.py). One quantizer takes 0.2 to 1.1 ms less, but twice the disk where there is noise.
# "zerolatency" keeps no frames back.
_ENCODER = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "no-deblock=0", "crf": "26", "forced-idr": "1"}
_ANY, _INTRA = 0, 1  # FFmpeg's AV_PICTURE_TYPE_NONE and _I, AVCOL_RANGE_MPEG, AVCOL_SPC_SMPTE170M and AVCOL_PRI_BT709,
_LIMITED, _BT601, _BT709 = 1, 6, 1  # AVCOL_TRC_BT709

_Rgb = npt.NDArray[np.uint8]


def need_encoder() -> None:
    """Raise an EnvironmentLacksError if videos cannot be encoded here."""
    try:
        import av  # here and not above: 70 ms and 18 MB, only for those who record
    except (ImportError, OSError) as error:
        raise package_error("A video needs av", "av", "pip install av", error) from error
    if "libx264" not in av.codecs_available:
        raise EnvironmentLacksError(
            "This av was built without libx264, which encodes videos; install PyPI's: pip install --force-reinstall av."
        )


class VideoFile:
    """Frames of one size, each shown from its own time on; a last row or column of an odd size is left out.

    About once per second, the frames since the last time are added to the file as one fragment.
    """

    def __init__(self, path: Path, name: Path, fps: float) -> None:
        """Replace the file at `path`; messages call it `name`. An FsvitEdgeError if that is not allowed."""
        self.name = name
        self._fps = fps
        try:
            self._disk = _Disk(path)
        except OSError as error:
            raise FsvitEdgeError(f"{name} cannot be written: {error.strerror}.") from error
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._frame: VideoFrame | None = None  # used again for each picture: new ones take 0.4 ms longer
        self._size_hw: tuple[int, int] | None = None
        self._frames = 0
        self._time_s = 0.0
        self._tick = -1
        self._fragment_tick = 0
        self._safe = (0, 0)  # bytes and frames of the complete fragments

    @property
    def is_empty(self) -> bool:
        """Whether there is no frame in it that can be read."""
        return self._safe[1] == 0

    def accepts(self, picture: _Rgb) -> bool:
        """Whether a picture has the size of those before."""
        return self._size_hw in (None, picture.shape[:2])

    def write(self, picture: _Rgb, after_s: float) -> None:
        """Add an (H, W, 3) uint8 RGB picture, shown so many seconds after the one before."""
        height, width = picture.shape[:2]
        if self._size_hw is None:
            self._open(height, width)
        elif not self.accepts(picture):
            raise InputError(
                f"A frame has {width}x{height} pixels, but the video {self.name} started with "
                f"{self._size_hw[1]}x{self._size_hw[0]}; write pictures of different sizes to a folder instead."
            )
        if self._frames:
            self._time_s += max(0.0, after_s)
        self._tick = max(self._tick + 1, round(self._time_s / _TICK))
        assert self._stream is not None
        assert self._frame is not None
        _fill(self._frame, picture)
        self._frame.pts = self._tick
        is_first = self._tick - self._fragment_tick >= _FRAGMENT_S / _TICK
        self._frame.pict_type = _INTRA if is_first else _ANY
        if is_first:
            self._fragment_tick = self._tick
        for packet in self._stream.encode(self._frame):
            self._add(packet)
        self._frames += 1

    def finish(self) -> None:
        """Complete and close the file."""
        container, self._container = self._container, None
        try:
            if container is not None:
                with self._disk_errors():
                    container.close()
                    self._disk.flush()
                self._safe = (self._disk.size, self._frames)
        finally:
            self._disk.end()

    def _open(self, height: int, width: int) -> None:
        import av

        if min(height, width) < 2:
            raise self._unable(height, width)
        try:
            self._container = av.open(self._disk, "w", format="mp4", options=_CONTAINER)
            rate = max(Fraction(self._fps).limit_denominator(1001), Fraction(1, 1001))
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width & -2, height & -2, "yuv420p"
            self._stream.options = {**_ENCODER}
            context = self._stream.codec_context
            self._stream.time_base = context.time_base = _TICK
            context.thread_count = 1  # the model has the others
            context.color_range, context.colorspace = _LIMITED, _BT601
            context.color_primaries = context.color_trc = _BT709
            context.open()
        except (OSError, ValueError, av.FFmpegError) as error:
            self._container = None
            raise self._unable(height, width) from error
        self._frame = av.VideoFrame(width & -2, height & -2, "yuv420p")
        self._frame.time_base = _TICK
        self._size_hw = (height, width)

    def _unable(self, height: int, width: int) -> FsvitEdgeError:
        return FsvitEdgeError(
            f"The video {self.name} cannot be started with frames of {width}x{height} pixels at {self._fps:g} "
            "frames per second; write to a folder instead."
        )

    def _add(self, packet: Packet[VideoStream]) -> None:
        packet.duration = round(1 / self._fps / _TICK)  # if it is the last; else until the next
        assert self._container is not None
        with self._disk_errors():
            self._container.mux(packet)
        if packet.is_keyframe:  # the fragment before it has just been written
            self._safe = (self._disk.size, self._frames)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """If the disk fails, leave the file as it was after its last complete fragment, and raise."""
        import av

        try:
            yield
        except (OSError, av.FFmpegError) as error:
            failure = self._disk.failure or error
        else:
            if self._disk.failure is None:
                return
            failure = self._disk.failure
        size, frames = self._safe
        self._disk.end(size)
        if self._container is not None:
            with suppress(OSError, av.FFmpegError):
                self._container.close()  # writes to nowhere
            self._container = None
        raise FsvitEdgeError(
            f"{self.name} ends after {frames} frames: {failure.strerror}; free some space."
        ) from failure


def _fill(frame: VideoFrame, picture: _Rgb) -> None:
    """Put an RGB picture into a frame, without a last row or column that it has no place for."""
    # FFmpeg's own conversion took 3 ms longer for 1280x720.
    yuv = np.asarray(cv2.cvtColor(picture[: frame.height, : frame.width], cv2.COLOR_RGB2YUV_I420), np.uint8).ravel()
    for plane in frame.planes:
        own, yuv = yuv[: plane.height * plane.width], yuv[plane.height * plane.width :]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)  # which may be longer
        rows[:, : plane.width] = own.reshape(plane.height, plane.width)


class _Disk:
    """What FFmpeg writes to: a file until it is ended, then nowhere.

    An OSError is kept, because FFmpeg continues after some, and av replaces it by one of its own.
    """

    def __init__(self, path: Path) -> None:
        self.failure: OSError | None = None
        self._file = path.open("wb", buffering=0)

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest and not self._file.closed:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.failure = self.failure or error
            return -errno.EIO
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0 if self._file.closed else self._file.seek(offset, whence)

    def tell(self) -> int:
        return 0 if self._file.closed else self._file.tell()

    def flush(self) -> None:
        flush_open(self._file.fileno())

    def end(self, size: int | None = None) -> None:
        """Close it, cut to a size in bytes."""
        if size is not None:
            self._file.truncate(size)
        self._file.close()
