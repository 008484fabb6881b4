"""Routes against false alarms: the empty scene, and "this is not it"."""

import itertools
from collections.abc import Callable

from fastapi import Response

from fsvit_edge.fewshot.prediction import Rejection
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.page import false_alarms, schemas
from fsvit_edge.page.state import Index, Page, make_router, marked, thumbnail
from fsvit_edge.runtime.errors import FsvitEdgeError

router = make_router()


@router.post("/api/negatives", status_code=201)
def reject(page: Page, asked: schemas.RejectRequest) -> Rejection:
    """Say that a frozen frame, a box or a mask in it, or where the class is found in it, is not the class."""
    image, mask = marked(page, asked)
    return page.model.update(lambda model: false_alarms.reject(model, asked.name, image, mask))


@router.get("/api/negatives.png", response_class=schemas.PngResponse)
def get_negative(page: Page, name: str, index: Index, masked: bool = False) -> Response:
    """Get a thumbnail of one negative, counted from 0; with masked=true, everything outside its mask is dimmed."""
    return thumbnail(name, page.model.enrolled.negatives.get(name, ()), index, "negative", masked)


@router.delete("/api/negatives", status_code=204)
def remove_negative(page: Page, name: str, index: Index) -> None:
    """Remove one negative of a class, counted from 0."""
    page.model.update(lambda model: model.remove_negative(name, index))


@router.post("/api/scene", status_code=201)
def learn_scene(page: Page, source: str = "") -> false_alarms.SceneAnswer:
    """Learn the empty scene from the next 16 frames, over about 4 s, and report which classes it looks like.

    In a run of several sources, from the frames of one: the first by default.
    """
    page.model.refuse_changes()
    if not page.learning_scene.acquire(blocking=False):
        raise FsvitEdgeError("The empty scene is being learned already; wait until that is done.")
    try:
        images = page.hub.sample(false_alarms.SCENE_FRAMES, false_alarms.SCENE_S, source)
        numbers = itertools.count(1)

        def update(request: Callable[[FewShotModel], false_alarms.SceneAnswer]) -> false_alarms.SceneAnswer:
            page.scene_check = schemas.SceneCheck(number=next(numbers), pictures=len(images))
            return page.model.update(request)

        return false_alarms.learn_scene(update, images)
    finally:
        page.scene_check = None
        page.learning_scene.release()


@router.delete("/api/scene", status_code=204)
def forget_scene(page: Page) -> None:
    """Forget the empty scene; the levels are those of the classes again."""
    page.model.update(lambda model: model.forget_scene())
