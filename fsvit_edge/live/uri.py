"""Parses a source string into a kind, a target to open, and a name that is safe to print.

FFmpeg would also open concat: and subfile: names, and GStreamer runs any text in a pipeline. So a source is one of a
few kinds, a file reaches FFmpeg only by its absolute path, and no text from the user enters a pipeline.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from fsvit_edge.runtime.errors import InputError

SourceKind = Literal["demo", "path", "camera", "csi", "rtsp", "http"]

_EXPECTED = (
    "a picture, a folder of pictures, a video file, a camera (0, /dev/video0 or csi://0), rtsp://..., http://... "
    "(MJPEG), or demo"
)
_STREAMS: dict[str, SourceKind] = {"rtsp": "rtsp", "rtsps": "rtsp", "http": "http", "https": "http"}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.,-]*:")
_SCHEME_OF_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_ADDRESS = re.compile(
    r"://|:.*@|^\W*(?:rtsp|rtmp|rtp|srt|udp|tcp|http|mqtt|amqp|ws|ftp|csi)s?[^\w.]*[:/\\][^\w.]*[/\\]", re.I | re.S
)
_SECRET = re.compile(r"(?:pass|pw|token|secret|auth|key|user)\w*[=:]|^\W*[0-9]+(?:\.[0-9]+){3}\b", re.I)


@dataclass(frozen=True)
class SourceAddress:
    """A parsed source string: the target may contain a password and is never printed; the name is safe to print."""

    kind: SourceKind
    target: str = field(repr=False)  # a path, a device, the number of a sensor, or an address
    name: str

    @property
    def is_stored(self) -> bool:
        """Whether it is a picture, folder, video or the demo, as opposed to a camera or stream."""
        return self.kind in ("path", "demo")


def parse_source(uri: str) -> SourceAddress:
    """Parse a source string, as `open_source` takes it, without opening anything; an InputError shows no password."""
    if not uri or _CONTROL_CHARACTER.search(uri):
        shown = "***" if may_have_password(uri) else repr(uri)
        raise InputError(f"Unsupported source {shown}; expected {_EXPECTED}.")
    if uri == "demo":
        return SourceAddress("demo", uri, uri)
    scheme, separator, rest = uri.partition("://")
    kind = _STREAMS.get(scheme.lower()) if separator else None
    if kind is not None:
        return _parse_stream(kind, scheme.lower(), rest)
    if uri.lower().startswith("csi:"):
        if not re.fullmatch("csi://[0-9]{1,2}", uri, re.IGNORECASE):
            # Not repeated in the message: an address with a password may have the wrong scheme.
            raise InputError("A CSI camera is csi:// and the number of its sensor, as in csi://0.")
        return SourceAddress("csi", str(int(uri[6:])), uri.lower())
    if re.fullmatch("[0-9]{1,3}", uri):
        return SourceAddress("camera", f"/dev/video{int(uri)}", uri)
    device = os.path.realpath(uri)
    if re.fullmatch("/dev/video[0-9]{1,3}", device):
        # The link is opened, not the device it points to now: a camera that is plugged in again may get another number.
        return SourceAddress("camera", uri, printable(uri))
    if _SCHEME.match(uri) and not os.path.exists(uri):
        raise InputError(f"Unsupported source {printable(uri.partition(':')[0])}:...; expected {_EXPECTED}.")
    if may_have_password(uri) and not os.path.exists(uri):
        raise InputError(
            "The source is no file, and it looks like an address, so it is not repeated here; check it for blanks, "
            f"quotes and its first letters; expected {_EXPECTED}."
        )
    return SourceAddress("path", uri, printable(uri))


def is_host(name: str | None) -> bool:
    """Whether a name can be looked up; Python raises a UnicodeError for one that cannot."""
    try:
        return bool((name or "").encode("idna"))
    except UnicodeError:
        return False


def is_address(text: str) -> bool:
    """Whether a text begins as an address does, such as s3://bucket."""
    return _SCHEME_OF_ADDRESS.match(text) is not None


def looks_like_address(text: str) -> bool:
    """Whether a text is an address, or was meant to be one, so that it may contain a password."""
    return _ADDRESS.search(text) is not None


def may_have_password(text: str) -> bool:
    """Whether a text that is not the name of a file should not be printed."""
    return looks_like_address(text) or _SECRET.search(text) is not None


def printable(name: str) -> str:
    """Escape bytes in a name that are not text, so that they do not break a JSON line later."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def printable_address(address: str) -> str:
    """Remove everything from the address of a stream that may be a password."""
    scheme, _, rest = address.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    path = re.split("[?#]", rest[len(authority) :], maxsplit=1)[0]
    # A password may contain / ? # or @, and some cameras take it as a part of the path: if in doubt, show less.
    if not re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return "***"
    if "@" in rest[len(authority) :] or not re.fullmatch(r"([\w.~-]*|\[[0-9A-Fa-f:.]*\])(:[0-9]*)?", host):
        return f"{scheme}://***"
    return f"{scheme}://{host}{path if re.fullmatch('[/a-zA-Z0-9_.-]*', path) else '/***'}"


def _parse_stream(kind: SourceKind, scheme: str, rest: str) -> SourceAddress:
    target = f"{scheme}://{rest}"
    name = printable_address(target)
    try:
        parts = urlsplit(target)
        is_valid = (
            is_host(parts.hostname)
            and not re.search(r"[ \ud800-\udfff]", target)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        is_valid = False
    if not is_valid:
        raise InputError(f"Invalid stream address {name}; expected {scheme}://HOST/PATH.")
    return SourceAddress(kind, target, name)
