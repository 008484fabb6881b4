"""`fsvit-edge enroll`: pictures become a class in a bank."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsvit_edge.cli.options import EngineOption, PrecisionOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from fsvit_edge.enroll.fit import Fit
    from fsvit_edge.enroll.support_files import SupportPicture
    from fsvit_edge.runtime.enrollment import Enrollment
    from fsvit_edge.runtime.prediction import Prediction

_FULL_COVER = 0.95
_SMALL_COVER = 0.01
_PREVIEW_COLUMNS = 4


def enroll(
    name: Annotated[str, typer.Argument(help="Name of the class.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Pictures that show it, folders of them (or with images/ and masks/), or a video."),
    ],
    mask: Annotated[
        list[Path] | None, typer.Option(help="Mask of each picture, in their order; none at all: the name alone.")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(help="Box around it in each picture, in their order: left,top,width,height in pixels."),
    ] = None,
    frame: Annotated[
        list[int] | None, typer.Option(min=0, help="Frame of the video that shows it, from 0; may be repeated.")
    ] = None,
    at: Annotated[list[float] | None, typer.Option(help="The same by its time in seconds; may be repeated.")] = None,
    preview: Annotated[
        Path | None, typer.Option(help="Draw what the class finds on its pictures, and the masks, to this file.")
    ] = None,
    bank: Annotated[Path, typer.Option(help="The bank; made if it is not there.")] = Path("bank.safetensors"),
    level: Annotated[
        float | None, typer.Option(help="The score above which it is present; default: what its pictures say.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle; default: the small model shipped.")] = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Enroll a class from pictures, with masks, boxes or its name alone; or add pictures to a class."""
    from fsvit_edge.cli.terminal import advise, open_model
    from fsvit_edge.enroll.fit import measure_fit
    from fsvit_edge.enroll.support_files import parse_box, read_supports
    from fsvit_edge.runtime.bank import check_bank_path
    from fsvit_edge.runtime.errors import UnseenThingError
    from fsvit_edge.runtime.pictures import write_image
    from fsvit_edge.runtime.presence_level import check_level
    from fsvit_edge.runtime.storage import remove_leftovers

    if level is not None:
        check_level(level)
    check_bank_path(bank)
    remove_leftovers(bank.parent)
    pictures = read_supports(inputs, mask or [], [parse_box(text) for text in box or []], frame or [], at or [])
    with open_model(bundle, engine, precision) as model:
        if bank.exists():
            model.load_bank(bank)
        try:
            enrollment = model.enroll(
                name,
                [picture.image for picture in pictures],
                [picture.mask for picture in pictures],
                [picture.box_xyxy for picture in pictures],
                level,
            )
        except UnseenThingError as error:
            raise UnseenThingError(pictures[error.index].source, error.index) from error
        predictions = [model.predict(picture.image) for picture in pictures]
        fits = [measure_fit(one, name, own) for one, own in zip(predictions, enrollment.masks, strict=True)]
        if preview is not None:
            write_image(preview, _preview(pictures, predictions, enrollment, fits))
        model.save_bank(bank)
        classes = model.classes
        decided = f"{model.bank.level(name):.2f} ({model.bank.level_source(name)})"
    for picture, cover, tokens, fit in zip(pictures, enrollment.mask_cover, enrollment.kept_tokens, fits, strict=True):
        is_guess = picture.mask is None and picture.box_xyxy is None
        kind = "guessed mask" if is_guess else "mask" if picture.box_xyxy is None else "box's mask"
        print(f"{picture.source}: {kind} covers {_percent(cover)} of the picture, {tokens} tokens")
        print(f"{picture.source}: fits its own picture: {fit}")
        if is_guess and cover > _FULL_COVER:
            advise(f"Warning: the guessed mask of {picture.source} shows almost all of it; a --mask will do better.")
        elif fit.warning is not None:
            advise(f"Warning: {picture.source}: {fit.warning}")
    shots = "1 support" if enrollment.shots == 1 else f"{enrollment.shots} supports"
    print(f"Enrolled {enrollment.name!r} with {shots}; {bank} holds: {', '.join(classes)}.")
    print(f"It is present above {decided}.")
    options = (f" --bundle {bundle}" if bundle else "") + ("" if precision == "auto" else f" --precision {precision}")
    advise(f"Next: fsvit-edge run --camera --bank {bank}{options}")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= _SMALL_COVER else f"{share:.2%}"


def _preview(
    pictures: "Sequence[SupportPicture]",
    predictions: "Sequence[Prediction]",
    enrollment: "Enrollment",
    fits: "Sequence[Fit]",
) -> "npt.NDArray[np.uint8]":
    """Every picture with what the class finds, and the mask as a white line, a few in a row."""
    from fsvit_edge.enroll.fit import draw_fit
    from fsvit_edge.runtime.picture_sheet import captioned, sheet

    name, cells = enrollment.name, []
    for picture, prediction, mask, fit in zip(pictures, predictions, enrollment.masks, fits, strict=True):
        score = prediction.scores[prediction.classes.index(name)]
        lines = [picture.source, f"{name} {score:.2f}: {fit}"]
        panel = draw_fit(picture.image, prediction, name, mask)
        cells.append(captioned(panel, [(line, None) for line in lines]))
    return sheet([cells[start : start + _PREVIEW_COLUMNS] for start in range(0, len(cells), _PREVIEW_COLUMNS)])
