"""The page's API described, for programs (OpenAPI 3.1) and for people."""

import html
from importlib.metadata import version
from typing import Any

_NAME = {"name": "name", "in": "query", "required": True, "schema": {"type": "string"}, "description": "The class."}
_INDEX = {
    "name": "index",
    "in": "query",
    "required": True,
    "schema": {"type": "integer", "minimum": 0},
    "description": "Which of its pictures, from 0.",
}
_SEEN = {
    "name": "seen",
    "in": "query",
    "schema": {"type": "string"},
    "description": "Where given, what the network does not take for the thing is dimmed.",
}
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "description": "A frozen frame."}
_BOX = {
    "type": "array",
    "items": {"type": "number"},
    "minItems": 4,
    "maxItems": 4,
    "description": "Left, top, right and bottom in pixels of the frozen frame; right and bottom are exclusive.",
}
_TEXT = {"type": "string"}


def openapi() -> dict[str, Any]:
    """Describe every path as OpenAPI 3.1."""
    name_and_new = _object({"name": _TEXT, "new_name": _TEXT}, ["name", "new_name"])
    enrollment = _object(
        {
            "name": {"type": "string", "minLength": 1, "maxLength": 80},
            "frame_id": _TEXT,
            "box_xyxy": _BOX,
            "mask_png": {
                "type": "string",
                "description": "Base64 of a PNG of the frame's size; above 127 is the thing.",
            },
        },
        ["name", "frame_id"],
    )
    state = (
        "Health, newest frame, classes with scores, levels (the score above which each is present) and supports, and "
        "whether the bank is saved."
    )
    paths: dict[str, dict[str, Any]] = {
        "/api/state": {"get": _operation(state, "application/json")},
        "/api/stream.mjpg": {
            "get": _operation(
                "The frames with the present classes tinted, as JPEGs without end; a slow reader gets fewer.",
                "multipart/x-mixed-replace",
                errors={"503": "8 watch already."},
            )
        },
        "/api/frames": {"post": _operation("Freeze the newest frame: {id, width, height}.", "application/json", 201)},
        "/api/frames/{id}.jpg": {
            "get": _operation("A frozen frame; the last four are kept.", "image/jpeg", params=[_ID])
        },
        "/api/frames/{id}/mask": {
            "post": _operation(
                "What a box becomes: a mask, white on the thing.",
                "image/png",
                params=[_ID],
                body=_object({"box_xyxy": _BOX}, ["box_xyxy"]),
            )
        },
        "/api/classes": {
            "post": _operation(
                "Enroll a frozen frame by a box, by a mask, or by the name alone; live from the next frame on. Answers "
                "shots, mask_cover, kept_tokens; on the same frame score, and found_share, iou and area_ratio of the "
                "mask; confusions, and warnings.",
                "application/json",
                201,
                body=enrollment,
            ),
            "patch": _operation("Rename a class.", None, 204, body=name_and_new),
            "delete": _operation("Forget a class.", None, 204, params=[_NAME]),
        },
        "/api/supports.png": {
            "get": _operation("A support's small picture.", "image/png", params=[_NAME, _INDEX, _SEEN])
        },
        "/api/supports": {"delete": _operation("Forget one picture of a class.", None, 204, params=[_NAME, _INDEX])},
        "/api/bank/save": {"post": _operation("Save the classes to the run's --bank file.", "application/json")},
        "/api/bank": {
            "get": _operation("Download the classes as a bank.", "application/octet-stream"),
            "put": _operation(
                "Replace the classes by those of a bank.", "application/json", body="application/octet-stream"
            ),
        },
        "/health": {
            "get": _operation("How the run fares.", "application/json", errors={"503": "The source is not live."})
        },
        "/metrics": {"get": _operation("The same for Prometheus.", "text/plain")},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fsvit-edge",
            "version": version("fsvit-edge"),
            "description": "Errors are {error: one sentence}. 400 unusable input, 401 no token, 403 another site, 409 "
            "a bank that does not fit, 413 too much, 421 an unknown Host, 503 not now.",
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
        "paths": paths,
    }


def docs_page() -> str:
    """The same as a page to read."""
    described = openapi()
    rows = []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            fields = [parameter["name"] for parameter in operation.get("parameters", ())]
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema", {})
            required = schema.get("required", ())
            fields += [name if name in required else f"{name}?" for name in schema.get("properties", ())]
            cells = (method.upper(), path, ", ".join(fields), operation["summary"])
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    about = html.escape(described["info"]["description"])
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>fsvit-edge: API</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/page.css">'
        f'<main class="docs"><h1>API</h1><p>{about} For programs: <a href="/openapi.json">openapi.json</a>.</p>'
        "<table><thead><tr><th>method</th><th>path</th><th>fields</th><th>what it does</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></main></html>"
    )


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _operation(
    summary: str,
    answer: str | None,
    status: int = 200,
    params: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | str | None = None,
    errors: dict[str, str] | None = None,
) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": summary}
    if params:
        described["parameters"] = params
    if body is not None:
        content = {body: {}} if isinstance(body, str) else {"application/json": {"schema": body}}
        described["requestBody"] = {"required": True, "content": content}
    done: dict[str, Any] = {"description": "Done."}
    if answer is not None:
        done["content"] = {answer: {}}
    other = {code: {"description": text} for code, text in (errors or {}).items()}
    described["responses"] = {str(status): done, **other}
    return described
