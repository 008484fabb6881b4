"""What the run shows its page: the newest result, encoded once for all who watch, and a few frozen frames."""

import asyncio
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.overlay import draw
from fsvit_edge.runtime.prediction import Prediction

_MOST_FROZEN = 4
_MOST_WATCHERS = 8
_LONGEST_SIDE_PX = 1280
_QUALITY = 80

_Rgb = npt.NDArray[np.uint8]


class TooManyWatchersError(FsvitEdgeError):
    """Nobody more can watch."""


class FrameHub:
    """Filled by the sink's thread, read by the server's.

    Every watcher takes the newest picture when it is ready for one, so a slow one gets fewer and holds up nobody.
    Nothing is encoded while nobody watches.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: tuple[Frame, Prediction] | None = None
        self._health: Health | None = None
        self._frozen: OrderedDict[str, _Rgb] = OrderedDict()
        self._jpeg = b""
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchers: set[asyncio.Event] = set()
        self._closing = False

    @property
    def newest(self) -> tuple[Frame, Prediction] | None:
        """The newest frame with its prediction; None before the first."""
        with self._lock:
            return self._newest

    @property
    def health(self) -> Health | None:
        """How the run fares, as last told; None before that."""
        with self._lock:
            return self._health

    def put(self, frame: Frame, prediction: Prediction) -> None:
        """Show a result."""
        with self._lock:
            self._newest = (frame, prediction)
            loop, is_watched = self._loop, bool(self._watchers)
        if loop is not None and is_watched:
            jpeg = _jpeg(draw(frame.image, prediction))
            with self._lock:
                self._jpeg, self._number = jpeg, self._number + 1
            try:
                loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the server has ended
                return

    def report(self, health: Health) -> None:
        """Show how the run fares."""
        with self._lock:
            self._health = health

    def freeze(self) -> tuple[str, _Rgb]:
        """Keep the newest frame, of which an older frozen one may go; returns its name and the (H, W, 3) uint8 RGB.

        Raises:
            FsvitEdgeError: There is none yet.
        """
        with self._lock:
            if self._newest is None:
                raise FsvitEdgeError("No frame has come yet; wait for the camera.")
            name, image = secrets.token_hex(8), self._newest[0].image
            self._frozen[name] = image
            while len(self._frozen) > _MOST_FROZEN:
                self._frozen.popitem(last=False)
            return name, image

    def frozen(self, name: str) -> _Rgb:
        """Return a frozen frame, (H, W, 3) uint8 RGB.

        Raises:
            InputError: It is gone, or never was.
        """
        with self._lock:
            image = self._frozen.get(name)
        if image is None:
            raise InputError("This frame is not kept any more; freeze another one.")
        return image

    async def watch(self) -> AsyncIterator[bytes]:
        """Yield JPEGs with the result drawn in, the newest whenever the watcher is ready.

        Raises:
            TooManyWatchersError: At the first step, where 8 watch already.
        """
        if len(self._watchers) >= _MOST_WATCHERS:
            raise TooManyWatchersError(f"{_MOST_WATCHERS} watch already; close another page.")
        fresh = asyncio.Event()
        with self._lock:
            self._loop = asyncio.get_running_loop()
            self._watchers.add(fresh)
        seen = 0
        try:
            newest = self.newest
            if newest is not None:
                yield _jpeg(draw(newest[0].image, newest[1]))
            while not self._closing:
                await fresh.wait()
                fresh.clear()
                with self._lock:
                    number, jpeg = self._number, self._jpeg
                if number != seen and jpeg:
                    seen = number
                    yield jpeg
        finally:
            with self._lock:
                self._watchers.discard(fresh)

    def close(self) -> None:
        """Send the watchers home. The server's thread only."""
        self._closing = True
        self._wake()

    def _wake(self) -> None:
        for fresh in tuple(self._watchers):
            fresh.set()


def encode_jpeg(rgb: _Rgb) -> bytes:
    """Encode (H, W, 3) uint8 RGB at its full size."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return data.tobytes()


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) uint8 RGB or (H, W) uint8."""
    _, data = cv2.imencode(".png", image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def _jpeg(rgb: _Rgb) -> bytes:
    longest = max(rgb.shape[:2])
    if longest > _LONGEST_SIDE_PX:
        scale = _LONGEST_SIDE_PX / longest
        rgb = np.asarray(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    return encode_jpeg(rgb)
