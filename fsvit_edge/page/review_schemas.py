"""What the API takes and returns for the review of doubtful frames."""

from pydantic import BaseModel, Field

from fsvit_edge.fewshot.review_items import ReviewItem, Verdict
from fsvit_edge.page.trials import Trial


class DoubtfulFrame(BaseModel):
    """A frame in which the model was not sure of a class."""

    number: int
    name: str = Field(description="The class.")
    verdict: Verdict | None = Field(description='"yes": the class is there, "no": it is not; null: not judged yet.')
    score: float = Field(description="When the frame was kept: the probability that the class is present.")
    level: float = Field(description="The class was present if its score was above this.")
    present: bool = Field(description="What the model answered then.")
    wall_time_s: float = Field(description="When the frame was captured, in seconds since 1970.")


class DoubtfulFrames(BaseModel):
    """The doubtful frames, oldest first."""

    items: list[DoubtfulFrame]


class VerdictRequest(BaseModel):
    """What a person says of a doubtful frame."""

    verdict: Verdict | None = Field(description="null takes a verdict back.")
    wall_time_s: float | None = Field(
        default=None, description="As listed: refuses the verdict if the number is that of another frame by now."
    )


class VerdictAnswer(BaseModel):
    """A verdict that was taken, and what the model answers to the frame now."""

    number: int
    verdict: Verdict | None
    is_saved: bool = Field(
        description="Whether the verdict is in the bank's file; otherwise it is saved with the classes."
    )
    score: float | None = Field(
        default=None, description="The score of the class on the frame now; null without a verdict."
    )
    present: bool | None = Field(default=None, description="What the model answers now.")
    contradicts: bool = Field(default=False, description="Whether the answer of now contradicts the verdict.")


class TrialRequest(BaseModel):
    """The judged frame to learn from."""

    number: int
    wall_time_s: float | None = Field(
        default=None, description="As listed: refuses the trial if the number is that of another frame by now."
    )


class CheckedFrame(BaseModel):
    """A judged frame, and what the model answers to it before and after a change."""

    number: int
    name: str
    verdict: Verdict
    wall_time_s: float
    score_before: float
    present_before: bool
    score: float
    present: bool
    has_changed: bool
    contradicts: bool = Field(description="Whether the answer after the change contradicts the verdict.")


class TrialReport(BaseModel):
    """A change that is not kept yet, and what it alters."""

    id: str = Field(description="To keep or discard it.")
    name: str = Field(description="The class that changes.")
    summary: str = Field(description="What it alters on all verdicts, in a sentence.")
    checked: int = Field(description="Frames with a verdict.")
    changed: int = Field(description="Those whose answer changes.")
    contradicting: int = Field(description="Those whose answer contradicts the verdict after the change.")
    frame: CheckedFrame = Field(description="The frame that it learns from.")
    changes: list[CheckedFrame] = Field(description="The frames whose answer changes.")


def doubtful_frame(item: ReviewItem) -> DoubtfulFrame:
    """Describe a doubtful frame."""
    return DoubtfulFrame(**item.to_dict())


def trial_report(trial: Trial) -> TrialReport:
    """Describe a trial."""
    check = trial.check
    return TrialReport(
        id=trial.id,
        name=trial.item.name,
        summary=str(check),
        checked=len(check.items),
        changed=len(check.changed),
        contradicting=len(check.contradicting),
        frame=next(CheckedFrame(**one.to_dict()) for one in check.items if one.item is trial.item),
        changes=[CheckedFrame(**one.to_dict()) for one in check.changed],
    )
