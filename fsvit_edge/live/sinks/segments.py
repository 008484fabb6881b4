"""Numbered parts of a recording, out-000001.mp4, out-000002.mp4, ..., of which the oldest go."""

import re
from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.runtime.errors import InputError

_DIGITS = 6


@dataclass(frozen=True)
class SinkOptions:
    """What recordings are allowed to take.

    Attributes:
        segment_s: Seconds after which a recording goes on in a new file; None: one file.
        keep: Files, or pictures, of which the oldest beyond it are deleted; None keeps all.
        is_live: Whether the source is, so that a video has to follow the clock.
    """

    segment_s: float | None = None
    keep: int | None = None
    is_live: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            InputError: One is.
        """
        if self.segment_s is not None and self.segment_s < 1:
            raise InputError(f"--segment must be at least 1 second, got {self.segment_s:g}.")
        if self.keep is not None and self.keep < 1:
            raise InputError(f"--keep must be at least 1 file, got {self.keep}.")


class Segments:
    """Names the parts and deletes the old ones; numbers go on where an earlier run ended.

    A number and no time stands in the name, for a device without a battery wakes up in 1970.

    Args:
        path: "out.mp4" gives "out-000001.mp4" and so on.
        options: How long a part lasts and how many stay.
    """

    def __init__(self, path: Path, options: SinkOptions) -> None:
        self._path = path
        self._options = options
        self._begun_s: float | None = None
        self._number = max((number for number, _ in self._existing()), default=0)

    def begin(self, now_s: float) -> Path:
        """Name the next part.

        Args:
            now_s: Monotonic seconds.
        """
        self._begun_s = now_s
        self._number += 1
        return self._path.with_name(f"{self._path.stem}-{self._number:0{_DIGITS}d}{self._path.suffix}")

    def is_full(self, now_s: float) -> bool:
        """Whether the present part has lasted its time.

        Args:
            now_s: Monotonic seconds.
        """
        length_s = self._options.segment_s
        return length_s is not None and self._begun_s is not None and now_s - self._begun_s >= length_s

    def delete_old(self) -> None:
        """Delete the oldest parts beyond those that stay; only what has our numbered name."""
        if self._options.keep is not None:
            for _, path in sorted(self._existing())[: -self._options.keep]:
                path.unlink(missing_ok=True)

    def _existing(self) -> list[tuple[int, Path]]:
        pattern = re.compile(rf"{re.escape(self._path.stem)}-([0-9]{{{_DIGITS},}}){re.escape(self._path.suffix)}")
        found = ((pattern.fullmatch(path.name), path) for path in self._path.parent.iterdir())
        return [(int(match[1]), path) for match, path in found if match]
