"""What the HTTP API takes and returns: JSON objects, and the media types of everything else."""

from typing import Annotated, Any

from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from fsvit_edge.fewshot.bank import LevelSource

BOUNDARY = "frame"

_Pixel = Annotated[float, Field(strict=True, gt=-1e6, lt=1e6)]
Box = tuple[_Pixel, _Pixel, _Pixel, _Pixel]
_BOX_HELP = "Left, top, right, bottom in pixels of the frozen frame; right and bottom are exclusive."


class BoxRequest(BaseModel):
    """A box on a frozen frame."""

    box_xyxy: Box = Field(description=_BOX_HELP)


class MarkedFrame(BaseModel):
    """A frozen frame for a class, with a box or a mask, or neither."""

    name: str = Field(description="1 to 80 printable characters.")
    frame_id: str
    box_xyxy: Box | None = Field(default=None, description=_BOX_HELP)
    mask_png: str | None = Field(
        default=None, description="Base64 of a grayscale PNG of the frame's size; object above 127."
    )


class EnrollRequest(MarkedFrame):
    """A frozen frame to enroll. Without a box or a mask, the network guesses which part of the frame is meant."""


class RejectRequest(MarkedFrame):
    """A frozen frame that is not the class. Without a box or a mask, what counts is where the class is found in it."""


class RenameRequest(BaseModel):
    """The old and the new name of a class."""

    name: str
    new_name: str


class FrozenFrame(BaseModel):
    """A frozen frame and its size in pixels."""

    id: str
    width: int
    height: int


class SupportState(BaseModel):
    """One picture that a class was enrolled from, or that a person said is not the class."""

    has_mask: bool = Field(description="False if it was enrolled by name only.")


class ClassState(BaseModel):
    """A class, and its result on the newest frame; null until a frame is processed with it."""

    name: str
    color: str = Field(description="#rrggbb")
    score: float | None = Field(default=None, description="Probability that the class is present.")
    raw_score: float | None = Field(default=None, description="The same before negatives and other classes lowered it.")
    level: float | None = Field(default=None, description="The class is present if its score is above this.")
    level_source: LevelSource = Field(description="Where the level comes from.")
    present: bool | None = None
    area: float | None = Field(default=None, description="Share of the frame, 0 to 1.")
    supports: list[SupportState]
    negatives: list[SupportState] = Field(description="Pictures that are not the class.")


class FrameState(BaseModel):
    """The newest frame."""

    sequence: int
    size_hw: tuple[int, int]
    is_frozen: bool = Field(description="Whether the camera repeats the same picture.")


class BankState(BaseModel):
    """The file that the classes are saved to."""

    file: str
    is_saved: bool


class ReviewCounts(BaseModel):
    """The doubtful frames that are kept."""

    doubtful: int = Field(description="Frames without a verdict.")
    judged: int = Field(description="Frames with a verdict.")


class State(BaseModel):
    """Everything that the page shows."""

    health: dict[str, Any] | None = Field(description="Same as /health; null until the first report.")
    frame: FrameState | None
    classes: list[ClassState]
    scene_frames: int = Field(description="Pictures of the empty scene.")
    false_alarm_bound: float = Field(
        description="Share of frames like these, at most, in which a class is falsely found, in 95 of 100 cases."
    )
    review: ReviewCounts
    revision: str = Field(description="Changes when the classes change.")
    bank: BankState


class Error(BaseModel):
    """Why a request failed."""

    error: str


class JpegResponse(Response):
    """One JPEG."""

    media_type = "image/jpeg"


class PngResponse(Response):
    """One PNG."""

    media_type = "image/png"


class BankResponse(Response):
    """A bank file."""

    media_type = "application/octet-stream"


class JpegStreamResponse(StreamingResponse):
    """JPEGs without end."""

    media_type = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
