"""Where results go: a sink URI and the predictions of a run go in, files or lines come out.

folder/  video.mp4  results.jsonl  -
"""

from pathlib import Path

from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.sinks.base import Sink
from fsvit_edge.runtime.sinks.json_lines import JsonLinesSink, StandardOutputSink
from fsvit_edge.runtime.sinks.picture_folder import PictureSink
from fsvit_edge.runtime.sinks.video import VideoSink

_KINDS = "a folder (ending in /), *.mp4, *.jsonl, or - for the standard output"


def open_sink(uri: str, fps: float) -> Sink:
    """Open a sink; what is there already is replaced.

    Args:
        uri: "FOLDER/" (ending in a slash, or an existing folder) for pictures with the result drawn in, named
            frame_000000.jpg by the frame's index; "*.mp4" for a video of them; "*.jsonl" for one JSON object (see
            `record`) a line and frame; "-" for the same lines on the standard output.
        fps: Frames per second at which a video is to play, above 0.

    Raises:
        InputError: Not one of these kinds, or the path has a file where a folder must be, or the reverse.
        FsvitEdgeError: The place cannot be written.
    """
    path = Path(uri)
    if uri == "-":
        return StandardOutputSink()
    if uri.endswith("/") or (uri and path.is_dir()):
        _make_folder(path)
        return PictureSink(path)
    if path.suffix.lower() == ".mp4":
        _make_folder(path.parent)
        return VideoSink(path, fps)
    if path.suffix.lower() == ".jsonl":
        _make_folder(path.parent)
        return JsonLinesSink(path)
    raise InputError(f"{uri!r} is no sink; give {_KINDS}.")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be a folder: {error.filename} is a file.") from error
    except OSError as error:
        raise FsvitEdgeError(f"The folder {path} cannot be made: {error.strerror}.") from error
