"""What the page shows of a run: the newest result, encoded once for all viewers, and a few frozen frames."""

import asyncio
import base64
import binascii
import secrets
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import suppress

import cv2
import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

_MAX_FROZEN = 4
_MAX_MASK_PX = 40_000_000
_MAX_VIEWERS = 8
_SAMPLE_WITHIN_S = 10.0
_POLL_S = 0.02
_LONGEST_SIDE_PX = 1280
_QUALITY = 80

_Rgb = npt.NDArray[np.uint8]


class FrameHub:
    """Passes results from the sink's thread to the server's.

    Each viewer takes the newest picture when it is ready for one, so a slow viewer gets fewer pictures and delays
    nobody. Nothing is encoded while nobody watches.
    """

    def __init__(self) -> None:
        self.newest: tuple[Frame, Prediction] | None = None  # None before the first frame
        self.health: Health | None = None  # None before the first report
        self._frozen: dict[str, _Rgb] = {}
        self._freezing = threading.Lock()
        self._jpeg = b""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._viewers: set[asyncio.Event] = set()
        self._closing = False

    def put(self, frame: Frame, prediction: Prediction) -> None:
        """Show a frame with its prediction."""
        self.newest = (frame, prediction)
        if self._loop is not None and self._viewers:
            self._jpeg = _encode_result(frame, prediction)
            with suppress(RuntimeError):  # the server has stopped
                self._loop.call_soon_threadsafe(self._wake)

    def freeze(self) -> tuple[str, _Rgb]:
        """Keep the newest frame, (H, W, 3) uint8 RGB, under a new id, and drop the oldest of more than four."""
        if self.newest is None:
            raise FsvitEdgeError("There is no frame yet; wait for the camera.")
        frame_id, image = secrets.token_hex(8), self.newest[0].image
        with self._freezing:
            self._frozen[frame_id] = image
            while len(self._frozen) > _MAX_FROZEN:
                del self._frozen[next(iter(self._frozen))]
        return frame_id, image

    def frozen(self, frame_id: str) -> _Rgb:
        """Return a frozen frame, (H, W, 3) uint8 RGB."""
        image = self._frozen.get(frame_id)
        if image is None:
            raise InputError("This frame is no longer available; freeze another one.")
        return image

    def sample(self, count: int, seconds: float) -> list[_Rgb]:
        """Wait for new frames and return them, spread over some seconds; fewer than `count` if they come slowly.

        Returns:
            (H, W, 3) uint8 RGB frames, at least one.

        Raises:
            FsvitEdgeError: No frame came for 10 s, the camera repeats the same picture, or the run has ended.
        """
        frames: list[_Rgb] = []
        seen, started_s = self.newest, time.monotonic()
        while len(frames) < count:
            newest, elapsed_s = self.newest, time.monotonic() - started_s
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

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """Yield JPEGs with the result drawn in: the newest whenever the viewer is ready.

        Raises:
            FsvitEdgeError: There are 8 viewers already; raised at the first step.
        """
        if len(self._viewers) >= _MAX_VIEWERS:
            raise FsvitEdgeError(f"Viewer limit ({_MAX_VIEWERS}) reached; close another page.")
        self._loop = asyncio.get_running_loop()
        fresh = asyncio.Event()
        self._viewers.add(fresh)
        try:
            seen = self._jpeg
            if self.newest is not None:
                yield await asyncio.to_thread(_encode_result, *self.newest)
            while not self._closing:
                await fresh.wait()
                fresh.clear()
                if self._jpeg is not seen:
                    seen = self._jpeg
                    yield seen
        finally:
            self._viewers.discard(fresh)

    def close(self) -> None:
        """End all streams; only from the server's thread."""
        self._closing = True
        self._wake()

    def _wake(self) -> None:
        for fresh in tuple(self._viewers):
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
    """Decode base64 of a grayscale PNG of a known size into an (H, W) bool mask: above 127 is the object."""
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
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is None or mask.shape != size_hw:
        raise InputError("Field mask_png is a damaged PNG.")
    return np.asarray(mask > 127, np.bool_)


def _encode_result(frame: Frame, prediction: Prediction) -> bytes:
    rgb = frame.drawn(prediction)
    longest = max(rgb.shape[:2])
    if longest > _LONGEST_SIDE_PX:
        scale = _LONGEST_SIDE_PX / longest
        rgb = np.asarray(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    return encode_jpeg(rgb)
