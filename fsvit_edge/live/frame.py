"""One frame of a source, on its way through a run."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.drawn_frame import Drawing


@dataclass(frozen=True)
class Frame:
    """One frame of a source and when it was captured."""

    image: npt.NDArray[np.uint8]  # (H, W, 3) RGB
    index: int  # position in the source, from 0
    source: str  # what it was read from, safe to print: a path, a device, or the address of a stream without password
    wall_time_s: float  # at capture, since 1970 (UTC); jumps when the clock is set
    monotonic_s: float  # the same moment on a clock that never jumps; only differences are meaningful
    decode_ms: float  # reading and decoding; for a live source, this includes waiting for the frame
    is_frozen: bool = False  # a live source has repeated the same pixels for so long that it must hang
    age_ms: float = 0.0  # from capture to its result; 0 before it is processed
    media_time_s: float | None = None  # in a video file, its time from the start; None for anything else
    picture: str = ""  # the name of the picture file that it is, without suffix; empty for anything else
    full_hw: tuple[int, int] | None = None  # height and width of this file if it was read smaller
    camera: str = ""  # in a run of several sources, the name of the one that it is from
    _drawing: Drawing = field(default_factory=Drawing, init=False, compare=False, repr=False)

    def drawn(self, prediction: Prediction) -> npt.NDArray[np.uint8]:
        """Return the image with its prediction drawn in, (H, W, 3) uint8 RGB, read-only: sinks share it."""
        return self._drawing.of(self.image, prediction)
