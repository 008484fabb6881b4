"""What the model says about one frame."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prediction:
    """The answer for one frame, each class judged on its own: none, some or all may be present.

    Attributes:
        classes: Names of the enrolled classes, in the order of enrollment.
        scores: P(present) of each class, (ways,) float32 in [0, 1].
        levels: The score above which each class is present, (ways,) float32 in (0, 1).
        label_map: (H, W) uint8 at the frame's size: 0 is background, i + 1 is `classes[i]`; with sharp outlines only of
            classes that are present.
        foreground: P(foreground) of each class at the frame's size, (ways, H, W) float32 in [0, 1]; None unless
            asked for.
        latency_ms: Milliseconds spent in each stage, by name, in the order in which they ran.
        plain_foreground: The same by CST alone, before objectness was added, where both were asked for.
    """

    classes: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    levels: npt.NDArray[np.float32]
    label_map: npt.NDArray[np.uint8]
    foreground: npt.NDArray[np.float32] | None
    latency_ms: dict[str, float]
    plain_foreground: npt.NDArray[np.float32] | None = None

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether each score is above its level, (ways,) bool."""
        return self.scores > self.levels
