"""Snapshots: one picture for each appearance of a class, at first as it appeared, in the end the best one."""

import re
from collections import OrderedDict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from fsvit_edge.fewshot.overlay import draw
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.live.events import Event
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.sinks.base import Sink
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.pictures import write_image

_OURS = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[\w-]+\.jpg")
_NAME_LETTERS = 40  # at most 160 bytes: a temporary file's name is longer, and 255 is the limit


class SnapshotSink(Sink):
    """Pictures in an existing folder, named by the time of the appearance (UTC) and the class.

    Of those named like ours, the `keep` newest remain. A full disk is trouble, not a failure.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._shown: dict[str, Path] = {}  # the picture of each class that is present
        # By age, because a device without a battery starts in 1970.
        earlier = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]
        self._written = OrderedDict.fromkeys(sorted(earlier, key=lambda path: path.stat().st_mtime))

    def write(self, frame: Frame, prediction: Prediction) -> None:
        """Only events have pictures."""

    def tell(self, event: Event) -> None:
        """Write the picture of an appearance, or replace it by the best one."""
        path = self._shown.pop(event.name, None) or self._new_path(event)
        if event.kind == "appeared":
            self._shown[event.name] = path
        try:
            write_image(path, draw_event(event))
            self._written[path] = None
            while len(self._written) > self._keep:
                self._written.popitem(last=False)[0].unlink(missing_ok=True)
        except FsvitEdgeError as error:
            reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
            self.trouble = (
                f"No snapshot can be written to {self._folder}: {reason}; it is tried again at the next event."
            )
        except OSError as error:
            self.trouble = f"Old pictures in {self._folder} cannot be deleted: {error.strerror}."
        else:
            self.trouble = ""

    def _new_path(self, event: Event) -> Path:
        at = datetime.fromtimestamp(event.wall_time_s, timezone.utc)
        name = re.sub(r"[^\w-]", "_", event.name)[:_NAME_LETTERS]
        stem = f"{at:%Y%m%dT%H%M%S}.{at.microsecond // 1000:03d}Z-{name}"
        path, number = self._folder / f"{stem}.jpg", 2
        while path.exists() or path in self._shown.values():  # two names that differ only in other characters
            path, number = self._folder / f"{stem}-{number}.jpg", number + 1
        return path

    def _finish(self) -> None:
        """Every picture is already complete."""


def draw_event(event: Event, way: int = 0) -> Image:
    """Draw outline, name and score of the class on the picture of the best sighting, in the color of class `way`."""
    best = event.best
    labels = np.where(best.mask, way + 1, 0).astype(np.uint8)
    scores = np.full(way + 1, best.score, np.float32)
    present = np.arange(way + 1) == way  # as it was, even if this score alone would not say so
    names = (event.name,) * (way + 1)
    return draw(best.picture, Prediction(names, scores, scores, labels, None, {}, steady_present=present))
