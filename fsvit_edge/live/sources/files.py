"""Sources that wait for their reader: pictures, a folder of them, a video file, the demo. They drop nothing."""

import itertools
import stat
from collections.abc import Callable
from pathlib import Path

import cv2

from fsvit_edge.live.sources.base import FileSource, Images
from fsvit_edge.live.sources.demo import DEMO_FPS, demo_frame, demo_length
from fsvit_edge.live.sources.opencv import declared_fps, flipped, open_video, read_rgb
from fsvit_edge.live.sources.options import SourceOptions
from fsvit_edge.live.uri import SourceAddress
from fsvit_edge.runtime.errors import InputError, SourceError
from fsvit_edge.runtime.pictures import PICTURE_SUFFIXES, pictures_in, read_image

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".gif")

_MOST_FRAMES = 2**31  # what FFmpeg does not know it gives as a huge or negative number


def open_file(address: SourceAddress, options: SourceOptions) -> FileSource:
    """Open a picture, folder, video or the demo.

    Args:
        address: Of kind "path" or "demo".
        options: `flip` and `loop` apply. The demo never ends, looped or not.

    Raises:
        InputError: The path is no picture, folder or video, or a folder without pictures.
        SourceError: It does not exist or cannot be opened.
        EnvironmentLacksError: The demo without scikit-image.
    """
    if address.kind == "demo":
        demo_length()  # a missing scikit-image is told now, not at the first frame
        tour = (("demo", flipped(demo_frame(index), options.flip)) for index in itertools.count())
        return FileSource(tour, name=address.name, fps=DEMO_FPS)
    uri, path = address.name, Path(address.target)
    try:
        mode = path.stat().st_mode
        pictures = pictures_in(path) if stat.S_ISDIR(mode) else []
    except OSError as error:
        raise SourceError(f"The source {uri} cannot be opened: {error.strerror}; check the path.") from error
    suffix = path.suffix.lower()
    if stat.S_ISDIR(mode):
        if not pictures:
            raise InputError(f"The folder {uri} holds no picture ({', '.join(PICTURE_SUFFIXES)}).")
        return FileSource(_repeated(lambda: _pictures(pictures), options), name=uri)
    if suffix in PICTURE_SUFFIXES:
        return FileSource(_repeated(lambda: _pictures([path]), options), name=uri)
    if suffix in VIDEO_SUFFIXES:
        return _open_video_file(path, uri, options)
    known = ", ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)
    raise InputError(f"{uri} is no picture and no video: its name ends in none of {known}.")


def _open_video_file(path: Path, uri: str, options: SourceOptions) -> FileSource:
    capture = open_video(str(path.resolve()))
    if not capture.isOpened():
        raise SourceError(f"The video {uri} cannot be opened; it is damaged, cut short, or of an unknown encoding.")
    frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    num_frames = int(frames) if 1 <= frames < _MOST_FRAMES and not options.loop else None
    fps = declared_fps(capture)
    opened = [capture]  # the first round's; later rounds open the file anew, for not every format can be rewound

    def play() -> Images:
        video = opened.pop() if opened else open_video(str(path.resolve()))
        try:
            yield from _video(video, uri)
        finally:
            video.release()

    def close() -> None:
        for video in opened:
            video.release()

    return FileSource(_repeated(play, options), name=uri, fps=fps, num_frames=num_frames, close=close)


def _repeated(play: Callable[[], Images], options: SourceOptions) -> Images:
    while True:
        for name, image in play():
            yield name, flipped(image, options.flip)
        if not options.loop:
            return


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
