"""What a run asks of its model, whether it computes here or in a box."""

from typing import Protocol

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.steady import SteadyAnswers
from fsvit_edge.fewshot.support_masks import Image
from fsvit_edge.remote.status import BoxStatus
from fsvit_edge.runtime.engines.choose import EngineChoice


class RunModel(Protocol):
    """The model of a run; only its thread calls the methods, any may read the properties."""

    @property
    def name(self) -> str:
        """Name of the network."""

    @property
    def choice(self) -> EngineChoice:
        """The engine and precision that run it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the enrolled classes."""

    @property
    def scene_frames(self) -> int:
        """Pictures of the empty scene that the bank has."""

    @property
    def box(self) -> BoxStatus | None:
        """State of the box that answers; None if the model is here."""

    @property
    def processing(self) -> int | None:
        """Number of the frame that is processed and may hang; None if there is none."""

    @property
    def steps(self) -> int:
        """Grows with each step of a frame's work."""

    @property
    def is_first_frame(self) -> bool:
        """Whether no frame has been processed since the classes changed."""

    def predict(self, rgb: Image, over_time: SteadyAnswers | None = None) -> Prediction | None:
        """Process one frame, (H, W, 3) uint8 RGB; None if nobody answers, for now."""

    def run_requests(self) -> None:
        """Run the requests of other threads, between two frames."""

    def close(self) -> None:
        """Refuse all further requests, because the loop has ended; a second call does nothing."""
