"""The page's JSON API; `openapi.py` describes it."""

import base64
import binascii
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page.enrollment import enroll
from fsvit_edge.page.frame_hub import FrameHub, TooManyWatchersError, encode_jpeg, encode_png
from fsvit_edge.page.metrics import metrics_text
from fsvit_edge.page.openapi import docs_page, openapi
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError
from fsvit_edge.runtime.overlay import PALETTE
from fsvit_edge.runtime.predictor import FewShotModel

_STATIC = Path(__file__).parent / "static"
_STATIC_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("page", "classes", "enrollment", "drawing", "talk")
    },
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_BOUNDARY = "frame"
_LARGEST_MASK_PX = 40_000_000
_DIMMED = 0.25
_NO_STORE = {"Cache-Control": "no-store"}

_Handler = Callable[[Request], Awaitable[Response]]
_Answer = TypeVar("_Answer")


class Api:
    """Handlers over a hub and a model.

    Args:
        hub: What there is to see.
        model: What can be changed, between two frames.
        bank_path: Where the classes are saved; a client never names a path.
    """

    def __init__(self, hub: FrameHub, model: LiveModel, bank_path: Path) -> None:
        self._hub = hub
        self._model = model
        self._bank_path = bank_path
        self._is_saved = True
        # A page that stays open while the run is started again must not take the new classes for those that it shows.
        self._run = secrets.token_hex(4)

    def application(self) -> Starlette:
        """Put the routes together."""
        handlers: dict[tuple[str, str], _Handler] = {
            ("GET", "/api/state"): self._state,
            ("GET", "/api/stream.mjpg"): self._stream,
            ("POST", "/api/frames"): self._freeze,
            ("GET", "/api/frames/{id}.jpg"): self._frozen,
            ("POST", "/api/frames/{id}/mask"): self._mask,
            ("POST", "/api/classes"): self._enroll,
            ("PATCH", "/api/classes"): self._rename,
            ("DELETE", "/api/classes"): self._remove,
            ("GET", "/api/supports.png"): self._support,
            ("DELETE", "/api/supports"): self._remove_support,
            ("POST", "/api/bank/save"): self._save,
            ("GET", "/api/bank"): self._download,
            ("PUT", "/api/bank"): self._upload,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/openapi.json"): _openapi,
            ("GET", "/docs"): _docs,
        }
        routes = [Route(path, handler, methods=[method]) for (method, path), handler in handlers.items()]
        routes += [Route(path, _static, methods=["GET"]) for path in _STATIC_FILES]
        return Starlette(routes=routes, exception_handlers={FsvitEdgeError: _explain, HTTPException: _explain})

    async def _state(self, _: Request) -> Response:
        health, newest = self._hub.health, self._hub.newest
        scores: dict[str, dict[str, Any]] = {}
        if newest is not None:
            frame, prediction = newest
            for one in prediction.results:
                scores[one.name] = {
                    "score": round(one.score, 4),
                    "level": round(one.level, 4),
                    "present": one.is_present,
                    "area": round(one.area, 4),
                }
        state = {
            "health": None if health is None else health.to_dict(),
            "frame": None
            if newest is None
            else {"sequence": frame.index, "size_hw": frame.image.shape[:2], "is_frozen": frame.is_frozen},
            "classes": [
                {
                    "name": name,
                    "color": "#{:02x}{:02x}{:02x}".format(*PALETTE[index % len(PALETTE)]),
                    **scores.get(name, {"score": None, "level": None, "present": None, "area": None}),
                    "supports": [{"has_mask": support.has_mask} for support in supports],
                }
                for index, (name, supports) in enumerate(self._model.supports.items())
            ],
            "revision": f"{self._run}-{self._model.revision}",
            "bank": {"file": str(self._bank_path), "is_saved": self._is_saved},
        }
        return JSONResponse(state, headers=_NO_STORE)

    async def _stream(self, _: Request) -> Response:
        pictures = self._hub.watch()
        try:
            first = await anext(pictures, None)
        except TooManyWatchersError as error:
            return JSONResponse({"error": str(error)}, 503)

        async def parts() -> AsyncIterator[bytes]:
            try:
                yield f"--{_BOUNDARY}\r\n".encode()
                if first is not None:
                    yield _part(first)
                async for jpeg in pictures:
                    yield _part(jpeg)
            finally:
                await pictures.aclose()  # type: ignore[attr-defined]  # it is a generator

        return StreamingResponse(
            parts(), media_type=f"multipart/x-mixed-replace; boundary={_BOUNDARY}", headers=_NO_STORE
        )

    async def _freeze(self, _: Request) -> Response:
        name, image = self._hub.freeze()
        return JSONResponse({"id": name, "width": image.shape[1], "height": image.shape[0]}, 201)

    async def _frozen(self, request: Request) -> Response:
        image = self._hub.frozen(request.path_params["id"])
        return Response(await run_in_threadpool(encode_jpeg, image), media_type="image/jpeg", headers=_NO_STORE)

    async def _mask(self, request: Request) -> Response:
        image = self._hub.frozen(request.path_params["id"])
        box = _box(await _json(request))
        mask = await self._look(lambda model: model.mask_of_box(image, box))
        return Response(encode_png(mask.astype(np.uint8) * 255), media_type="image/png", headers=_NO_STORE)

    async def _enroll(self, request: Request) -> Response:
        asked = await _json(request)
        name, image = _text(asked, "name"), self._hub.frozen(_text(asked, "frame_id"))
        if "box_xyxy" in asked and "mask_png" in asked:
            raise InputError("Give box_xyxy or mask_png, not both.")
        mask: npt.NDArray[np.bool_] | None = None
        if "box_xyxy" in asked:
            box = _box(asked)
            mask = await self._look(lambda model: model.mask_of_box(image, box))
        elif "mask_png" in asked:
            mask = await run_in_threadpool(_decoded_mask, _text(asked, "mask_png"), image.shape[:2])
        report = await self._change(lambda model: enroll(model, name, image, mask))
        return JSONResponse(report.as_json(), 201)

    async def _rename(self, request: Request) -> Response:
        asked = await _json(request)
        await self._change(lambda model: model.rename(_text(asked, "name"), _text(asked, "new_name")))
        return Response(status_code=204)

    async def _remove(self, request: Request) -> Response:
        name = request.query_params.get("name", "")
        await self._change(lambda model: model.remove(name))
        return Response(status_code=204)

    async def _support(self, request: Request) -> Response:
        """A support's small picture; with `seen`, what the network does not take for the thing is dimmed."""
        name, index = request.query_params.get("name", ""), _index(request)
        supports = self._model.supports.get(name, ())
        if index >= len(supports):
            raise InputError(f"Class {name!r} has {len(supports)} pictures, no picture {index}.")
        support = supports[index]
        picture = support.thumbnail
        if "seen" in request.query_params:
            light = np.where(support.thumbnail_mask, 1.0, _DIMMED)[..., None]
            picture = (picture * light).astype(np.uint8)
        return Response(encode_png(picture), media_type="image/png", headers=_NO_STORE)

    async def _remove_support(self, request: Request) -> Response:
        name, index = request.query_params.get("name", ""), _index(request)
        await self._change(lambda model: model.remove_support(name, index))
        return Response(status_code=204)

    async def _save(self, _: Request) -> Response:
        await self._look(lambda model: model.save_bank(self._bank_path))
        self._is_saved = True
        return JSONResponse({"file": str(self._bank_path)})

    async def _download(self, _: Request) -> Response:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bank.safetensors"
            await self._look(lambda model: model.save_bank(path))
            data = path.read_bytes()
        disposition = {"Content-Disposition": 'attachment; filename="bank.safetensors"'}
        return Response(data, media_type="application/octet-stream", headers={**_NO_STORE, **disposition})

    async def _upload(self, request: Request) -> Response:
        data = await request.body()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "uploaded.safetensors"
            path.write_bytes(data)
            try:
                await self._change(lambda model: model.load_bank(path))
            except ArtifactError as error:
                raise ArtifactError(str(error).replace(f"{folder}/", "")) from error
        return JSONResponse({"classes": list(self._model.classes)})

    async def _health(self, _: Request) -> Response:
        health = self._hub.health
        if health is None:
            return JSONResponse({"error": "The run has only begun."}, 503)
        return JSONResponse(health.to_dict(), 200 if health.source_status.state == "live" else 503)

    async def _metrics(self, _: Request) -> Response:
        health = self._hub.health
        text = b"" if health is None else metrics_text(health)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _look(self, request: Callable[[FewShotModel], _Answer]) -> _Answer:
        return await run_in_threadpool(self._model.read, request)

    async def _change(self, request: Callable[[FewShotModel], _Answer]) -> _Answer:
        answer = await run_in_threadpool(self._model.update, request)
        self._is_saved = False
        return answer


def _part(jpeg: bytes) -> bytes:
    # The boundary after the picture comes at once, for a browser shows a part only when it has ended.
    return b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n--%s\r\n" % (
        len(jpeg),
        jpeg,
        _BOUNDARY.encode(),
    )


async def _json(request: Request) -> dict[str, Any]:
    # A form of another site cannot send this type without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InputError("Send JSON, with Content-Type: application/json.")
    try:
        asked = json.loads(await request.body())
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise InputError("This is no JSON object.")
    return asked


def _text(asked: dict[str, Any], field: str) -> str:
    value = asked.get(field)
    if not isinstance(value, str):
        raise InputError(f"The field {field} must be a text.")
    return value


def _box(asked: dict[str, Any]) -> tuple[int, int, int, int]:
    box = asked.get("box_xyxy")
    is_number = [type(value) in (int, float) and abs(value) < 1e6 for value in box] if isinstance(box, list) else []
    if not isinstance(box, list) or len(box) != 4 or not all(is_number):
        raise InputError("The field box_xyxy must be [left, top, right, bottom] in pixels.")
    left, top, right, bottom = (round(value) for value in box)
    return left, top, right, bottom


def _index(request: Request) -> int:
    index = request.query_params.get("index", "")
    if not index.isascii() or not index.isdecimal() or len(index) > 6:
        raise InputError("The parameter index must be a number.")
    return int(index)


def _decoded_mask(png_base64: str, size_hw: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    try:
        data = base64.b64decode(png_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("The field mask_png is not base64.") from error
    # The size stands at a fixed place of a PNG: a bomb is refused before it is unfolded.
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:8] != b"\x89PNG\r\n\x1a\n" or (height, width) != tuple(size_hw) or height * width > _LARGEST_MASK_PX:
        raise InputError(
            f"The field mask_png must be a PNG of the frame's {size_hw[1]} x {size_hw[0]} pixels, "
            f"got {width} x {height}."
        )
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is None or mask.shape != tuple(size_hw):
        raise InputError("The field mask_png is a damaged PNG.")
    return np.asarray(mask > 127, np.bool_)


async def _static(request: Request) -> Response:
    name, media_type = _STATIC_FILES[request.url.path]
    return Response((_STATIC / name).read_bytes(), media_type=media_type, headers={"Cache-Control": "no-cache"})


async def _openapi(_: Request) -> Response:
    return JSONResponse(openapi())


async def _docs(_: Request) -> Response:
    return Response(docs_page(), media_type="text/html; charset=utf-8")


async def _explain(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    status = 400 if isinstance(error, InputError) else 409 if isinstance(error, ArtifactError) else 503
    return JSONResponse({"error": str(error)}, status)
