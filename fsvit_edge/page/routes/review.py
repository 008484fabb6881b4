"""Routes of the review: doubtful frames, what a person says of them, and what that would teach the model."""

from fastapi import Response

from fsvit_edge.fewshot.review_items import ReviewItem
from fsvit_edge.page import review_schemas, schemas
from fsvit_edge.page.state import Page, PageState, make_router
from fsvit_edge.runtime.errors import InputError

router = make_router()


@router.get("/api/review")
def get_review(page: Page) -> review_schemas.DoubtfulFrames:
    """List the doubtful frames that are kept, at most 50, oldest first, with the verdicts in the bank's file."""
    page.read_verdicts()
    return review_schemas.DoubtfulFrames(items=[review_schemas.doubtful_frame(one) for one in page.model.review])


@router.get("/api/review/{number}.jpg", response_class=schemas.JpegResponse)
def get_doubtful_frame(page: Page, number: int) -> Response:
    """Get a doubtful frame, small and square, as the network sees it."""
    return schemas.JpegResponse(_item(page, number).jpeg)


@router.put("/api/review/{number}")
def judge(page: Page, number: int, asked: review_schemas.VerdictRequest) -> review_schemas.VerdictAnswer:
    """Say whether the class is there; written to the bank's file before the answer if the file has the class."""
    _check_same(_item(page, number), asked.wall_time_s)
    item, is_saved = page.judge(number, asked.verdict)
    answer = review_schemas.VerdictAnswer(number=number, verdict=item.verdict, is_saved=is_saved)
    if item.verdict is not None:
        now = page.model.read(lambda model: model.review.check_item(item))
        answer.score, answer.present, answer.contradicts = round(now.score, 4), now.is_present, now.contradicts
    return answer


@router.post("/api/review-trials", status_code=201)
def try_to_learn(page: Page, asked: review_schemas.TrialRequest) -> review_schemas.TrialReport:
    """Try to learn from a judged frame, and report what that would alter on all verdicts; nothing is changed yet.

    After "no", the frame becomes a negative of the class; after "yes", a picture of it, by the name alone.
    """
    _check_same(_item(page, asked.number), asked.wall_time_s)
    return review_schemas.trial_report(page.trials.start(asked.number))


@router.post("/api/review-trials/{id}/keep", status_code=204)
def keep_trial(page: Page, id: str) -> None:  # noqa: A002 - the path names it
    """Keep what was tried; refused if the classes changed since."""
    page.model.update(lambda model: page.trials.keep(model, id))


@router.delete("/api/review-trials/{id}", status_code=204)
def discard_trial(page: Page, id: str) -> None:  # noqa: A002 - the path names it
    """Discard what was tried."""
    page.trials.discard(id)


def _item(page: PageState, number: int) -> ReviewItem:
    item = next((one for one in page.model.review if one.number == number), None)
    if item is None:
        raise InputError(
            f"There is no doubtful frame {number!s:.20}; it made room for a newer one, or its class was removed."
        )
    return item


def _check_same(item: ReviewItem, wall_time_s: float | None) -> None:
    """Refuse a number that was given to another frame since the frames were listed."""
    if wall_time_s is not None and not abs(wall_time_s - item.wall_time_s) <= 0.01:  # NaN is another frame, too
        raise InputError(
            f"Frame {item.number} is another one now, because classes were removed or loaded; list the frames again."
        )
