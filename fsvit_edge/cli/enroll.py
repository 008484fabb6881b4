"""`fsvit-edge enroll`: pictures become a class in a bank."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsvit_edge.cli.options import BundleOption, EngineOption, PrecisionOption
from fsvit_edge.cli.outputs import refuse_to_replace, write_preview
from fsvit_edge.cli.terminal import editing_bank, open_model, say
from fsvit_edge.fewshot.names import quoted
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.presence_level import distinct_texts, score_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fsvit_edge.enroll.enroll_pictures import PictureReport
    from fsvit_edge.enroll.support_files import SupportPicture
    from fsvit_edge.fewshot.predictor import FewShotModel


_SMALL_MARGIN = 2.5
"""In log-odds. On davis16-val, by a script that is not kept, 23 of 40 pictures of the class itself have a smaller one,
and 1 of 57 false alarms."""


def enroll(
    name: Annotated[str, typer.Argument(help="Name of the class.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Pictures of the object, folders of them (or with images/ and masks/), or a video."),
    ],
    mask: Annotated[
        list[Path] | None,
        typer.Option(help="Mask of each picture, in the same order; without masks or boxes, it is guessed."),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(help="Box around the object in each picture, in order: left,top,width,height in pixels."),
    ] = None,
    frame: Annotated[
        list[int] | None, typer.Option(min=0, help="Video frame that shows the object, counted from 0; repeatable.")
    ] = None,
    at: Annotated[
        list[float] | None, typer.Option(help="Time of a video frame that shows the object, in seconds; repeatable.")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option(help="Draw the pictures, their masks and what is found in them into this file.")
    ] = None,
    is_not: Annotated[
        bool,
        typer.Option("--not", help="The pictures are not the class, although it was found in them: learn to tell."),
    ] = False,
    bank: Annotated[Path, typer.Option(help="The bank; created if it does not exist.")] = Path("bank.safetensors"),
    level: Annotated[
        float | None,
        typer.Option(help="Score above which the class is present, 0 to 1; default: derived from its pictures."),
    ] = None,
    bundle: BundleOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Enroll a class from pictures, with masks, boxes or neither; or add pictures to a class."""
    from fsvit_edge.enroll.enroll_pictures import draw_report, enroll_pictures
    from fsvit_edge.enroll.support_files import parse_box, read_supports
    from fsvit_edge.fewshot.bank_file import check_bank_path
    from fsvit_edge.runtime.storage import remove_leftovers

    if is_not and (preview is not None or level is not None):
        raise InputError("--not goes with neither --preview nor --level.")
    check_bank_path(bank)
    refuse_to_replace(preview, [*inputs, *(mask or [])], "--preview")
    remove_leftovers(bank.parent)
    pictures = read_supports(inputs, mask or [], [parse_box(text) for text in box or []], frame or [], at or [])
    with editing_bank(bank) as check_unchanged, open_model(bundle, engine, precision, bank=bank) as model:
        if bank.exists():
            model.load_bank(bank)
        if is_not:
            _reject(model, name, pictures, bank, check_unchanged)
            return
        report = enroll_pictures(model, name, pictures, level)
        if preview is not None:
            write_preview(preview, draw_report(report))
        check_unchanged()
        model.save_bank(bank)
        enrolled_level, origin = model.bank.level(name), model.bank.level_source(name)
        classes = ", ".join(model.classes)
    for picture in report.pictures:
        _print_picture(picture)
    shots = "1 support" if report.shots == 1 else f"{report.shots} supports"
    print(f"Enrolled {quoted(name)} with {shots}; {bank} contains: {classes}.")
    print(f"Its level, the score above which it is present: {score_text(enrolled_level)} ({origin}).")
    if origin == "empty scene":
        say(
            f"Warning: the empty scene answers to {quoted(name)}, so it may be missed; "
            "see: fsvit-edge bank scene --help."
        )
    options = (f" --bundle {bundle}" if bundle else "") + ("" if precision == "auto" else f" --precision {precision}")
    say(f"Next: fsvit-edge run --camera --bank {bank}{options}")


def _reject(
    model: "FewShotModel",
    name: str,
    pictures: "Sequence[SupportPicture]",
    bank: Path,
    check_unchanged: "Callable[[], None]",
) -> None:
    from fsvit_edge.fewshot.bank import MAX_NEGATIVES

    known = len(model.bank.negatives(name))
    if known + len(pictures) > MAX_NEGATIVES:
        raise InputError(
            f"Class {quoted(name)} can have {MAX_NEGATIVES} negatives and has {known}, so {len(pictures)} more do not "
            "fit; remove some with: fsvit-edge bank remove BANK NAME --negative INDEX."
        )
    done = []
    for picture in pictures:
        mask = picture.mask
        if picture.box_xyxy is not None:
            mask = model.mask_of_box(picture.image, picture.box_xyxy)
        done.append(model.reject(name, picture.image, mask))
    check_unchanged()
    model.save_bank(bank)
    for picture, one in zip(pictures, done, strict=True):
        before, after, level = distinct_texts(one.score_before, one.score_after, one.level)
        print(f"{picture.source}: not {quoted(name)}: scored {before}, now {after}, level {level}.")
        if one.is_mask_too_small:
            say(
                f"Warning: {picture.source}: what is marked is too small for the network to see, so all of it was used."
            )
        if not one.was_present:
            say(f"Warning: {picture.source}: {quoted(name)} was not found there, so rejecting it changes little.")
        elif one.margin < _SMALL_MARGIN:
            say(f"Warning: {picture.source} is much like {quoted(name)} itself, which may be missed from now on.")


def _print_picture(report: "PictureReport") -> None:
    picture = report.picture
    kind = "guessed mask" if picture.is_by_name else "mask" if picture.box_xyxy is None else "mask from box"
    cover = f"{report.mask_cover:.0%}" if report.mask_cover >= 0.01 else f"{report.mask_cover:.2%}"
    print(f"{picture.source}: {kind} covers {cover} of the picture and keeps {report.kept_tokens} tokens")
    print(f"{picture.source}: fit on its own picture: {report.fit}")
    for warning in report.warnings:
        say(f"Warning: {picture.source}: {warning}")
