"""A SOURCE as its user types it becomes data: a kind, a target for its opener, and a name that is fit to print.

FFmpeg would also open concat: and subfile: names, and GStreamer runs whatever stands in a pipeline's text; so a source
is one of a few kinds, a file reaches FFmpeg by its absolute path only, and no text of the user's enters a pipeline.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from fsvit_edge.runtime.errors import InputError

SourceKind = Literal["demo", "path", "camera", "csi", "rtsp", "http"]

KINDS = (
    "a picture, a folder of pictures, a video file, a camera (0, /dev/video0 or csi://0), rtsp://..., http://... "
    "(MJPEG), or demo"
)
_STREAMS: dict[str, SourceKind] = {"rtsp": "rtsp", "rtsps": "rtsp", "http": "http", "https": "http"}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.,-]*:")


@dataclass(frozen=True)
class SourceAddress:
    """What a SOURCE means.

    Attributes:
        kind: What opens it.
        target: What its opener is given: a path, a device, a sensor's number, or an address with its password, which
            must never be printed.
        name: The same, fit to print.
    """

    kind: SourceKind
    target: str = field(repr=False)
    name: str


def parse_source(uri: str) -> SourceAddress:
    """Say what a SOURCE means, without opening anything.

    Args:
        uri: See `open_source`.

    Raises:
        InputError: It cannot be a source; the message holds no password.
    """
    if not uri or re.search(r"[\x00-\x1f\x7f]", uri):
        shown = repr(uri) if "://" not in uri else printable_address(re.sub(r"[\x00-\x1f\x7f]", "?", uri))
        raise InputError(f"{shown} is no source; give {KINDS}.")
    if uri == "demo":
        return SourceAddress("demo", uri, uri)
    scheme, separator, rest = uri.partition("://")
    kind = _STREAMS.get(scheme.lower()) if separator else None
    if kind is not None:
        return _stream(kind, scheme.lower(), rest)
    if uri.lower().startswith("csi:"):
        if not re.fullmatch("csi://[0-9]{1,2}", uri, re.IGNORECASE):
            # What stands there is not repeated: an address with a password may have got the wrong scheme.
            raise InputError("This is no CSI camera; give csi:// and the sensor's number, as in csi://0.")
        return SourceAddress("csi", str(int(uri[6:])), uri.lower())
    if re.fullmatch("[0-9]{1,3}", uri):
        return SourceAddress("camera", f"/dev/video{int(uri)}", uri)
    device = os.path.realpath(uri)
    if re.fullmatch("/dev/video[0-9]{1,3}", device):
        # The name is opened, not what it points to now: a camera plugged in again may get another number.
        return SourceAddress("camera", uri, printable(uri))
    if _SCHEME.match(uri) and not os.path.exists(uri):
        shown = printable(uri.partition(":")[0])
        raise InputError(f"{shown}: is not a kind of source; give {KINDS}.")
    return SourceAddress("path", uri, printable(uri))


def printable(name: str) -> str:
    """Make text of a name that holds bytes which are no text: they must not stop a JSON line later."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def printable_address(address: str) -> str:
    """Leave out of a stream's address whatever may be a password."""
    scheme, _, rest = address.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path = re.split("[?#]", rest[len(authority) :], maxsplit=1)[0]
    # A password may itself hold / ? # or @, and some cameras take it as a part of the path: where in doubt, show less.
    if "@" in rest[len(authority) :]:
        return f"{scheme}://***"
    return printable(f"{scheme}://{authority.rpartition('@')[2]}{'/***' if '=' in path else path}")


def _stream(kind: SourceKind, scheme: str, rest: str) -> SourceAddress:
    target = f"{scheme}://{rest}"
    name = printable_address(target)
    try:
        parts = urlsplit(target)
        fits = bool(parts.hostname) and " " not in target and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits:
        raise InputError(f"{name} is no stream address; give {scheme}://HOST/PATH.")
    return SourceAddress(kind, target, name)
