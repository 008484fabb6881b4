"""Routes that tell what appeared and what left."""

from fastapi import Response

from fsvit_edge.page import schemas
from fsvit_edge.page.event_log import hex_color
from fsvit_edge.page.state import Page, make_router

router = make_router()


@router.get("/api/events")
def list_events(page: Page) -> list[schemas.PageEvent]:
    """List the latest 50 events, the newest first: a class has appeared, or has left."""
    return [
        schemas.PageEvent(number=kept.number, color=hex_color(kept.way), **kept.record)
        for kept in page.events.newest_first()
    ]


@router.get("/api/events/{number}.jpg", response_class=schemas.JpegResponse)
def get_event_picture(page: Page, number: int) -> Response:
    """Get the picture of an event: its best frame, at most 640 pixels wide, with the class drawn in."""
    return schemas.JpegResponse(page.events.picture(number))
