"""One frame of a source, on its way through a run."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Frame:
    """One frame of a source and when it was captured.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        index: Position in the source, from 0.
        source: What it was read from, safe to print: a path, a device, or the address of a stream without password.
        wall_time_s: Seconds since 1970 (UTC) at capture; jumps when the clock is set.
        monotonic_s: The same moment on a clock that never jumps; only differences are meaningful.
        decode_ms: Milliseconds spent reading and decoding; for a live source, this includes waiting for the frame.
        is_frozen: Whether a live source has repeated the same pixels for so long that it must hang.
        age_ms: Milliseconds from capture to its result; 0 before it is processed.
    """

    image: npt.NDArray[np.uint8]
    index: int
    source: str
    wall_time_s: float
    monotonic_s: float
    decode_ms: float
    is_frozen: bool = False
    age_ms: float = 0.0
