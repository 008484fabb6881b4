"""What is found in frozen frames, by the classes of the moment."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.shared_model import LiveModel


class FrozenAnswers:
    """Answers frozen frames, each on its own.

    The latest answer is kept until the classes change: what the page says, draws and downloads of a picture is one
    answer, and a large network takes seconds for it.

    Args:
        model: The model of the run.
    """

    def __init__(self, model: LiveModel) -> None:
        self._model = model
        self._latest: tuple[str, int, Prediction] | None = None  # replaced as a whole: requests run in threads

    def of(self, frame_id: str, image: npt.NDArray[np.uint8]) -> tuple[int, Prediction]:
        """Return what is found in a frozen frame, (H, W, 3) uint8 RGB, and `LiveModel.revision` of the classes.

        Raises:
            FsvitEdgeError: As `LiveModel.read`.
        """
        latest = self._latest
        if latest is None or latest[:2] != (frame_id, self._model.revision):
            latest = self._latest = (frame_id, *self._model.read(lambda model: self._answer(model, image)))
        return latest[1:]

    def _answer(self, model: FewShotModel, image: npt.NDArray[np.uint8]) -> tuple[int, Prediction]:
        prediction, zones = model.predict(image), self._model.zones_of_run
        return self._model.revision, replace(prediction, zones=zones) if zones else prediction
