"""A SOURCE string goes in, RGB frames with their times come out.

    picture.jpg  folder/  video.mp4  0  /dev/video0  csi://0  rtsp://host/path  http://host/stream.mjpg  demo

Files and folders wait for their reader and drop nothing. Live sources do not wait: they are read in a process of their
own, and only the newest frame is ever there to read.
"""

from fsvit_edge.live.sources.base import Source
from fsvit_edge.live.sources.files import open_file
from fsvit_edge.live.sources.live import LiveSource, check_device
from fsvit_edge.live.sources.opencv import has_gstreamer
from fsvit_edge.live.sources.options import SourceOptions
from fsvit_edge.live.uri import SourceAddress, parse_source
from fsvit_edge.runtime.errors import EnvironmentLacksError, InputError


def open_source(uri: str, options: SourceOptions = SourceOptions()) -> Source:  # noqa: B008 - frozen
    """Open a source of frames.

    Args:
        uri: A picture, a folder of pictures (in natural order: 2 before 10), a video file, a camera ("0",
            "/dev/video0", "/dev/v4l/by-id/...", a Jetson's "csi://0"), "rtsp://..." (over TCP), "http://..." (a stream
            of JPEGs), or "demo", the built-in tour, which never ends.
        options: What is asked of it.

    Returns:
        The source; frames are (H, W, 3) uint8 RGB. A camera or stream need not be there yet: it is "connecting" until
        it is.

    Raises:
        InputError: Not one of these kinds, a folder without pictures, or an option that the source does not have.
        SourceError: The file or the camera's device cannot be found or opened.
        EnvironmentLacksError: "demo" without scikit-image, "csi://" without GStreamer in OpenCV.
    """
    address = parse_source(uri)
    is_file = address.kind in ("path", "demo")
    _check_options(address, options, is_file)
    if is_file:
        source = open_file(address, options)
        if not options.realtime:
            return source
        source.close()
        return LiveSource(address, options, options.fps or source.fps)
    if address.kind == "camera":
        check_device(address.target)
    if address.kind == "csi" and not has_gstreamer():
        raise EnvironmentLacksError(
            f"{address.name} needs an OpenCV that was built with GStreamer, which pip's is not; on a Jetson: sudo apt "
            "install python3-opencv, and a virtual environment made with --system-site-packages without "
            "opencv-python-headless."
        )
    return LiveSource(address, options)


def _check_options(address: SourceAddress, options: SourceOptions, is_file: bool) -> None:
    is_camera = address.kind in ("camera", "csi")
    if not is_camera and (options.width or options.height):
        raise InputError(f"--width and --height are asked of a camera; {address.name} has its own size.")
    if options.fps and not is_camera and not options.realtime:
        raise InputError(f"--fps is asked of a camera, or of a file with --realtime; {address.name} has its own pace.")
    if not is_file and (options.loop or options.realtime):
        raise InputError(f"--loop and --realtime are for files and the demo; {address.name} is live by itself.")
