"""A frame with its result drawn in, for all sinks that show it."""

import threading

from fsvit_edge.fewshot.overlay import draw
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.support_masks import Image


class Drawing:
    """The picture of one frame: the sink that asks first draws it, in its thread, and the others get the same one."""

    def __init__(self) -> None:
        self._drawing = threading.Lock()
        self._drawn: tuple[Prediction, Image] | None = None

    def of(self, image: Image, prediction: Prediction) -> Image:
        """Return the drawn frame, (H, W, 3) uint8 RGB; it is read-only."""
        with self._drawing:
            if self._drawn is None or self._drawn[0] is not prediction:
                picture = draw(image, prediction)
                picture.flags.writeable = False
                self._drawn = (prediction, picture)
            return self._drawn[1]
