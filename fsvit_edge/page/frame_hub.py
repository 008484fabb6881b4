"""What the page shows of a run: the newest result, encoded once for all viewers, and a few frozen frames."""

import asyncio
import base64
import binascii
import secrets
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.runtime import masks
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

_MAX_FROZEN = 4
_MAX_RECENT, _RECENT_BYTES = 12, 32_000_000
_MAX_MASK_PX = 40_000_000
_MAX_VIEWERS = 8
_SAMPLE_WITHIN_S = 10.0
_POLL_S = 0.02
_LONGEST_SIDE_PX = 1280
_QUALITY = 80

_Rgb = npt.NDArray[np.uint8]


class _Channel:
    """The newest result of a source, and who watches it."""

    def __init__(self) -> None:
        self.newest: tuple[Frame, Prediction] | None = None
        self.jpeg = b""
        self.viewers: set[asyncio.Event] = set()
        # The latest frames while somebody watches, in memory that is used again. Runs side by side for 9 minutes: kept
        # as they came, frames of 640x360 let one grow by 13.7 MB/h; like this by 3.9 and 4.4, and without them by 1.8
        # and 6.3.
        self._recent: _Rgb = np.empty((0, 0, 0, 3), np.uint8)
        self._count = 0  # of the frames put there
        self._changing = threading.Lock()

    def put(self, frame: Frame, prediction: Prediction) -> None:
        with self._changing:
            self.newest = (frame, prediction)
            if not self.viewers:
                self._count = 0
                return
            image = frame.image
            if self._recent.shape[1:] != image.shape:
                places = min(_MAX_RECENT, max(1, _RECENT_BYTES // max(1, image.nbytes)))
                self._recent, self._count = np.empty((places, *image.shape), np.uint8), 0
            self._recent[self._count % len(self._recent)] = image
            self._count += 1

    def recent(self) -> tuple[_Rgb, ...]:
        """Copies of the latest frames, oldest first; only the newest if nobody watches; none before the first."""
        with self._changing:
            if self._count == 0:
                return () if self.newest is None else (self.newest[0].image,)
            places = range(max(0, self._count - len(self._recent)), self._count)
            return tuple(self._recent[place % len(self._recent)].copy() for place in places)


@dataclass(frozen=True)
class Frozen:
    """A frame that was frozen, or a picture in its place, and how many of the same moment are before and after it."""

    id: str
    image: _Rgb  # (H, W, 3) uint8 RGB
    earlier: int
    later: int


class FrameHub:
    """Passes results from the sink's thread to the server's, of one source or of several by name.

    Each viewer takes the newest picture when it is ready for one, so a slow viewer gets fewer pictures and delays
    nobody. Nothing is encoded while nobody watches.
    """

    def __init__(self) -> None:
        self.health: Health | None = None  # None before the first report
        self._channels: dict[str, _Channel] = {}
        self._frozen: dict[str, Frozen] = {}
        self._moment: tuple[_Rgb, ...] = ()  # the latest frames when one was last frozen
        self._freezing = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False

    def put(self, frame: Frame, prediction: Prediction) -> None:
        """Show a frame with its prediction."""
        channel = self._channels.setdefault(frame.camera, _Channel())
        channel.put(frame, prediction)
        if self._loop is not None and channel.viewers:
            channel.jpeg = _encode_result(frame, prediction)
            with suppress(RuntimeError):  # the server has stopped
                self._loop.call_soon_threadsafe(self._wake, channel)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, if there are several."""
        named = () if self.health is None else tuple(one.name for one in self.health.sources)
        return named if len(named) > 1 else ()

    def shown(self, source: str) -> str:
        """Return the name of the source to show: the one that is asked for, or the first; "" if there is only one.

        Raises:
            InputError: There is no such source.
        """
        if source and source not in self.sources:
            raise InputError(f"There is no source {source!r:.80}; GET /api/state lists them.")
        return source or next(iter(self.sources), next(iter(self._channels), ""))

    def newest(self, source: str = "") -> tuple[Frame, Prediction] | None:
        """Return the newest frame of a source with its prediction; None before the first. Raises like `shown`."""
        return self._channel(source).newest

    def _channel(self, source: str) -> _Channel:
        return self._channels.setdefault(self.shown(source), _Channel())

    def freeze(self, source: str = "") -> Frozen:
        """Keep the newest frame under a new id, and drop the oldest of more than four."""
        moment = self._channel(source).recent()
        if not moment:
            raise FsvitEdgeError("There is no frame yet; wait for the camera.")
        with self._freezing:
            self._moment = moment
            return self._keep(moment[-1], len(moment) - 1, 0)

    def step(self, frame_id: str, by: int) -> Frozen:
        """Keep a frame near a frozen one in the same way: -1 is the one before it, 1 the one after it.

        Raises:
            InputError: There is no such frame, or another moment was frozen since.
        """
        with self._freezing:
            frozen = self._frozen.get(frame_id)
            if frozen is None or not any(one is frozen.image for one in self._moment):
                raise InputError("The frames near this one are no longer available; freeze another one.")
            place, last = frozen.earlier + by, len(self._moment) - 1
            if not 0 <= place <= last:
                raise InputError(f"There are {frozen.earlier} frames before this one, and {frozen.later} after it.")
            return self._keep(self._moment[place], place, last - place)

    def keep(self, image: _Rgb) -> Frozen:
        """Keep a picture that is no frame of the run, (H, W, 3) uint8 RGB, in the same way."""
        with self._freezing:
            return self._keep(image, 0, 0)

    def _keep(self, image: _Rgb, earlier: int, later: int) -> Frozen:
        frozen = Frozen(secrets.token_hex(8), image, earlier, later)
        self._frozen[frozen.id] = frozen
        while len(self._frozen) > _MAX_FROZEN:
            del self._frozen[next(iter(self._frozen))]
        return frozen

    def frozen(self, frame_id: str) -> _Rgb:
        """Return a frozen frame, (H, W, 3) uint8 RGB."""
        frozen = self._frozen.get(frame_id)
        if frozen is None:
            raise InputError("This frame is no longer available; freeze another one.")
        return frozen.image

    def sample(self, count: int, seconds: float, source: str = "") -> list[_Rgb]:
        """Wait for new frames and return them, spread over some seconds; fewer than `count` if they come slowly.

        Returns:
            (H, W, 3) uint8 RGB frames, at least one.

        Raises:
            FsvitEdgeError: No frame came for 10 s, the camera repeats the same picture, or the run has ended.
        """
        frames: list[_Rgb] = []
        channel = self._channel(source)
        seen, started_s = channel.newest, time.monotonic()
        while len(frames) < count:
            newest, elapsed_s = channel.newest, time.monotonic() - started_s
            if self._closing:
                raise FsvitEdgeError("The run has ended; start it again.")
            if newest is not None and newest is not seen and elapsed_s >= len(frames) * seconds / count:
                if newest[0].is_frozen:
                    raise FsvitEdgeError("The camera repeats the same picture; restart it, then try again.")
                frames.append(newest[0].image)
                seen = newest
            elif elapsed_s >= _SAMPLE_WITHIN_S:
                break
            else:
                time.sleep(_POLL_S)
        if not frames:
            raise FsvitEdgeError(f"No frame came for {_SAMPLE_WITHIN_S:g} s; try again when the camera is live.")
        return frames

    async def watch(self, source: str = "") -> AsyncGenerator[bytes, None]:
        """Yield nothing, once the viewer has a place, and then JPEGs with the result drawn in, the newest each time.

        Raises:
            FsvitEdgeError: There are 8 viewers already; raised at the first step.
        """
        channel = self._channel(source)
        if sum(len(one.viewers) for one in tuple(self._channels.values())) >= _MAX_VIEWERS:
            raise FsvitEdgeError(f"Viewer limit ({_MAX_VIEWERS}) reached; close another page.")
        self._loop = asyncio.get_running_loop()
        fresh = asyncio.Event()
        channel.viewers.add(fresh)
        try:
            yield b""
            seen = channel.jpeg
            if channel.newest is not None:
                yield await asyncio.to_thread(_encode_result, *channel.newest)
            while not self._closing:
                await fresh.wait()
                fresh.clear()
                if channel.jpeg is not seen:
                    seen = channel.jpeg
                    yield seen
        finally:
            channel.viewers.discard(fresh)

    def close(self) -> None:
        """End all streams; only from the server's thread."""
        self._closing = True
        for channel in tuple(self._channels.values()):
            self._wake(channel)

    def _wake(self, channel: _Channel) -> None:
        for fresh in tuple(channel.viewers):
            fresh.set()


def encode_jpeg(rgb: _Rgb) -> bytes:
    """Encode (H, W, 3) uint8 RGB as JPEG, at its full size."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return data.tobytes()


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) uint8 RGB or (H, W) uint8 as PNG."""
    _, data = cv2.imencode(".png", image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def decode_mask(png_base64: str, size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Decode base64 of a PNG of a known size into an (H, W) bool mask, as `runtime.masks` reads it."""
    try:
        data = base64.b64decode(png_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("Field mask_png is not valid base64.") from error
    # A PNG has its size at a fixed place, so a decompression bomb is refused before it is decoded.
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:8] != b"\x89PNG\r\n\x1a\n" or (height, width) != size_hw or height * width > _MAX_MASK_PX:
        raise InputError(
            f"Field mask_png must be a PNG of the frame's {size_hw[1]} x {size_hw[0]} pixels, got {width} x {height}."
        )
    return masks.decode_mask(data, "Field mask_png", size_hw)


def _encode_result(frame: Frame, prediction: Prediction) -> bytes:
    rgb = frame.drawn(prediction)
    longest = max(rgb.shape[:2])
    if longest > _LONGEST_SIDE_PX:
        scale = _LONGEST_SIDE_PX / longest
        rgb = np.asarray(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    return encode_jpeg(rgb)
