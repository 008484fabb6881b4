"""Where frames come from: a SOURCE string goes in, RGB frames with their times come out.

    picture.jpg  folder/  video.mp4  0  /dev/video0  rtsp://host/path  demo

FFmpeg would also open http:, concat: and subfile: names, that is, reach the network or join files behind the user's
back; so a source is one of the kinds above, and a file reaches FFmpeg by its absolute path only.
"""

import itertools
import os
import re
import stat
import time
from pathlib import Path
from urllib.parse import urlsplit

import cv2

from fsvit_edge.runtime.demo import DEMO_FPS, demo_frame, demo_length
from fsvit_edge.runtime.errors import InputError, SourceError
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, read_image
from fsvit_edge.runtime.sources.base import FileSource, Images, Source
from fsvit_edge.runtime.sources.opencv import READ_TIMEOUT_MS, declared_fps, open_capture, read_rgb

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".gif")

_KINDS = "a picture, a folder of pictures, a video file, a camera (0 or /dev/video0), rtsp://..., or demo"
# FFmpeg answers a frozen stream with "success" and an old frame twice before it admits the timeout (measured), so a
# read that took nearly the whole limit counts as the end, whatever it returned.
_STALL_MS = 0.9 * READ_TIMEOUT_MS
_MOST_FRAMES = 2**31  # what FFmpeg does not know it gives as a huge or negative number


def open_source(uri: str) -> Source:
    """Open a source of frames.

    Args:
        uri: A picture, a folder of pictures (in natural order: 2 before 10), a video file, a camera ("0",
            "/dev/video0"), "rtsp://..." (over TCP), or "demo", the built-in tour, which never ends.

    Returns:
        The source; frames are (H, W, 3) uint8 RGB.

    Raises:
        InputError: Not one of these kinds, or a folder without pictures.
        SourceError: The file, camera or stream cannot be found or opened.
        EnvironmentLacksError: "demo" without scikit-image.
    """
    if not uri or re.search(r"[\x00-\x1f\x7f]", uri):
        raise InputError(f"{uri!r} is no source; give {_KINDS}.")
    if uri == "demo":
        demo_length()  # a missing scikit-image is told now, not at the first frame
        return FileSource((("demo", demo_frame(index)) for index in itertools.count()), name="demo", fps=DEMO_FPS)
    if re.match("rtsp://", uri, re.IGNORECASE):
        return _open_stream(uri)
    if re.fullmatch("[0-9]{1,3}", uri):
        return _open_camera(f"/dev/video{int(uri)}", name=uri)
    if re.fullmatch("/dev/video[0-9]{1,3}", os.path.realpath(uri)):
        return _open_camera(os.path.realpath(uri), name=uri)
    return _open_path(uri)


def _open_path(uri: str) -> Source:
    path = Path(uri)
    suffix = path.suffix.lower()
    try:
        mode = path.stat().st_mode
        entries = list(path.iterdir()) if stat.S_ISDIR(mode) else []
    except OSError as error:
        if re.match(r"[A-Za-z][A-Za-z0-9+.,-]*:", uri):
            raise InputError(f"{uri.partition(':')[0]}: is not a kind of source; give {_KINDS}.") from error
        raise SourceError(f"The source {uri} cannot be opened: {error.strerror}; check the path.") from error
    if stat.S_ISDIR(mode):
        pictures = [entry for entry in entries if entry.suffix.lower() in PICTURE_SUFFIXES and entry.name[0] != "."]
        if not pictures:
            raise InputError(f"The folder {uri} holds no picture ({', '.join(PICTURE_SUFFIXES)}).")
        return FileSource(_pictures(sorted(pictures, key=_natural_order)), name=uri)
    if suffix in PICTURE_SUFFIXES:
        return FileSource(_pictures([path]), name=uri)
    if suffix in VIDEO_SUFFIXES:
        capture = open_capture(str(path.resolve()), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise SourceError(f"The video {uri} cannot be opened; it is damaged, cut short, or of an unknown encoding.")
        frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        num_frames = int(frames) if 1 <= frames < _MOST_FRAMES else None
        return FileSource(
            _video(capture, uri), name=uri, fps=declared_fps(capture), num_frames=num_frames, close=capture.release
        )
    known = ", ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)
    raise InputError(f"{uri} is no picture and no video: its name ends in none of {known}.")


def _open_camera(device: str, name: str) -> Source:
    if not os.path.exists(device):
        raise SourceError(f"There is no camera {device}; plug it in, or list the cameras with: ls /dev/video*")
    capture = open_capture(device, cv2.CAP_V4L2)
    if not capture.isOpened():
        raise SourceError(
            f"The camera {device} cannot be opened; it is in use, delivers no pictures, or you lack the permission "
            "(group video)."
        )
    return FileSource(_live(capture, name), name=name, fps=declared_fps(capture), close=capture.release)


def _open_stream(uri: str) -> Source:
    name = _printable_stream(uri)
    try:
        if not urlsplit(uri).hostname or " " in uri:
            raise InputError(f"{name} is no stream address; give rtsp://HOST/PATH.")
    except ValueError:
        # Not chained: the cause's text could hold the password.
        raise InputError(f"{name} is no stream address; give rtsp://HOST/PATH.") from None
    capture = open_capture("rtsp://" + uri[len("rtsp://") :], cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise SourceError(
            f"The stream {name} cannot be opened; check the address, the password and that the camera is on."
        )
    return FileSource(_live(capture, name), name=name, fps=declared_fps(capture), close=capture.release)


def _pictures(paths: list[Path]) -> Images:
    for path in paths:
        yield str(path), read_image(path)


def _video(capture: cv2.VideoCapture, name: str) -> Images:
    found = False
    while (image := read_rgb(capture)) is not None:
        found = True
        yield name, image
    if not found:
        raise SourceError(f"The video {name} holds no frame that can be decoded.")


def _live(capture: cv2.VideoCapture, name: str) -> Images:
    while True:
        started = time.monotonic()
        image = read_rgb(capture)
        if image is None or (time.monotonic() - started) * 1e3 >= _STALL_MS:
            raise SourceError(
                f"{name} stopped delivering frames; check the camera and its connection, then start again."
            )
        yield name, image


def _natural_order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


def _printable_stream(uri: str) -> str:
    address = uri[len("rtsp://") :]
    authority = re.split("[/?#]", address, maxsplit=1)[0]
    path = re.split("[?#]", address[len(authority) :], maxsplit=1)[0]
    # A password may itself hold / ? # or @, and some cameras take it as a part of the path: where in doubt, show less.
    if "@" in address[len(authority) :]:
        return "rtsp://***"
    return f"rtsp://{authority.rpartition('@')[2]}{'/***' if '=' in path else path}"
