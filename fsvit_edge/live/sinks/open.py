"""Open a sink, which takes the frames and predictions of a run, from a string.

    folder/  masks:folder/  video.mp4  results.jsonl  -  mqtt://host/topic

The page, http://..., also needs the model: see `run.run_source`. Webhooks and snapshots take only events.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fsvit_edge.live.sinks.base import EventOptions, RecordingOptions, Sink
from fsvit_edge.live.sinks.drawn import IndexMaskSink, PictureSink, VideoSink
from fsvit_edge.live.sinks.json_lines import JsonLinesSink, StandardOutputSink
from fsvit_edge.live.sinks.mqtt import MqttSink
from fsvit_edge.live.sinks.snapshots import SnapshotSink
from fsvit_edge.live.sinks.webhook import WebhookSink, webhook_name
from fsvit_edge.live.uri import looks_like_address, may_have_password, printable, printable_address
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

_PLACE = "{source}"
_MASKS = "masks:"
_EXPECTED = (
    "a folder (ending in /), masks:FOLDER/, *.mp4, *.jsonl, - for standard output, mqtt://HOST/TOPIC, or "
    "http://127.0.0.1:PORT for the page"
)


def open_sink(
    uri: str,
    fps: float,
    options: RecordingOptions = RecordingOptions(),  # noqa: B008 - frozen
    is_live: bool = False,
    home_assistant: bool = False,
) -> Sink:
    """Open a sink. A video and JSON lines replace a file that exists, but JSON lines of a live source are appended.

    Args:
        uri: "FOLDER/" (ending in a slash, or an existing folder) for pictures with the result drawn in, named like the
            picture that was read, or frame_000000.jpg by the index of the frame, which replace none; "masks:FOLDER/"
            for index masks, PNGs named alike; "*.mp4" for a video of the pictures; "*.jsonl" for one JSON object (see
            `frame_record`) per line and frame; "-" for the same lines on standard output; "mqtt://HOST/TOPIC" for the
            same as messages.
        fps: Frames per second of a video, above 0.
        options: How much a recording may write.
        is_live: Whether the source is live: a video follows the clock then, and results do not wait for a broker.
        home_assistant: Whether a sink for MQTT announces each class to Home Assistant.

    Raises:
        InputError: The sink is unsupported, or a file is where a folder must be or the reverse.
        EnvironmentLacksError: A package for it is not installed.
        FsvitEdgeError: It cannot be written.
    """
    path = path_of(uri)
    if uri == "-":
        return StandardOutputSink()
    if is_mqtt(uri):
        return MqttSink(uri, home_assistant, is_live)
    if not _is_address(uri) and "\0" not in uri:
        if _is_masks(uri):
            _create_folder(path)
            return IndexMaskSink(path, options)
        if uri.endswith("/") or (uri and path.is_dir()):
            _create_folder(path)
            return PictureSink(path, options)
        if path.suffix.lower() == ".mp4":
            _create_folder(path.parent)
            return VideoSink(path, fps, options, is_live)
        if path.suffix.lower() == ".jsonl":
            _create_folder(path.parent)
            return JsonLinesSink(path, options, is_live)
    if uri.lower().startswith("https://"):
        raise InputError(f"Unsupported sink '{sink_name(uri)}'; post events there with --webhook, not --sink.")
    shown = "***" if may_have_password(uri) and "://" not in uri else sink_name(uri)
    raise InputError(f"Unsupported sink {shown!r}; expected {_EXPECTED}.")


def refuse_other_places(option: str, value: str, has_place: bool = True) -> None:
    """Refuse a place that is spelled wrong: it would be a part of the name, and several sources would write there.

    Braces in the name of what exists already are meant.

    Args:
        option: The option, for the message.
        value: A sink, or the path of a file or folder.
        has_place: Whether the option has the place for the name of a source.

    Raises:
        InputError: There is another place.
    """
    if _is_address(value):
        parts = [value.rpartition("@")[2]]  # a password may have braces
    else:
        parts = [path.name for path in (path_of(value), *path_of(value).parents) if not os.path.exists(path)]
    for place in re.findall(r"\{[^{}/]*\}", "/".join(parts)):
        if not has_place:
            raise InputError(
                f"{option} has no place for names, got {printable(place)}: its file is one for all sources."
            )
        if place != _PLACE:
            raise InputError(
                f"Unknown place {printable(place)} in {option}; the only one is {_PLACE}, for the name of a source."
            )


def sinks_of_sources(uri: str, names: Sequence[str]) -> list[tuple[str | None, str]]:
    """Return what a sink means in a run of several sources: a sink of each, or one that says of what each result is.

    Args:
        uri: As `open_sink` takes it, or the page; "{source}" is the place for the name of a source.
        names: Names of the sources.

    Returns:
        For each sink the name of its only source, or None for all; and its URI.

    Raises:
        InputError: Several sources would write to one folder, video or topic.
    """
    if _PLACE in uri:
        return [(name, uri.replace(_PLACE, name)) for name in names]
    if len(names) == 1:
        return [(None, uri)]
    path, is_path = Path(uri), not _is_address(uri)
    is_folder = is_path and (uri.endswith("/") or _is_masks(uri) or path.is_dir())
    is_video = is_path and not is_folder and path.suffix.lower() == ".mp4"
    if is_mqtt(uri) or is_folder or is_video:
        own = path.with_stem(f"{path.stem}-{_PLACE}") if is_video else f"{sink_name(uri).rstrip('/')}/{_PLACE}"
        raise InputError(
            f"{len(names)} sources would write to {sink_name(uri)}; give each its own by its name, as in: --sink "
            f"{own}{'/' if is_folder else ''}"
        )
    return [(None, uri)]


def snapshots_of_sources(folder: Path, names: Sequence[str]) -> list[tuple[str | None, Path]]:
    """Return the folder for the snapshots of each source, like `sinks_of_sources`."""
    if len(names) > 1 and _PLACE not in str(folder):
        raise InputError(
            f"{len(names)} sources would write to {folder}; give each its own by its name, as in: --snapshots "
            f"{folder / _PLACE}"
        )
    return [(name, Path(str(folder).replace(_PLACE, name))) for name in names]


def open_event_sinks(options: EventOptions) -> Iterator[tuple[str, Sink]]:
    """Open what takes only events, one by one, each with a name that is safe to print.

    Raises:
        InputError: An address is invalid, or a file is where the folder must be.
        FsvitEdgeError: The folder cannot be created.
    """
    for uri in options.webhooks:
        yield webhook_name(uri), WebhookSink(uri, options.cooldown_s)
    if options.snapshots is not None:
        _create_folder(options.snapshots)
        yield printable(str(options.snapshots)), SnapshotSink(options.snapshots, options.keep_snapshots)


def is_page(uri: str) -> bool:
    """Whether a sink is the page, which `open_sink` does not open."""
    return uri.lower().startswith("http://")


def is_mqtt(uri: str) -> bool:
    """Whether a sink is a topic of an MQTT broker."""
    return re.match("mqtts?://", uri, re.IGNORECASE) is not None


def sink_name(uri: str) -> str:
    """The sink, safe to print: without a password."""
    if uri.lower().startswith("https://"):
        return webhook_name(uri)  # no sink yet, but its path may be a secret
    return printable_address(uri) if _is_address(uri) else printable(uri)


def recording_folder(uri: str) -> Path | None:
    """The folder in which a sink writes files; None if it writes none."""
    if uri == "-" or _is_address(uri):
        return None
    path = path_of(uri)
    return path if uri.endswith("/") or _is_masks(uri) or path.is_dir() else path.parent


def path_of(uri: str) -> Path:
    """The file or folder of a sink that writes files."""
    return Path(uri.removeprefix(_MASKS)) if _is_masks(uri) else Path(uri)


def _is_masks(uri: str) -> bool:
    return uri.startswith(_MASKS) and len(uri) > len(_MASKS)


def _is_address(uri: str) -> bool:
    """Whether it is an address, or one that is spelled wrong: no file with a password in its name is to be written."""
    return "://" in uri or (looks_like_address(uri) and re.match(r"\.{0,2}/(?!/)", uri) is None)


def _create_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be a folder: {error.filename} is a file.") from error
    except OSError as error:
        raise FsvitEdgeError(f"The folder {path} cannot be created: {error.strerror}.") from error
