"""What the HTTP API takes and returns: JSON objects, and the media types of everything else."""

from typing import Annotated, Any

from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from fsvit_edge.fewshot.bank import LevelSource
from fsvit_edge.live.events import EventKind
from fsvit_edge.live.health import SourceState as SourceCondition

BOUNDARY = "frame"

_Pixel = Annotated[float, Field(strict=True, gt=-1e6, lt=1e6)]
_Share = Annotated[float, Field(strict=True)]
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
        default=None, description="Base64 of a PNG of the frame's size, read as a mask file is: white is the object."
    )


class EnrollRequest(MarkedFrame):
    """A frozen frame to enroll. Without a box or a mask, the network guesses which part of the frame is meant."""


class RejectRequest(MarkedFrame):
    """A frozen frame that is not the class. Without a box or a mask, what counts is where the class is found in it."""


class Zone(BaseModel):
    """A part of the frame by its corners."""

    name: str = Field(description="1 to 80 printable characters.")
    corners: list[tuple[_Share, _Share]] = Field(
        description="3 to 100 (x, y), in order around the zone, as shares of the frame's width and height, 0 to 1."
    )


class RenameRequest(BaseModel):
    """The old and the new name of a class."""

    name: str
    new_name: str


class FrozenFrame(BaseModel):
    """A frozen frame and its size in pixels."""

    id: str
    width: int
    height: int
    earlier: int = Field(description="Frames of the same moment before it; none while nobody watches the stream.")
    later: int = Field(description="Frames of the same moment after it.")


class SupportState(BaseModel):
    """One picture that a class was enrolled from, or that a person said is not the class."""

    has_mask: bool = Field(description="False if it was enrolled by name only.")
    key: str = Field(description="Checksum of its thumbnail.")


class InstanceState(BaseModel):
    """A connected part of a class's outline; things that touch are one part."""

    box_xyxy: tuple[int, int, int, int] = Field(description="In pixels of the frame; right and bottom are exclusive.")
    area: float = Field(description="Share of the frame, 0 to 1.")


class FoundClass(BaseModel):
    """A class, and its result on a frame; in the state, null until a frame is processed with it."""

    name: str
    color: str = Field(description="#rrggbb")
    score: float | None = Field(default=None, description="Probability that the class is present.")
    raw_score: float | None = Field(default=None, description="The same before negatives and other classes lowered it.")
    level: float | None = Field(default=None, description="The class is present if its score is above this.")
    present: bool | None = None
    area: float | None = Field(default=None, description="Share of the frame, 0 to 1.")
    instances: list[InstanceState] = Field(default=[], description="Its parts if it is present, the largest first.")


class FrameAnswer(BaseModel):
    """What is found in a frozen frame."""

    revision: str = Field(description="That of the state with the same classes: if it has another, ask again.")
    classes: list[FoundClass]


class ClassState(FoundClass):
    """A class, and its result on the newest frame."""

    level_source: LevelSource = Field(description="Where the level comes from.")
    supports: list[SupportState]
    negatives: list[SupportState] = Field(description="Pictures that are not the class.")


class ZoneState(Zone):
    """A part of the frame, and what is in it."""

    classes: list[str] = Field(description="The classes that are in it in the newest frame.")


class FrameState(BaseModel):
    """The newest frame."""

    sequence: int
    size_hw: tuple[int, int]
    is_frozen: bool = Field(description="Whether the camera repeats the same picture.")


class EventsState(BaseModel):
    """Whether the run tells what appears and leaves, and whether there is news."""

    are_told: bool = Field(description="Whether answers are steady; false before the first frame.")
    newest: int = Field(description="Number of the newest event; 0 before the first, and again in a new run.")


class PageEvent(BaseModel):
    """A class has appeared, or has left."""

    number: int = Field(description="From 1, in the order in which they were told.")
    event: EventKind
    name: str
    color: str = Field(description="#rrggbb, as in the picture.")
    source: str
    wall_time_s: float = Field(description="When the frame that decided it was captured, since 1970 (UTC).")
    monotonic_s: float = Field(description="The same on a clock that never jumps.")
    duration_s: float | None = Field(
        default=None, description="Seconds from the appearance to the last frame above the level; null if it appeared."
    )
    best_score: float = Field(description="Of the best frame so far, which the picture shows.")
    best_box_xyxy: tuple[int, int, int, int] | None = Field(description="In pixels of that frame.")
    best_sequence: int = Field(description="Index of that frame.")
    zones: list[str] = Field(description="The zones in which it appeared, or if it left, all in which it was.")


class BankState(BaseModel):
    """The file that the classes are saved to."""

    file: str
    is_there: bool = Field(description="Whether there is such a file.")
    is_saved: bool = Field(description="Whether the file has these classes; true if there are none to save.")
    is_followed: bool = Field(description="Whether the classes come from there, and cannot be changed here.")


class ReviewCounts(BaseModel):
    """The doubtful frames that are kept."""

    doubtful: int = Field(description="Frames without a verdict.")
    judged: int = Field(description="Frames with a verdict.")


class SceneCheck(BaseModel):
    """How far learning the empty scene is; all its pictures are taken."""

    number: int = Field(description="Of the picture that is scored now, from 1.")
    pictures: int


class SourceState(BaseModel):
    """One of several sources."""

    name: str
    state: SourceCondition
    is_frozen: bool = Field(description="Whether the camera repeats the same picture.")
    has_ended: bool = Field(description="Whether the run goes on without it; its state stays what it was.")


class State(BaseModel):
    """Everything that the page shows."""

    health: dict[str, Any] | None = Field(description="Same as /health, of the source; null until the first report.")
    source: str = Field(description="Of several sources, the one that this is about; else empty.")
    sources: list[SourceState] = Field(description="The sources, if there are several.")
    frame: FrameState | None
    classes: list[ClassState]
    zones: list[ZoneState]
    zones_are_fixed: bool = Field(description="Whether run --zone gave the zones, so that they cannot be changed here.")
    scene_frames: int = Field(description="Pictures of the empty scene.")
    scene_check: SceneCheck | None = Field(description="null while no pictures of the empty scene are scored.")
    false_alarm_bound: float = Field(
        description="Share of frames like these, at most, in which a class is falsely found, in 95 of 100 cases."
    )
    events: EventsState
    run_id: str = Field(description="Differs in a new run.")
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
