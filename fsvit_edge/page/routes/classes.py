"""Routes that change the classes, and the bank file that they are saved to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from fastapi import Response

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.page import schemas
from fsvit_edge.page.enrollment import FrameReport, enroll
from fsvit_edge.page.state import FILE_BODY, FileBody, Index, Page, make_router, marked, thumbnail
from fsvit_edge.runtime.disk_steps import no_temporary_place
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.storage import temporary_folder

router = make_router()


@router.post("/api/classes", status_code=201)
def enroll_frame(page: Page, asked: schemas.EnrollRequest) -> FrameReport:
    """Enroll a frozen frame by a box, a mask or the name only, and report how well it works."""
    image, mask = marked(page, asked)
    before = page.model.read(lambda model: model.predict(image))  # on its own, so that a frame can come between
    return page.model.update(lambda model: enroll(model, asked.name, image, mask, before))


@router.patch("/api/classes", status_code=204)
def rename(page: Page, asked: schemas.RenameRequest) -> None:
    """Rename a class."""
    page.model.update(lambda model: model.rename(asked.name, asked.new_name))


@router.delete("/api/classes", status_code=204)
def remove(page: Page, name: str) -> None:
    """Remove a class."""
    page.model.update(lambda model: model.remove(name))


@router.get("/api/supports.png", response_class=schemas.PngResponse)
def get_support(page: Page, name: str, index: Index, masked: bool = False) -> Response:
    """Get a thumbnail of one support, counted from 0; with masked=true, everything outside its mask is dimmed."""
    return thumbnail(name, page.model.enrolled.supports.get(name, ()), index, "picture", masked)


@router.delete("/api/supports", status_code=204)
def remove_support(page: Page, name: str, index: Index, key: str | None = None) -> None:
    """Remove one support of a class, counted from 0; with its key, refused if that is another one by now."""

    def remove(model: FewShotModel) -> None:
        if key is not None and [one.thumbnail_key for one in model.bank.supports(name)][index : index + 1] != [key]:
            raise InputError(f"The pictures of {name!r} have changed; look at them again.")
        model.remove_support(name, index)

    page.model.update(remove)


@router.post("/api/bank/save")
def save_bank(page: Page, overwrite: bool = False) -> dict[str, str]:
    """Save the classes to the bank file of the run; verdicts that others wrote to it meanwhile stay.

    If another program wrote other classes to the file, that is refused with 409, unless overwrite=true.
    """
    page.save(overwrite)
    return {"file": str(page.bank_path)}


@router.get("/api/bank", response_class=schemas.BankResponse)
def download_bank(page: Page) -> Response:
    """Download the classes as a bank file."""
    with page.packing, _temporary_file() as path:
        page.model.read(lambda model: model.bank.copy()).save(path)  # in this thread, not in that of the loop
        data = path.read_bytes()
    # Headers are Latin-1, names are not.
    name = f"attachment; filename*=UTF-8''{quote(page.bank_path.name)}"
    return schemas.BankResponse(data, headers={"Content-Disposition": name})


@router.put("/api/bank", openapi_extra=FILE_BODY)
def upload_bank(page: Page, data: FileBody, name: str = "uploaded.safetensors") -> dict[str, list[str]]:
    """Replace all classes with those of a bank file; errors call it by its name."""
    with _temporary_file() as path:
        path.write_bytes(data)
        try:
            page.upload(path)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(path), name)) from error
    return {"classes": list(page.model.classes)}


@contextmanager
def _temporary_file() -> Iterator[Path]:
    try:
        with temporary_folder() as folder:
            yield folder / "bank.safetensors"
    except OSError as error:
        raise no_temporary_place(error) from error
