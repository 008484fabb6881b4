"""Open a source, which yields RGB frames with their times, from a string.

    picture.jpg  folder/  video.mp4  0  /dev/video0  csi://0  rtsp://host/path  http://host/stream.mjpg  demo

Files and folders wait for their reader and drop nothing (`files`, `demo`). Live sources do not wait: a separate process
reads them (`capture_process`), and only the newest frame can be read (`live`).
"""

import os

from fsvit_edge.live.opencv import has_gstreamer
from fsvit_edge.live.sources.base import Source, SourceOptions
from fsvit_edge.live.sources.files import open_file
from fsvit_edge.live.sources.live import FILE_TIMEOUTS, LiveSource
from fsvit_edge.live.uri import SourceAddress, parse_source
from fsvit_edge.runtime.errors import EnvironmentLacksError, InputError, SourceError


def open_source(uri: str, options: SourceOptions = SourceOptions()) -> Source:  # noqa: B008 - frozen
    """Open a source of frames.

    Args:
        uri: A picture, a folder of pictures (in natural order: 2 before 10), a video file, a camera ("0",
            "/dev/video0", "/dev/v4l/by-id/...", a Jetson's "csi://0"), "rtsp://..." (over TCP), "http://..." (a stream
            of JPEGs), or "demo", the built-in tour, which never ends.
        options: How to read it.

    Returns:
        The source; frames are (H, W, 3) uint8 RGB. A camera or stream need not be available yet: it is "connecting"
        until it is.

    Raises:
        InputError: The source is unsupported, a folder has no pictures, or the source lacks an option.
        SourceError: The file or camera device cannot be found or opened.
        EnvironmentLacksError: "demo" needs scikit-image, "csi://" needs OpenCV with GStreamer.
    """
    address = parse_source(uri)
    _check_options(address, options)
    if address.is_stored:
        source = open_file(address, options)
        if not options.realtime:
            return source
        source.close()
        return LiveSource(address, options, options.fps or source.fps, FILE_TIMEOUTS)
    if address.kind == "camera":
        check_device(address.target)
    if address.kind == "csi" and not has_gstreamer():
        raise EnvironmentLacksError(
            f"{address.name} needs OpenCV with GStreamer, which pip's OpenCV lacks; on a Jetson: sudo apt install "
            "python3-opencv, and use a virtual environment created with --system-site-packages, without "
            "opencv-python-headless."
        )
    return LiveSource(address, options)


def check_device(device: str) -> None:
    """Refuse at the start what would otherwise stay "connecting" forever."""
    if not os.path.exists(device):
        raise SourceError(f"Camera {device} does not exist; plug it in, or list the cameras with: ls /dev/video*")
    if not os.access(device, os.R_OK | os.W_OK):
        raise SourceError(f"No permission to read camera {device}; join its group: sudo usermod -aG video $USER")


def _check_options(address: SourceAddress, options: SourceOptions) -> None:
    is_camera = address.kind in ("camera", "csi")
    if not is_camera and (options.width or options.height):
        raise InputError(f"--width and --height are for cameras; {address.name} has a fixed size.")
    if options.fps and not is_camera and not options.realtime:
        raise InputError(f"--fps is for cameras, and for files with --realtime; {address.name} has its own frame rate.")
    if not address.is_stored and (options.loop or options.realtime):
        raise InputError(f"--loop and --realtime are for files and the demo; {address.name} is always live.")
