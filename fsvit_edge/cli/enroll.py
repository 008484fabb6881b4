"""`fsvit-edge enroll`: pictures become a class in a bank."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsvit_edge.cli.options import BundleOption, EngineOption, PrecisionOption
from fsvit_edge.cli.outputs import refuse_to_replace, write_preview
from fsvit_edge.cli.terminal import editing_bank, open_model, say
from fsvit_edge.fewshot.names import quoted
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.messages import command_line
from fsvit_edge.runtime.presence_level import distinct_texts, score_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fsvit_edge.enroll.enroll_pictures import EnrollmentReport, PictureReport
    from fsvit_edge.enroll.support_files import SupportPicture
    from fsvit_edge.fewshot.bank import SupportBank
    from fsvit_edge.fewshot.prediction import Rejection
    from fsvit_edge.fewshot.predictor import FewShotModel


_SMALL_MARGIN = 2.5
"""In log-odds. On davis16-val, by a script that is not kept, 23 of 40 pictures of the class itself have a smaller one,
and 1 of 57 false alarms."""


def enroll(
    name: Annotated[str, typer.Argument(help="Name of the class.")],
    inputs: Annotated[
        list[str],
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
    """Enroll a class from pictures, or add pictures to it.

    Each may have a mask, a box or neither.
    """
    from fsvit_edge.enroll.enroll_pictures import draw_report, enroll_pictures
    from fsvit_edge.enroll.support_files import parse_box, read_supports
    from fsvit_edge.fewshot.bank_file import check_bank_path
    from fsvit_edge.inspect.diagnosis import connected_cameras
    from fsvit_edge.runtime.storage import remove_leftovers

    if is_not and (preview is not None or level is not None):
        raise InputError("--not goes with neither --preview nor --level.")
    check_bank_path(bank)
    if "" in inputs:  # of a variable that is not set; as a path, it would be the current folder
        raise InputError("A picture has an empty name; give pictures, a video or a folder, as . for the current one.")
    paths = [Path(one) for one in inputs]
    refuse_to_replace(preview, [*paths, *(mask or [])], "--preview")
    remove_leftovers(bank.parent)
    pictures = read_supports(paths, mask or [], [parse_box(text) for text in box or []], frame or [], at or [])
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
        twins = _twins(report, model.bank)
        classes = ", ".join(model.classes)
    for picture in report.pictures:
        _print_picture(picture)
    _note_guesses(report, bank, preview)
    for source, number in twins:
        undo = command_line("bank", "remove", bank, report.name, "--picture", number)
        say(f"Note: {quoted(report.name)} had {source} already; again, it takes time and teaches nothing.")
        say(f"To take it back: {undo}")
    shots = "1 picture" if report.shots == 1 else f"{report.shots} pictures"
    print(f"Enrolled {quoted(name)} from {shots}; {bank} contains: {classes}.")
    print(f"Its level, the score above which it is present: {score_text(enrolled_level)} ({origin}).")
    if origin == "empty scene":
        forget = command_line("bank", "scene", bank, "--forget")
        say(
            f"Warning: the empty scene answers to {quoted(name)}, so it may be missed. If one of your objects was in "
            f"view there: {forget}, and learn it again without them; else show {quoted(name)} what it is not, with: "
            f"fsvit-edge enroll {quoted(name)} PICTURE --not"
        )
    options = ["--bundle", str(bundle)] if bundle else []
    options += [] if precision == "auto" else ["--precision", precision]
    source = "--camera" if connected_cameras() else "photo.jpg"
    say(f"Next: {command_line('run', source, '--bank', bank, *options)}")


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
    learned: list[tuple[SupportPicture, Rejection, bool]] = []
    passed_over: list[str] = []
    for picture in pictures:
        level_before = model.bank.level(name)
        changed, rejection = _tried(model, name, picture)
        # A level that the empty scene raised, so that the class is not found in it, falls when the class learns why.
        is_useful = rejection.was_present or changed.level(name) < level_before
        if picture.is_by_name and not is_useful:
            score, level = distinct_texts(rejection.score_before, level_before)
            passed_over.append(f"{picture.source}: {quoted(name)} is not found there (score {score}, level {level})")
        else:
            model.bank = changed
            learned.append((picture, rejection, is_useful))
    if not learned:
        raise InputError(
            f"{passed_over[0]}{', nor in the other pictures' if len(passed_over) > 1 else ''}, so there is nothing to "
            "learn; to reject a part even so, mark it with --box or --mask."
        )
    check_unchanged()
    model.save_bank(bank)
    for text in passed_over:
        say(f"Note: {text}, so nothing is learned from it.")
    for picture, rejection, is_useful in learned:
        _print_rejection(picture, rejection, is_useful)
    # The last first: the numbers of those after it change.
    for picture, rejection, is_useful in reversed(learned):
        if not is_useful or rejection.margin < _SMALL_MARGIN:
            undo = command_line("bank", "remove", bank, rejection.name, "--negative", rejection.negatives - 1)
            say(f"To take {picture.source} back: {undo}")


def _tried(model: "FewShotModel", name: str, picture: "SupportPicture") -> "tuple[SupportBank, Rejection]":
    """Return the bank as it would be after a rejection, and what that changes; the bank in use stays."""
    mask = picture.mask
    if picture.box_xyxy is not None:
        mask = model.mask_of_box(picture.image, picture.box_xyxy)
    done: list[Rejection] = []
    changed = model.bank_after(lambda model: done.append(model.reject(name, picture.image, mask)))
    return changed, done[0]


def _print_rejection(picture: "SupportPicture", rejection: "Rejection", is_useful: bool) -> None:
    name = quoted(rejection.name)
    before, after, level = distinct_texts(rejection.score_before, rejection.score_after, rejection.level)
    print(f"{picture.source}: not {name}: scored {before}, now {after}, level {level}.")
    if rejection.is_mask_too_small:
        say(f"Warning: {picture.source}: what is marked is too small for the network to see, so all of it was used.")
    if not is_useful:
        say(
            f"Warning: {picture.source}: {name} was not found there, so rejecting it changes little, and takes time in "
            "every frame."
        )
    elif rejection.margin < _SMALL_MARGIN:
        say(f"Warning: {picture.source} is much like {name} itself, which may be missed from now on.")


def _print_picture(report: "PictureReport") -> None:
    picture = report.picture
    kind = "guessed mask" if picture.is_by_name else "mask" if picture.box_xyxy is None else "mask from box"
    cover = f"{report.mask_cover:.0%}" if report.mask_cover >= 0.01 else f"{report.mask_cover:.2%}"
    print(f"{picture.source}: {kind} covers {cover} of the picture")
    if not picture.is_by_name:  # the same network made the guess: to agree with it is no merit
        print(f"{picture.source}: fit on its own picture: {report.fit}")
    for warning in report.warnings:
        say(f"Warning: {picture.source}: {warning}")


def _twins(report: "EnrollmentReport", bank: "SupportBank") -> list[tuple[str, int]]:
    """The new pictures that the class has with the same mask already, the last first: numbers after one change."""
    keys = [support.thumbnail_key for support in bank.supports(report.name)]
    first = report.shots - len(report.pictures)
    numbered = [(one.picture.source, number) for number, one in enumerate(report.pictures, first)]
    return [(source, number) for source, number in reversed(numbered) if keys[number] in keys[:number]]


def _note_guesses(report: "EnrollmentReport", bank: Path, preview: Path | None) -> None:
    """Say which masks are guesses, where to look at them and how to mend them."""
    first = report.shots - len(report.pictures)
    guesses = [
        (number, one.picture.source) for number, one in enumerate(report.pictures, first) if one.picture.is_by_name
    ]
    if not guesses:
        return
    look = f"in {preview}" if preview else f"with: {command_line('bank', 'list', bank, '--preview', 'bank.png')}"
    number, source = guesses[0]
    if len(guesses) == 1:
        what, it, wrong = f"The mask of {source} is a guess", "it", "it is"
    else:
        what, it, wrong = f"The masks of {len(guesses)} pictures are guesses", "them", "that of the first is"
    say(f"Note: {what}, which may be something else. Look at {it} {look}")
    remove = command_line("bank", "remove", bank, report.name, "--picture", number)
    say(f"If {wrong} wrong, enroll the picture again, with --box or --mask, after: {remove}")
