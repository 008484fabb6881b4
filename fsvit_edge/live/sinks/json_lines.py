"""Results as JSON, one object per line: for every frame, event, change in a state, and bank that is followed."""

import contextlib
import errno
import json
import os
import sys
from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fsvit_edge.fewshot.full_size import place_in_file, scale_of
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.support_masks import Box
from fsvit_edge.live.events import Event, event_record
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import BankStatus, Health
from fsvit_edge.live.sinks.base import RecordingOptions, Sink, SinkClosedError
from fsvit_edge.live.sinks.segments import Segments
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

_STATE_FIELDS = (
    *("state", "is_frozen", "message", "source", "wall_time_s", "monotonic_s", "boot_id"),
    *("captured", "dropped", "reconnects", "frames", "box"),
)

_Place = tuple[int, Box | None]  # area and box


def frame_record(frame: Frame, prediction: Prediction) -> dict[str, Any]:
    """Describe the result for a frame in plain values for JSON.

    Returns:
        "event": "frame"; "sequence": index of the frame, with gaps where frames of a live source were dropped;
        "source"; "wall_time_s" and "monotonic_s": time of capture in seconds; "media_time_s": time in a video
        file in seconds, null for anything else; "age_ms": milliseconds from then to the
        result; "is_frozen": whether the camera repeats the same pixels; "size_hw": height and width in pixels, of a
        picture file that was read smaller those of the file, as all that follows;
        "classes": for each enrolled class its "name", "score" in [0, 1], "raw_score" (before negatives and competing
        classes lowered it), "level" (the score above which it is present), "present", "area_px" and "box_xyxy" (left,
        top, right, bottom in pixels; right and bottom are exclusive), where area and box are those of the label map, 0
        and null if the class is absent or has no pixel; for present classes also "instances", its
        connected parts, each with "area_px" and "box_xyxy", and "zones", the names of the zones that it is in;
        "latency_ms": milliseconds of each stage, "decode" first.
    """
    classes = [
        {
            "name": result.name,
            "score": round(result.score, 4),
            "raw_score": round(result.raw_score, 4),
            "level": round(result.level, 4),
            "present": result.is_present,
            **_place_record(*whole),
            "instances": [_place_record(*part) for part in parts],
            "zones": list(result.zones),
        }
        for result, (whole, parts) in zip(prediction.results, _places(frame, prediction), strict=True)
    ]
    return {
        "event": "frame",
        "sequence": frame.index,
        "source": frame.source,
        "wall_time_s": round(frame.wall_time_s, 3),
        "monotonic_s": round(frame.monotonic_s, 3),
        "media_time_s": None if frame.media_time_s is None else round(frame.media_time_s, 3),
        "age_ms": round(frame.age_ms, 1),
        "is_frozen": frame.is_frozen,
        "size_hw": list(frame.full_hw or frame.image.shape[:2]),
        "classes": classes,
        "latency_ms": {
            stage: round(float(ms), 2) for stage, ms in {"decode": frame.decode_ms, **prediction.latency_ms}.items()
        },
    }


def _places(frame: Frame, prediction: Prediction) -> Iterator[tuple[_Place, list[_Place]]]:
    """Yield where each class is, and its parts; in the pixels of a picture file, also of one that was read smaller."""
    for way, result in enumerate(prediction.results):
        parts = prediction.instances(result.name)
        if frame.full_hw is None or result.box_xyxy is None:
            yield (result.area_px, result.box_xyxy), [(part.area_px, part.box_xyxy) for part in parts]
            continue
        in_file = partial(place_in_file, scale=scale_of(frame.image.shape, frame.full_hw), size_hw=frame.full_hw)
        pixels = prediction.instance_pixels(result.name)
        yield (
            in_file(result.box_xyxy, prediction.regions[way].pixels),
            [in_file(part.box_xyxy, its) for part, its in zip(parts, pixels, strict=True)],
        )


def _place_record(area_px: int, box_xyxy: Box | None) -> dict[str, Any]:
    return {"area_px": area_px, "box_xyxy": box_xyxy and list(box_xyxy)}


def state_record(health: Health) -> dict[str, Any]:
    """Describe the state of the source, and of a box, in plain values for JSON.

    Returns:
        "event": "state"; "state": "connecting", "live" or "lost"; "is_frozen"; "message": what is wrong, or empty;
        "source"; "wall_time_s" and "monotonic_s": now; "boot_id": the start of the machine from which the latter
        counts; "captured", "dropped" and "reconnects" so far; "frames": frames processed so far; "box": the state of
        the box that answers, see `BoxStatus`; None if the model is here.
    """
    values = health.to_dict()
    values.update(values["source_status"])
    return {"event": "state", **{name: values[name] for name in _STATE_FIELDS}}


def bank_record(bank: BankStatus) -> dict[str, Any]:
    """Describe the followed bank that answers in plain values for JSON.

    Returns:
        "event": "bank"; "origin"; "sha256" of its file; "is_copy": whether it is a copy from before; "wall_time_s":
        when it began to answer, in seconds since 1970 (UTC).
    """
    return {
        "event": "bank",
        "origin": bank.origin,
        "sha256": bank.sha256,
        "is_copy": bank.is_copy,
        "wall_time_s": round(bank.since_s, 3),
    }


def json_line(record: dict[str, Any]) -> bytes:
    """Encode a record of finite numbers as one line of UTF-8 text."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class _LinesSink(Sink):
    queue_frames = 8
    _bank_since_s = 0.0  # of the bank that was written last

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Write the line of a frame."""
        self._write(json_line(frame_record(frame, prediction)), frame.monotonic_s)

    def tell(self, event: Event) -> None:
        """Write the line of an event."""
        self._write(json_line(event_record(event)), event.monotonic_s)

    def report(self, health: Health) -> None:
        """Write the lines of what has changed: which bank answers, and the state of the source."""
        if health.bank is not None and health.bank.since_s != self._bank_since_s:
            self._bank_since_s = health.bank.since_s
            self._write(json_line(bank_record(health.bank)), health.monotonic_s)
        super().report(health)

    def _write_state(self, health: Health) -> None:
        self._write(json_line(state_record(health)), health.monotonic_s)

    @abstractmethod
    def _write(self, line: bytes, now_s: float) -> None: ...


class JsonLinesSink(_LinesSink):
    """Lines in a file, or in numbered files.

    Lines of a live source are appended to an existing file, because what it showed before does not come again, and a
    service that restarts a run continues the file. Lines of other sources replace the file.
    """

    resumes = True

    def __init__(self, path: Path, options: RecordingOptions, is_live: bool) -> None:
        self._path: Path | None = path
        self._segments: Segments | None = None
        self._file: _LineFile | None = None
        if options.segment_s is None:
            self._file = _LineFile(path, appends=is_live)
        else:
            self._segments, self._path = Segments(path, options), None

    def _write(self, line: bytes, now_s: float) -> None:
        is_new = self._segments is not None and (self._path is None or self._segments.is_full(now_s))
        if self._segments is not None and is_new:
            self._finish()
            self._path = self._segments.start(now_s)
        assert self._path is not None
        if self._file is None:
            self._file = _LineFile(self._path, appends=not is_new)
        if self._segments is not None and is_new:
            self._segments.delete_old()
        try:
            self._file.write(line)
        except FsvitEdgeError:
            self._finish()  # its disk may be another when it is opened again
            raise

    def _finish(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class _LineFile:
    """A file that contains only complete lines."""

    def __init__(self, path: Path, appends: bool) -> None:
        self._path = path
        self._lines = 0
        try:
            if appends:
                _complete_last_line(path)
            if path.is_fifo():  # to open it as a file would wait for its reader, in silence
                descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                os.set_blocking(descriptor, True)
                self._file = os.fdopen(descriptor, "wb", buffering=0)
            else:
                # Unbuffered: the system gets each line in one piece, so a killed run leaves no partial line.
                self._file = path.open("ab" if appends else "wb", buffering=0)
            self._complete_bytes = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise InputError(f"{path} is a pipe that nobody reads; start its reader first.") from error
            raise FsvitEdgeError(f"{path} cannot be written: {error.strerror}.") from error

    def write(self, line: bytes) -> None:
        try:
            rest = line
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a device cannot be truncated to its last complete line
                self._file.truncate(self._complete_bytes)
                self._file.seek(self._complete_bytes)
            if error.errno == errno.EPIPE:
                raise FsvitEdgeError(f"The reader of {self._path} has closed it after {self._lines} lines.") from error
            raise FsvitEdgeError(
                f"{self._path} ends after {self._lines} lines: {error.strerror}; free some space."
            ) from error
        self._lines += 1
        self._complete_bytes += len(line)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a network disk tells late is told at the next line
            self._file.close()


def _complete_last_line(path: Path) -> None:
    """End a line that a power cut left incomplete, so that it does not spoil the next one."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


class StandardOutputSink(_LinesSink):
    """Lines on standard output."""

    def _write(self, line: bytes, _now_s: float) -> None:
        try:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            _discard_standard_output()
            raise SinkClosedError("The reader of standard output has closed it.") from error
        except OSError as error:
            _discard_standard_output()
            raise FsvitEdgeError(f"Standard output cannot be written to: {error.strerror}.") from error

    def _finish(self) -> None:
        """Every line is flushed; standard output is not ours to close."""


def _discard_standard_output() -> None:
    # What is left in the buffer would fail again, with a traceback, when Python exits.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
