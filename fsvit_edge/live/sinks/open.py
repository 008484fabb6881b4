"""Where results go: a sink URI and the predictions of a run go in, files, lines or messages come out.

    folder/  video.mp4  results.jsonl  -  mqtt://host/topic

The page, http://..., needs more than a URI: see `page.sink`.
"""

import re
from pathlib import Path

from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.live.sinks.json_lines import JsonLinesSink, StandardOutputSink
from fsvit_edge.live.sinks.mqtt import MqttSink
from fsvit_edge.live.sinks.picture_folder import PictureSink
from fsvit_edge.live.sinks.segments import SinkOptions
from fsvit_edge.live.sinks.video import VideoSink
from fsvit_edge.live.uri import printable, printable_address
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

_KINDS = (
    "a folder (ending in /), *.mp4, *.jsonl, - for the standard output, mqtt://HOST/TOPIC, or http://127.0.0.1:PORT "
    "for the page"
)


def open_sink(uri: str, fps: float, options: SinkOptions = SinkOptions()) -> Sink:  # noqa: B008 - frozen
    """Open a sink; what is there already is replaced, but for the lines of a live source, which are added.

    Args:
        uri: "FOLDER/" (ending in a slash, or an existing folder) for pictures with the result drawn in, named
            frame_000000.jpg by the frame's index; "*.mp4" for a video of them; "*.jsonl" for one JSON object (see
            `record`) a line and frame; "-" for the same lines on the standard output; "mqtt://HOST/TOPIC" for the same
            as messages.
        fps: Frames per second at which a video is to play, above 0.
        options: What recordings may take.

    Raises:
        InputError: Not one of these kinds, or the path has a file where a folder must be, or the reverse.
        EnvironmentLacksError: A package for it is not installed.
        FsvitEdgeError: The place cannot be written.
    """
    path = Path(uri)
    if uri == "-":
        return StandardOutputSink()
    if re.match("mqtts?://", uri, re.IGNORECASE):
        return MqttSink(uri)
    if "://" not in uri and "\0" not in uri:
        if uri.endswith("/") or (uri and path.is_dir()):
            _make_folder(path)
            return PictureSink(path, options)
        if path.suffix.lower() == ".mp4":
            _make_folder(path.parent)
            return VideoSink(path, fps, options)
        if path.suffix.lower() == ".jsonl":
            _make_folder(path.parent)
            return JsonLinesSink(path, options)
    raise InputError(f"{sink_name(uri)!r} is no sink; give {_KINDS}.")


def sink_name(uri: str) -> str:
    """What a sink is called in print: its URI without a password."""
    return printable_address(uri) if "://" in uri else printable(uri)


def recording_folder(uri: str) -> Path | None:
    """The folder in which a sink writes files; None where it writes none."""
    if uri == "-" or "://" in uri:
        return None
    return Path(uri) if uri.endswith("/") else Path(uri).parent


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be a folder: {error.filename} is a file.") from error
    except OSError as error:
        raise FsvitEdgeError(f"The folder {path} cannot be made: {error.strerror}.") from error
