"""Routes that add and remove the zones of the camera's view."""

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.zones import Zone, without_zone
from fsvit_edge.page import schemas
from fsvit_edge.page.state import Page, PageState, make_router
from fsvit_edge.runtime.errors import InputError

router = make_router()


@router.post("/api/zones", status_code=201)
def add_zone(page: Page, asked: schemas.Zone) -> schemas.Zone:
    """Add a zone; answers and events name the zones that a class is in."""
    _refuse_if_fixed(page)

    def add(model: FewShotModel) -> None:
        model.bank.zones = (*model.bank.zones, Zone(asked.name, tuple(asked.corners)))

    page.model.update(add)
    return asked


@router.delete("/api/zones", status_code=204)
def remove_zone(page: Page, name: str) -> None:
    """Remove a zone."""
    _refuse_if_fixed(page)

    def remove(model: FewShotModel) -> None:
        model.bank.zones = without_zone(model.bank.zones, name)

    page.model.update(remove)


def _refuse_if_fixed(page: PageState) -> None:
    if page.model.zones_of_run:
        raise InputError("The zones of this run come from the command line; start it without --zone to change them.")
