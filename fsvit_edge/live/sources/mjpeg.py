"""Reads a stream of JPEGs from an HTTP camera: multipart/x-mixed-replace, in Python's own HTTP client.

FFmpeg's reader takes a part for the end of the stream if its type is "image/jpg", "image/jpeg;size=9" or missing, and
a server could make it open other files. Here, the content of a part decides: what is not a whole JPEG is skipped.
"""

import http.client
import ssl
import string
import urllib.error
import urllib.request
from http.client import HTTPException
from io import BytesIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from fsvit_edge.live.opencv import check_frame_size, quiet_opencv
from fsvit_edge.live.uri import SourceAddress
from fsvit_edge.runtime.errors import SourceError
from fsvit_edge.runtime.pictures import MAX_PICTURE_BYTES

_TIMEOUT_S = 4.5  # for a connection, and for each piece of a stream
_MAX_LINE_BYTES = 65536
_MAX_HEAD_BYTES = 1 << 20  # before the first part
_END_OF_JPEG, _PADDING_BYTES = b"\xff\xd9", 4096
_PARTS_TO_TRY = 3  # at the start: a stream of something else has no JPEG in any part
_REFUSED = (401, 403)


class AccessRefusedError(SourceError):
    """The camera refuses the user name or the password; if it is asked again soon, it may lock the account."""


def error_of_status(name: str, status: int) -> SourceError:
    """What to say of a camera that answers with the status of an error, over HTTP or RTSP."""
    said = f"{name} cannot be opened: it answers {status} {http.client.responses.get(status, '')}".rstrip()
    if status not in _REFUSED:
        return SourceError(f"{said}; check the address and the password.")
    return AccessRefusedError(
        f"{said}; check the address and the password, and start again: until then it is asked only every few minutes, "
        "because cameras lock accounts."
    )


class MjpegStream:
    """An open stream; raises SourceError if it cannot be opened, or sends something else."""

    def __init__(self, address: SourceAddress) -> None:
        self._name = address.name
        try:
            self._response = _opener(address.target).open(_request(address.target), timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            raise error_of_status(self._name, error.code) from error
        except (OSError, ValueError, HTTPException) as error:
            raise SourceError(
                f"{self._name} cannot be opened; check the address and the password, and that the camera is on."
            ) from error
        self._delimiter = self._first_delimiter()
        self._is_at_part = True
        self._part_type = ""
        self._bad_parts: int | None = 0  # at the start; None once one was a JPEG

    def read(self) -> npt.NDArray[np.uint8] | None:
        """Read the next picture, (H, W, 3) uint8 BGR; None at the end of the stream.

        Raises:
            InputError: It has too many pixels.
            SourceError: The first parts of the stream are no JPEGs.
        """
        try:
            while (data := self._part()) is not None:
                if (image := self._decoded(data)) is not None:
                    self._bad_parts = None
                    return image
                if self._bad_parts is not None:
                    self._count_bad_part(self._bad_parts + 1)
        except (OSError, ValueError, HTTPException):
            pass
        return None

    def _count_bad_part(self, count: int) -> None:
        self._bad_parts = count
        if count == _PARTS_TO_TRY:
            self._response.close()
            raise SourceError(
                f"{self._name} sends no JPEGs, but parts of the type {self._part_type!r:.80}; set the camera to MJPEG, "
                "or give the address of such a stream."
            )

    def _first_delimiter(self) -> bytes:
        """The line between two parts, as the stream has it: headers may name another."""
        taken = 0
        try:
            while taken < _MAX_HEAD_BYTES and (line := self._response.readline(_MAX_LINE_BYTES)):
                if line.startswith(b"--"):
                    return bytes(line.rstrip())
                taken += len(line)
                if line.strip() and not self._response.headers.get_content_type().startswith("multipart/"):
                    break
        except (OSError, ValueError, HTTPException):
            pass
        kind = self._response.headers.get_content_type()
        self._response.close()
        raise SourceError(
            f"{self._name} sends no stream of JPEGs (MJPEG), but {kind!r:.80}; give the address of the stream, not of "
            "a web page or of one picture."
        )

    def _part(self) -> bytes | None:
        """The content of the next part; None at the end."""
        while not self._is_at_part:
            line = self._response.readline(_MAX_LINE_BYTES)
            if not line:
                return None
            self._is_at_part = line.startswith(self._delimiter)
        length, self._part_type = None, ""
        while (line := self._response.readline(_MAX_LINE_BYTES)).strip():
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length" and value.strip().isdigit():
                length = int(value)
            elif name.strip().lower() == b"content-type":
                self._part_type = value.strip().decode("latin-1")
        self._is_at_part = False
        if not line:
            return None
        if length is not None:
            if length > MAX_PICTURE_BYTES:
                raise ValueError
            return bytes(self._response.read(length))
        data = bytearray()
        while (line := self._response.readline(_MAX_LINE_BYTES)) and not line.startswith(self._delimiter):
            data += line
            if len(data) > MAX_PICTURE_BYTES:
                raise ValueError
        self._is_at_part = bool(line)
        return bytes(data)

    def _decoded(self, data: bytes) -> npt.NDArray[np.uint8] | None:
        """The picture of a part; None if it is not a whole JPEG."""
        if _END_OF_JPEG not in data[-_PADDING_BYTES:]:
            return None
        try:
            with Image.open(BytesIO(data), formats=("JPEG",)) as image:
                width, height = image.size
        except Image.DecompressionBombError:
            width = height = 1 << 16
        except Exception:  # a damaged header raises anything
            return None
        check_frame_size(self._name, height, width)
        with quiet_opencv():
            try:
                flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
                bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            except cv2.error:
                return None
        return None if bgr is None else np.asarray(bgr, np.uint8)


def _opener(address: str) -> urllib.request.OpenerDirector:
    parts = urlsplit(address)
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        passwords.add_password(None, _without_password(address), user, password)
    cameras_own = ssl.create_default_context()  # cameras sign their certificates themselves
    cameras_own.check_hostname, cameras_own.verify_mode = False, ssl.CERT_NONE
    digest = urllib.request.HTTPDigestAuthHandler(passwords)
    # Python would send a wrong password five times, and a camera may lock the account.
    digest.retried = 5  # type: ignore[attr-defined]  # typeshed lacks it
    opener = urllib.request.OpenerDirector()  # not build_opener, which adds ftp: and file:
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=cameras_own),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPBasicAuthHandler(passwords),
        digest,
    ):
        opener.add_handler(handler)
    return opener


def _request(address: str) -> urllib.request.Request:
    target = quote(_without_password(address), safe=string.punctuation)
    return urllib.request.Request(target, headers={"User-Agent": "fsvit-edge"})  # noqa: S310 - http or https, see uri.py


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
