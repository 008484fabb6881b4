"""The page's HTTP API as an application: its routes, its errors and its files. /docs and /openapi.json describe it."""

from importlib.metadata import version
from pathlib import Path

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from fsvit_edge.page.access import FAILURE
from fsvit_edge.page.routes import classes, events, false_alarms, live, review, zones
from fsvit_edge.page.state import PageState
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError

_STATIC = Path(__file__).parent / "static"
_ABOUT = (
    "Errors are {error: one sentence}: 400 unusable input, 401 no access token, 403 request from another site, "
    "404 no such path, 405 wrong method, 408 the body took too long, 409 a bank that does not fit, 413 too large, "
    "421 unknown host name, 500 a fault of the page, 503 not available now."
)


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
            OSError: _explain_system,
            ClientDisconnect: _answer_nobody,
            Exception: _explain_failure,
        },
    )
    app.state.page = page
    for router in (live.router, classes.router, false_alarms.router, review.router, zones.router, events.router):
        app.include_router(router)
    app.add_api_route("/docs", _get_docs, include_in_schema=False)
    app.mount("/", StaticFiles(directory=_STATIC, html=True))
    return app


async def _get_docs() -> FileResponse:
    # FastAPI's own page loads scripts from the internet, which a device may not have.
    return FileResponse(_STATIC / "docs.html")


async def _explain(_: Request, error: Exception) -> Response:
    status = 400 if isinstance(error, InputError) else 409 if isinstance(error, ArtifactError) else 503
    return JSONResponse({"error": str(error)}, status)


async def _explain_system(_: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    return JSONResponse({"error": f"The machine of the run cannot do that: {error.strerror or error}."}, 503)


async def _answer_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # the client left before its body was complete


async def _explain_failure(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": FAILURE}, 500)  # it is raised again, so that `Access` writes it into the log


async def _explain_http(_: Request, error: StarletteHTTPException) -> Response:
    # FastAPI answers 400 itself only if the body is nested too deeply or not UTF-8.
    detail = "Body must be a JSON object." if error.status_code == 400 else error.detail
    return JSONResponse({"error": detail}, error.status_code, error.headers)


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
