"""One picture of a source, on its way through the loop."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Frame:
    """One picture of a source and when it came.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        index: Position in the source, from 0.
        source: What it was read from, fit to print: a path, a device, or a stream's address without its password.
        wall_time_s: Seconds since 1970 (UTC) when the frame was there; jumps when the clock is set.
        monotonic_s: Seconds of a clock that never jumps, of the same moment; only differences mean something.
        decode_ms: Milliseconds spent reading and decoding; of a live source, waiting for the frame as well.
        is_frozen: Whether a live source has delivered the same pixels for so long that it must hang.
        age_ms: Milliseconds from then to the result for it; 0 before it was judged.
    """

    image: npt.NDArray[np.uint8]
    index: int
    source: str
    wall_time_s: float
    monotonic_s: float
    decode_ms: float
    is_frozen: bool = False
    age_ms: float = 0.0
