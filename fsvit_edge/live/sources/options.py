"""What can be asked of a source."""

from dataclasses import dataclass
from typing import Literal

from fsvit_edge.runtime.errors import InputError

Flip = Literal["none", "horizontal", "vertical", "both"]
FLIPS: tuple[Flip, ...] = ("none", "horizontal", "vertical", "both")

_LARGEST_PX = 16384


@dataclass(frozen=True)
class SourceOptions:
    """What can be asked of a source; None leaves it to the source.

    Attributes:
        width: Pixels, of a camera.
        height: Pixels, of a camera.
        fps: Frames per second, of a camera, or at which a file or the demo plays with `realtime`.
        flip: "horizontal" swaps left and right, "vertical" top and bottom, "both" turns by 180 degrees.
        loop: Whether a file starts again at its end.
        realtime: Whether a file or the demo plays at its own pace, as a camera would, and drops what is not read.
    """

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    flip: Flip = "none"
    loop: bool = False
    realtime: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            InputError: One is.
        """
        if self.flip not in FLIPS:
            raise InputError(f"--flip {self.flip!r} is none of {', '.join(FLIPS)}.")
        for name, value in (("width", self.width), ("height", self.height)):
            if value is not None and not 1 <= value <= _LARGEST_PX:
                raise InputError(f"--{name} must be 1 to {_LARGEST_PX} pixels, got {value}.")
        if self.fps is not None and not 0.01 <= self.fps <= 1000:
            raise InputError(f"--fps must be 0.01 to 1000 frames per second, got {self.fps:g}.")
