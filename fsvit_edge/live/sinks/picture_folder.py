"""A folder with one picture per frame, with the result drawn in."""

import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health
from fsvit_edge.live.sinks.base import RecordingOptions, Sink
from fsvit_edge.runtime.overlay import draw, draw_state
from fsvit_edge.runtime.pictures import write_image
from fsvit_edge.runtime.prediction import Prediction

_OURS = re.compile(r"frame_[0-9]{6,}(_[a-z]+)?\.jpg")


class PictureSink(Sink):
    """Pictures named by the index of the frame; when a source is lost, its last picture is saved again in gray.

    Args:
        folder: An existing folder.
        options: How many pictures to keep.
    """

    def __init__(self, folder: Path, options: RecordingOptions) -> None:
        self._folder = folder
        self._keep = options.keep
        self._last: Frame | None = None
        # By age, because the numbers start again with every run.
        earlier = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)] if options.keep else []
        self._written = OrderedDict.fromkeys(sorted(earlier, key=lambda path: path.stat().st_mtime))

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Save the picture of a frame."""
        self._last = frame
        self._save(f"frame_{frame.index:06d}.jpg", draw(frame.image, prediction))

    def _write_state(self, health: Health) -> None:
        status = health.source_status
        if status.state != "live" and self._last is not None:
            picture = draw_state(self._last.image, status.state, status.message)
            self._save(f"frame_{self._last.index:06d}_{status.state}.jpg", picture)

    def _save(self, name: str, picture: npt.NDArray[np.uint8]) -> None:
        path = self._folder / name
        write_image(path, picture)
        if self._keep is None:
            return
        self._written[path] = None
        self._written.move_to_end(path)
        while len(self._written) > self._keep:
            oldest, _ = self._written.popitem(last=False)
            oldest.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Every picture is already complete."""
