"""Numbered files of a recording, out-000001.mp4, out-000002.mp4, ..., of which the oldest are deleted."""

import re
from pathlib import Path

from fsvit_edge.live.sinks.base import RecordingOptions

_DIGITS = 6


class Segments:
    """Names the files and deletes old ones; the numbers continue those of an earlier run.

    The names contain numbers, not times, because a device without a battery starts in 1970. "out.mp4" gives
    "out-000001.mp4" and so on.
    """

    def __init__(self, path: Path, options: RecordingOptions) -> None:
        self._path = path
        self._options = options
        self._started_s: float | None = None
        self._number = max((number for number, _ in self._existing()), default=0)

    def start(self, now_s: float) -> Path:
        """Name the next file, which starts at this monotonic second."""
        self._started_s = now_s
        self._number += 1
        return self._path.with_name(f"{self._path.stem}-{self._number:0{_DIGITS}d}{self._path.suffix}")

    def take_back(self, path: Path) -> None:
        """Delete the file that was named last, in which there is nothing, and use its number again."""
        path.unlink(missing_ok=True)
        self._number -= 1

    def is_full(self, now_s: float) -> bool:
        """Whether the current file has reached its length at this monotonic second."""
        length_s = self._options.segment_s
        return length_s is not None and self._started_s is not None and now_s - self._started_s >= length_s

    def delete_old(self) -> None:
        """Delete the oldest files beyond the number to keep; only files named like ours."""
        if self._options.keep is not None:
            for _, path in sorted(self._existing())[: -self._options.keep]:
                path.unlink(missing_ok=True)

    def _existing(self) -> list[tuple[int, Path]]:
        pattern = re.compile(rf"{re.escape(self._path.stem)}-([0-9]{{{_DIGITS},}}){re.escape(self._path.suffix)}")
        found = ((pattern.fullmatch(path.name), path) for path in self._path.parent.iterdir())
        return [(int(match[1]), path) for match, path in found if match]
