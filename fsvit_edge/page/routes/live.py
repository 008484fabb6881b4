"""Routes that show the run: state, pictures, frozen frames and health."""

from collections.abc import AsyncIterator

import numpy as np
import numpy.typing as npt
from fastapi import Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import generate_latest

from fsvit_edge.fewshot.index_mask import answer_png
from fsvit_edge.fewshot.overlay import draw
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live.health import Health
from fsvit_edge.page import schemas
from fsvit_edge.page.background import give_memory_back
from fsvit_edge.page.frame_hub import Frozen, encode_jpeg, encode_png
from fsvit_edge.page.metrics import HealthMetrics
from fsvit_edge.page.shown_state import found_classes, revision_text
from fsvit_edge.page.state import FILE_BODY, FileBody, Page, PageState, make_router, mask_of_box
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.pictures import decode_image, thumbnail

router = make_router()
_NEWEST = "newest"  # in place of the id of a frozen frame
_UNNAMED = "The picture"
_LONGEST_SIDE_PX = 4096  # Safari on a phone draws on no canvas of more than 4096 x 4096 pixels


@router.get("/api/state", response_model=schemas.State)
def get_state(page: Page, source: str = "") -> Response:
    """Get everything the page shows: health, newest frame, classes with scores and supports, and the bank.

    In a run of several sources, health, frame, scores and what is in zones are those of one: the first by default.
    """
    shown = page.hub.shown(source)
    return Response(page.shown.json(shown, page.seen), media_type="application/json")


@router.get("/api/stream.mjpg", response_class=schemas.JpegStreamResponse)
async def watch(page: Page, source: str = "") -> schemas.JpegStreamResponse:
    """Stream the frames as JPEGs without end, with present classes tinted; a slow reader gets fewer frames.

    In a run of several sources, those of one: the first by default.
    """
    pictures = page.hub.watch(source)
    # Takes a place before the answer starts, so that a refusal is still possible. The first picture may take hours to
    # come, and who goes meanwhile is noticed only while an answer is sent.
    await anext(pictures)

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield f"--{schemas.BOUNDARY}\r\n".encode()
            async for jpeg in pictures:
                yield _part(jpeg)
        finally:
            await pictures.aclose()

    return schemas.JpegStreamResponse(parts())


@router.post("/api/frames", status_code=201)
def freeze(page: Page, source: str = "", beside: str = "", step: int = -1) -> schemas.FrozenFrame:
    """Freeze the newest frame, of several sources that of one, to enroll from it.

    With `beside`, the id of a frozen frame: freeze one of the same moment, so many steps from it, -1 is the one before.
    """
    return _described(page.hub.step(beside, step) if beside else page.hub.freeze(source))


@router.put("/api/frames", status_code=201, openapi_extra=FILE_BODY)
def take_picture(page: Page, data: FileBody, name: str = _UNNAMED) -> schemas.FrozenFrame:
    """Take a picture file in place of a frozen frame, read as `enroll` reads it; errors call it by its name.

    It is upright, as its EXIF orientation says, and made smaller if a side is longer than 4096 pixels.
    """
    try:
        return _described(page.hub.keep(thumbnail(decode_image(data, name.strip() or _UNNAMED), _LONGEST_SIDE_PX)))
    finally:
        give_memory_back()


@router.get("/api/frames/{id}.jpg", response_class=schemas.JpegResponse)
def get_frozen(page: Page, id: str) -> Response:  # noqa: A002 - the path names it
    """Get a frozen frame; the last four are kept."""
    return schemas.JpegResponse(encode_jpeg(page.hub.frozen(id)))


@router.get("/api/frames/{id}/answer")
def get_answer(page: Page, id: str) -> schemas.FrameAnswer:  # noqa: A002 - the path names it
    """Get what is found in a frozen frame, answered now, on its own: the score of each class, its parts if present."""
    revision, prediction = page.answers.of(id, page.hub.frozen(id))
    return schemas.FrameAnswer(revision=revision_text(page.run_id, revision), classes=found_classes(prediction))


@router.get("/api/frames/{id}/overlay.jpg", response_class=schemas.JpegResponse)
def get_overlay(page: Page, id: str, source: str = "") -> Response:  # noqa: A002 - the path names it
    """Get a frozen frame with what is found in it drawn in; the id "newest" stands for the newest frame of a source.

    The newest frame has the answer of the run; a frozen one is answered now, on its own.
    """
    return schemas.JpegResponse(encode_jpeg(draw(*_answered(page, id, source))))


@router.get("/api/frames/{id}/mask.png", response_class=schemas.PngResponse)
def get_index_mask(page: Page, id: str, source: str = "") -> Response:  # noqa: A002 - the path names it
    """Get the same answer as an index mask: a pixel is 0 for background, 1 for the first class, 2 for the second."""
    _, prediction = _answered(page, id, source)
    return schemas.PngResponse(answer_png(prediction))


@router.post("/api/frames/{id}/mask", response_class=schemas.PngResponse)
def preview_mask(page: Page, id: str, asked: schemas.BoxRequest) -> Response:  # noqa: A002 - the path names it
    """Preview the mask that a box would enroll: white on the object."""
    mask = mask_of_box(page, page.hub.frozen(id), asked.box_xyxy)
    return schemas.PngResponse(encode_png(mask.astype(np.uint8) * 255))


@router.get("/health", response_model=Health)
def get_health(page: Page) -> JSONResponse:
    """Get the health of the run; 503 if a source is not live: `not_live` names it, and `sources` has its message."""
    health = page.hub.health
    if health is None:
        raise FsvitEdgeError("The run has just started; try again in a second.")
    return JSONResponse(health.to_dict(), 200 if health.source_status.state == "live" else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def get_metrics(page: Page) -> Response:
    """Get the health of the run in the format of Prometheus, in seconds and bytes."""
    text = b"" if page.hub.health is None else generate_latest(HealthMetrics(page.hub.health))
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _described(frozen: Frozen) -> schemas.FrozenFrame:
    height, width, _ = frozen.image.shape
    return schemas.FrozenFrame(id=frozen.id, width=width, height=height, earlier=frozen.earlier, later=frozen.later)


def _answered(page: PageState, frame_id: str, source: str) -> tuple[npt.NDArray[np.uint8], Prediction]:
    """Return a frozen frame, (H, W, 3) uint8 RGB, or the newest one, and what is found in it."""
    if frame_id != _NEWEST:
        image = page.hub.frozen(frame_id)
        return image, page.answers.of(frame_id, image)[1]
    newest = page.hub.newest(source)
    if newest is None:
        raise FsvitEdgeError("There is no frame yet; wait for the camera.")
    frame, prediction = newest
    return frame.image, prediction


def _part(jpeg: bytes) -> bytes:
    # The next boundary follows at once, because a browser shows a part only when it has ended.
    header = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    return header.encode() + jpeg + f"\r\n--{schemas.BOUNDARY}\r\n".encode()
