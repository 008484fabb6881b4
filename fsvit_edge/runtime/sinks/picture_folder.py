"""Pictures with the result drawn in, a file a frame."""

from pathlib import Path

from fsvit_edge.runtime.frame import Frame
from fsvit_edge.runtime.overlay import draw
from fsvit_edge.runtime.pictures import write_image
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.sinks.base import Sink


class PictureSink(Sink):
    """Files named by the frame's index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """See `Sink.write`."""
        write_image(self._folder / f"frame_{frame.index:06d}.jpg", draw(frame.image, prediction))

    def _finish(self) -> None:
        """Every picture is complete in itself."""
