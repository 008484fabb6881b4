"""The page's HTTP API: its routes, and the JSON that they take and return. /docs and /openapi.json describe it."""

import secrets
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from fsvit_edge.fewshot.cached_support import ClassSupports
from fsvit_edge.fewshot.overlay import PALETTE
from fsvit_edge.fewshot.prediction import Rejection
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.scene import false_alarm_bound
from fsvit_edge.live.health import Health
from fsvit_edge.live.shared_model import REQUEST_TIMEOUT_S, LiveModel
from fsvit_edge.page import false_alarms, schemas
from fsvit_edge.page.enrollment import FrameReport, enroll
from fsvit_edge.page.frame_hub import FrameHub, decode_mask, encode_jpeg, encode_png
from fsvit_edge.page.metrics import HealthMetrics
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError

_STATIC = Path(__file__).parent / "static"
_DIMMED = 0.25
_SCENE_TIMEOUT_S = 120.0  # the encoder runs up to 32 times
_ABOUT = (
    "Errors are {error: one sentence}: 400 unusable input, 401 no access token, 403 request from another site, "
    "404 no such path, 405 wrong method, 408 the body took too long, 409 a bank that does not fit, 413 too large, "
    "421 unknown host name, 503 not available now."
)

_Answer = TypeVar("_Answer")


@dataclass
class PageState:
    """What the routes share."""

    hub: FrameHub
    model: LiveModel  # changes to it wait for the end of a frame
    bank_path: Path  # the classes are saved here; a client cannot choose it
    is_saved: bool = True  # whether no class has changed since then
    # A page left open across a restart of the run must not take the new classes for the ones it shows.
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))
    learning_scene: threading.Lock = field(default_factory=threading.Lock)

    def update(self, request: Callable[[FewShotModel], _Answer], timeout_s: float = REQUEST_TIMEOUT_S) -> _Answer:
        """Change the classes; raises like `LiveModel.update`."""
        answer = self.model.update(request, timeout_s)
        self.is_saved = False
        return answer


# ------------------------------------------------------------------------------------------------------------- routes


async def _page_state(request: Request) -> PageState:
    state: PageState = request.app.state.page
    return state


async def _raw_body(request: Request) -> bytes:
    return await request.body()


# Plain functions run in threads, so a request that waits for the model holds up no other.
_Page = Annotated[PageState, Depends(_page_state)]
_Index = Annotated[int, Query(ge=0)]
_ERROR = {"description": "Failed.", "content": {"application/json": {"schema": schemas.Error.model_json_schema()}}}
_router = APIRouter(responses={"default": _ERROR})


@_router.get("/api/state")
def get_state(page: _Page) -> schemas.State:
    """Get everything the page shows: health, newest frame, classes with scores and supports, and the bank."""
    health, newest, enrolled = page.hub.health, page.hub.newest, page.model.enrolled
    classes = {}
    for index, name in enumerate(enrolled.supports):
        classes[name] = schemas.ClassState(
            name=name,
            color="#{:02x}{:02x}{:02x}".format(*PALETTE[index % len(PALETTE)]),
            level_source=enrolled.level_sources[name],
            supports=_support_states(enrolled.supports[name]),
            negatives=_support_states(enrolled.negatives[name]),
        )
    frame = None
    if newest is not None:
        shown, prediction = newest
        size_hw = (shown.image.shape[0], shown.image.shape[1])
        frame = schemas.FrameState(sequence=shown.index, size_hw=size_hw, is_frozen=shown.is_frozen)
        for result in prediction.results:
            if one := classes.get(result.name):
                one.score, one.raw_score = round(result.score, 4), round(result.raw_score, 4)
                one.level = round(result.level, 4)
                one.present, one.area = result.is_present, round(result.area, 4)
    return schemas.State(
        health=None if health is None else health.to_dict(),
        frame=frame,
        classes=list(classes.values()),
        scene_frames=enrolled.scene_frames,
        false_alarm_bound=round(false_alarm_bound(enrolled.scene_frames), 4),
        revision=f"{page.run_id}-{page.model.revision}",
        bank=schemas.BankState(file=str(page.bank_path), is_saved=page.is_saved),
    )


@_router.get("/api/stream.mjpg", response_class=schemas.JpegStreamResponse)
async def watch(page: _Page) -> schemas.JpegStreamResponse:
    """Stream the frames as JPEGs without end, with present classes tinted; a slow reader gets fewer frames."""
    pictures = page.hub.watch()
    first = await anext(pictures, None)  # before the answer starts, so that a refusal is still possible

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield f"--{schemas.BOUNDARY}\r\n".encode()
            if first is not None:
                yield _part(first)
            async for jpeg in pictures:
                yield _part(jpeg)
        finally:
            await pictures.aclose()

    return schemas.JpegStreamResponse(parts())


@_router.post("/api/frames", status_code=201)
def freeze(page: _Page) -> schemas.FrozenFrame:
    """Freeze the newest frame, to enroll from it."""
    frame_id, image = page.hub.freeze()
    return schemas.FrozenFrame(id=frame_id, width=image.shape[1], height=image.shape[0])


@_router.get("/api/frames/{id}.jpg", response_class=schemas.JpegResponse)
def get_frozen(page: _Page, id: str) -> Response:  # noqa: A002 - the path names it
    """Get a frozen frame; the last four are kept."""
    return schemas.JpegResponse(encode_jpeg(page.hub.frozen(id)))


@_router.post("/api/frames/{id}/mask", response_class=schemas.PngResponse)
def preview_mask(page: _Page, id: str, asked: schemas.BoxRequest) -> Response:  # noqa: A002 - the path names it
    """Preview the mask that a box would enroll: white on the object."""
    mask = _mask_of_box(page, page.hub.frozen(id), asked.box_xyxy)
    return schemas.PngResponse(encode_png(mask.astype(np.uint8) * 255))


@_router.post("/api/classes", status_code=201)
def enroll_frame(page: _Page, asked: schemas.EnrollRequest) -> FrameReport:
    """Enroll a frozen frame by a box, a mask or the name only, and report how well it works."""
    image, mask = _marked(page, asked)
    return page.update(lambda model: enroll(model, asked.name, image, mask))


@_router.patch("/api/classes", status_code=204)
def rename(page: _Page, asked: schemas.RenameRequest) -> None:
    """Rename a class."""
    page.update(lambda model: model.rename(asked.name, asked.new_name))


@_router.delete("/api/classes", status_code=204)
def remove(page: _Page, name: str) -> None:
    """Remove a class."""
    page.update(lambda model: model.remove(name))


@_router.get("/api/supports.png", response_class=schemas.PngResponse)
def get_support(page: _Page, name: str, index: _Index, masked: bool = False) -> Response:
    """Get a thumbnail of one support, counted from 0; with masked=true, everything outside its mask is dimmed."""
    return _thumbnail(name, page.model.enrolled.supports.get(name, ()), index, "picture", masked)


@_router.delete("/api/supports", status_code=204)
def remove_support(page: _Page, name: str, index: _Index) -> None:
    """Remove one support of a class, counted from 0."""
    page.update(lambda model: model.remove_support(name, index))


@_router.post("/api/negatives", status_code=201)
def reject(page: _Page, asked: schemas.RejectRequest) -> Rejection:
    """Say that a frozen frame, a box or a mask in it, or where the class is found in it, is not the class."""
    image, mask = _marked(page, asked)
    return page.update(lambda model: false_alarms.reject(model, asked.name, image, mask))


@_router.get("/api/negatives.png", response_class=schemas.PngResponse)
def get_negative(page: _Page, name: str, index: _Index, masked: bool = False) -> Response:
    """Get a thumbnail of one negative, counted from 0; with masked=true, everything outside its mask is dimmed."""
    return _thumbnail(name, page.model.enrolled.negatives.get(name, ()), index, "negative", masked)


@_router.delete("/api/negatives", status_code=204)
def remove_negative(page: _Page, name: str, index: _Index) -> None:
    """Remove one negative of a class, counted from 0."""
    page.update(lambda model: model.remove_negative(name, index))


@_router.post("/api/scene", status_code=201)
def learn_scene(page: _Page) -> false_alarms.SceneAnswer:
    """Learn the empty scene from the next 16 frames, over about 4 s, and report which classes it looks like."""
    if not page.learning_scene.acquire(blocking=False):
        raise FsvitEdgeError("The empty scene is being learned already; wait until that is done.")
    try:
        images = page.hub.sample(false_alarms.SCENE_FRAMES, false_alarms.SCENE_S)
        return page.update(lambda model: false_alarms.learn_scene(model, images), _SCENE_TIMEOUT_S)
    finally:
        page.learning_scene.release()


@_router.delete("/api/scene", status_code=204)
def forget_scene(page: _Page) -> None:
    """Forget the empty scene; the levels are those of the classes again."""
    page.update(lambda model: model.forget_scene())


@_router.post("/api/bank/save")
def save_bank(page: _Page) -> dict[str, str]:
    """Save the classes to the bank file of the run."""
    page.model.read(lambda model: model.save_bank(page.bank_path))
    page.is_saved = True
    return {"file": str(page.bank_path)}


@_router.get("/api/bank", response_class=schemas.BankResponse)
def download_bank(page: _Page) -> Response:
    """Download the classes as a bank file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.safetensors"
        page.model.read(lambda model: model.save_bank(path))
        data = path.read_bytes()
    return schemas.BankResponse(data, headers={"Content-Disposition": 'attachment; filename="bank.safetensors"'})


_BANK_BODY = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}


@_router.put("/api/bank", openapi_extra={"requestBody": _BANK_BODY})
def upload_bank(page: _Page, data: Annotated[bytes, Depends(_raw_body)]) -> dict[str, list[str]]:
    """Replace all classes with those of a bank file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "uploaded.safetensors"
        path.write_bytes(data)
        try:
            page.update(lambda model: model.load_bank(path))
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(f"{folder}/", "")) from error
    return {"classes": list(page.model.classes)}


@_router.get("/health", response_model=Health)
def get_health(page: _Page) -> JSONResponse:
    """Get the health of the run; 503 if the source is not live."""
    health = page.hub.health
    if health is None:
        raise FsvitEdgeError("The run has just started; try again in a second.")
    return JSONResponse(health.to_dict(), 200 if health.source_status.state == "live" else 503)


@_router.get("/metrics", response_class=PlainTextResponse)
def get_metrics(page: _Page) -> Response:
    """Get the health of the run in the format of Prometheus, in seconds and bytes."""
    text = b"" if page.hub.health is None else generate_latest(HealthMetrics(page.hub.health))
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@_router.get("/docs", include_in_schema=False)
def get_docs() -> FileResponse:
    """Get this API as a table. FastAPI's own page loads scripts from the internet, which a device may not have."""
    return FileResponse(_STATIC / "docs.html")


# -------------------------------------------------------------------------------------------------------- application


def create_app(page: PageState | None) -> FastAPI:
    """Build the application; None is enough to call `openapi()`."""
    app = FastAPI(
        title="fsvit-edge",
        version=version("fsvit-edge"),
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        # Only for the description: `Access` checks the token before any route.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        exception_handlers={
            FsvitEdgeError: _explain,
            RequestValidationError: _explain_invalid,
            StarletteHTTPException: _explain_http,
        },
    )
    app.state.page = page
    app.include_router(_router)
    app.mount("/", StaticFiles(directory=_STATIC, html=True))
    return app


async def _explain(_: Request, error: Exception) -> Response:
    status = 400 if isinstance(error, InputError) else 409 if isinstance(error, ArtifactError) else 503
    return JSONResponse({"error": str(error)}, status)


async def _explain_http(_: Request, error: StarletteHTTPException) -> Response:
    # FastAPI answers 400 itself only if the body is nested too deeply or not UTF-8.
    detail = "Body must be a JSON object." if error.status_code == 400 else error.detail
    return JSONResponse({"error": detail}, error.status_code)


async def _explain_invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    place, *path = first["loc"]
    if place == "body" and (not path or first["type"] == "json_invalid"):
        # A form on another site cannot send this type without permission.
        text = "Send JSON, with the header Content-Type: application/json."
        if request.headers.get("content-type", "").startswith("application/json"):
            text = "Body must be a JSON object."
    else:
        name = str(path[0]) + "".join(f"[{one}]" for one in path[1:])
        message = str(first["msg"]).replace("Field required", "is required").replace("Input should be", "must be")
        text = f"{'Field' if place == 'body' else 'Parameter'} {name} {message[0].lower()}{message[1:]}."
    return JSONResponse({"error": text}, 400)


def _part(jpeg: bytes) -> bytes:
    # The next boundary follows at once, because a browser shows a part only when it has ended.
    header = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    return header.encode() + jpeg + f"\r\n--{schemas.BOUNDARY}\r\n".encode()


def _support_states(supports: ClassSupports) -> list[schemas.SupportState]:
    return [schemas.SupportState(has_mask=one.has_mask) for one in supports]


def _thumbnail(name: str, supports: ClassSupports, index: int, what: str, masked: bool) -> Response:
    if index >= len(supports):
        raise InputError(f"Class {name!r} has {len(supports)} {what}s, so there is no {what} {index}.")
    picture = supports[index].thumbnail
    if masked:
        picture = (picture * np.where(supports[index].thumbnail_mask, 1.0, _DIMMED)[..., None]).astype(np.uint8)
    return schemas.PngResponse(encode_png(picture))


def _marked(page: PageState, asked: schemas.MarkedFrame) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
    box, image = asked.box_xyxy, page.hub.frozen(asked.frame_id)
    if box is not None and asked.mask_png is not None:
        raise InputError("Give box_xyxy or mask_png, not both.")
    if asked.mask_png is not None:
        return image, decode_mask(asked.mask_png, (image.shape[0], image.shape[1]))
    return image, None if box is None else _mask_of_box(page, image, box)


def _mask_of_box(page: PageState, image: npt.NDArray[np.uint8], box: schemas.Box) -> npt.NDArray[np.bool_]:
    left, top, right, bottom = map(round, box)
    return page.model.read(lambda model: model.mask_of_box(image, (left, top, right, bottom)))
