"""`fsvit-edge bank`: list and edit the classes and zones of a bank, teach it the empty scene, check it by verdicts."""

import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fsvit_edge.cli.options import BundleOption, EngineOption, JsonOption, PrecisionOption
from fsvit_edge.cli.outputs import write_preview
from fsvit_edge.cli.terminal import editing_bank, note_old_signature, open_model, print_table, say
from fsvit_edge.fewshot.names import quoted
from fsvit_edge.runtime.messages import command_line
from fsvit_edge.runtime.presence_level import distinct_texts, score_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from fsvit_edge.fewshot.bank import SupportBank
    from fsvit_edge.fewshot.scene import SceneReport

bank_app = typer.Typer(
    help="List and change what is in a bank; check or sign it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _checked(bank: Path) -> Path:
    """Refuse what is no bank's name before anything is read: a scene may be a camera."""
    from fsvit_edge.fewshot.bank_file import check_bank_path

    check_bank_path(bank)
    return bank


@contextmanager
def _changing(bank: Path) -> "Iterator[SupportBank]":
    """Yield the classes of a bank's file, to change them; then they are written to it."""
    from fsvit_edge.fewshot.bank import SupportBank

    with editing_bank(bank) as check_unchanged:
        loaded = SupportBank.load(bank)
        yield loaded
        check_unchanged()
        loaded.save(bank)


BankFile = Annotated[Path, typer.Argument(help="The bank, a .safetensors file.", callback=_checked)]


@bank_app.command("list")
def list_classes(
    bank: BankFile,
    preview: Annotated[
        Path | None,
        typer.Option(
            help="Draw all pictures of the bank, negatives and the empty scene too, with their numbers, into this file."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what is in a bank.

    These are its classes, the numbers of their negatives, its zones, and how many doubtful frames it keeps.
    """
    from fsvit_edge.fewshot.bank import SupportBank
    from fsvit_edge.fewshot.bank_sheet import draw_bank
    from fsvit_edge.fewshot.scene import false_alarm_bound
    from fsvit_edge.runtime.errors import InputError

    loaded = SupportBank.load(bank)
    if preview is not None:
        if not loaded.classes and not loaded.scene:
            raise InputError(
                f"{bank} has no pictures to draw; add some with: fsvit-edge enroll NAME IMAGE --bank {bank}."
            )
        write_preview(preview, draw_bank(loaded))
    entries, rows, negative_rows = [], [], []
    for name in loaded.classes:
        supports, level, origin = loaded.supports(name), loaded.level(name), loaded.level_source(name)
        negatives = loaded.negatives(name)
        masks, nbytes = (
            sum(one.has_mask for one in supports),
            sum(one.nbytes for one in (*supports, *(negative.support for negative in negatives))),
        )
        counts = {"name": name, "shots": len(supports), "masks": masks, "negatives": len(negatives)}
        sizes = {"kept_tokens": [one.kept.shape[1] for one in supports], "bytes": nbytes}
        margins = [round(one.margin, 3) for one in negatives]
        entries.append({**counts, **sizes, "negative_margins": margins, "level": level, "level_source": origin})
        for number, one in enumerate(negatives):
            marked = f"{one.support.thumbnail_mask.mean():.0%}"
            negative_rows.append((name, str(number), marked, f"{one.margin:.1f}"))
        numbers = (str(len(supports)), str(masks), str(len(negatives)), f"{nbytes / 1e3:.0f}")
        rows.append((name, *numbers, f"{score_text(level)} ({origin})"))
    judged = sum(one.verdict is not None for one in loaded.review)
    if as_json:
        frames = len(loaded.scene)
        facts = {
            "encoder": vars(loaded.identity),
            "scene_frames": frames,
            "false_alarm_bound": round(false_alarm_bound(frames), 4),
            "zones": [vars(one) for one in loaded.zones],
            "doubtful_frames": len(loaded.review),
            "judged_frames": judged,
            "classes": entries,
        }
        print(json.dumps(facts, ensure_ascii=False))
        return
    header = ("class", "shots", "with mask", "negatives", "kB", "level")
    print_table(f"{bank}, made with {loaded.identity.name}", header, rows)
    if negative_rows:
        print_table("Negatives", ("class", "number", "of its picture", "margin"), negative_rows)
    print(_scene_promise(len(loaded.scene)))
    _note_unscored(loaded)
    if loaded.found_in_scene:
        say(f"Warning: these classes are found even in the empty scene: {', '.join(loaded.found_in_scene)}.")
    if loaded.zones:
        print(f"Zones: {', '.join(one.name for one in loaded.zones)}.")
    if loaded.review:
        print(f"Doubtful frames: {len(loaded.review)}, of them {judged} judged; see: fsvit-edge bank review {bank}")


@bank_app.command()
def remove(
    bank: BankFile,
    name: Annotated[str, typer.Argument(help="The class to remove.")],
    negative: Annotated[
        int | None,
        typer.Option(min=0, help="Remove only this negative of the class, by its number in bank list."),
    ] = None,
    picture: Annotated[
        int | None,
        typer.Option(min=0, help="Remove only this picture of the class, by its number in bank list --preview FILE."),
    ] = None,
) -> None:
    """Remove a class, or one of its pictures or negatives. With the last picture, the class goes."""
    from fsvit_edge.runtime.errors import InputError

    if negative is not None and picture is not None:
        raise InputError("Give --negative or --picture, not both: the numbers change with each removal.")
    with _changing(bank) as loaded:
        pictures = len(loaded.supports(name))
        if negative is not None:
            loaded.remove_negative(name, negative)
        elif picture is not None:
            loaded.remove_support(name, picture)
        else:
            loaded.remove(name)
    if negative is not None:
        print(f"Removed negative {negative} of {quoted(name)}, which has {len(loaded.negatives(name))} left.")
    elif picture is not None and pictures > 1:
        print(f"Removed picture {picture} of {quoted(name)}, which has {pictures - 1} left.")
    else:
        print(f"Removed {quoted(name)}; {bank} contains: {', '.join(loaded.classes) or 'no class'}.")
    if negative is not None or picture is not None:
        _note_unscored(loaded)


@bank_app.command()
def rename(
    bank: BankFile,
    old: Annotated[str, typer.Argument(help="The current name.")],
    new: Annotated[str, typer.Argument(help="The new name.")],
) -> None:
    """Rename a class in a bank."""
    with _changing(bank) as loaded:
        loaded.rename(old, new)
    print(f"Renamed {quoted(old)} to {quoted(new)}; {bank} contains: {', '.join(loaded.classes)}.")


@bank_app.command("level")
def set_level(
    bank: BankFile,
    name: Annotated[str, typer.Argument(help="The class.")],
    level: Annotated[
        float | None,
        typer.Argument(help="Score above which the class is present, 0 to 1; default: derived from its pictures."),
    ] = None,
) -> None:
    """Set the level of a class, or derive it from its pictures again."""
    with _changing(bank) as loaded:
        loaded.set_level(name, level)
    print(f"The level of {quoted(name)} is now {score_text(loaded.level(name))} ({loaded.level_source(name)}).")
    _note_unscored(loaded)


@bank_app.command()
def zone(
    bank: BankFile,
    zone: Annotated[
        str,
        typer.Argument(help="NAME=x1,y1,x2,y2,x3,y3,...: its corners, as shares of width and height, as for run."),
    ],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the zone of this name.")] = False,
) -> None:
    """Add or remove a zone; runs say which classes are in it."""
    from fsvit_edge.fewshot.zones import parse_zone, without_zone

    with _changing(bank) as loaded:
        loaded.zones = without_zone(loaded.zones, zone) if remove else (*loaded.zones, parse_zone(zone))
    print(f"Zones in {bank}: {', '.join(one.name for one in loaded.zones) or 'none'}.")


@bank_app.command()
def scene(
    bank: BankFile,
    source: Annotated[
        str | None,
        typer.Argument(help="A folder, a video or a camera that shows none of the objects."),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, max=32, help="Maximum number of frames to learn, spread evenly.")] = 16,
    forget: Annotated[bool, typer.Option("--forget", help="Forget all frames learned before.")] = False,
    bundle: BundleOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Learn the empty scene, which classes must outscore."""
    from fsvit_edge.live.sample import sample_frames
    from fsvit_edge.runtime.errors import InputError

    if source is None and not forget:
        raise InputError("Give a source that shows none of the objects, or --forget.")
    sample = None if source is None else sample_frames(source, frames)
    for note in sample.notes if sample else ():
        say(f"Note: {note}")
    with editing_bank(bank) as check_unchanged, open_model(bundle, engine, precision, bank=bank) as model:
        model.load_bank(bank)
        if forget:
            model.forget_scene()
        report = model.learn_scene(sample.frames) if sample else None
        check_unchanged()
        model.save_bank(bank)
        levels = {name: model.bank.level(name) for name in model.classes}
        by_hand = {name for name in model.classes if model.bank.level_source(name) == "by hand"}
    if report is not None:
        _print_scene(bank, report, levels, by_hand)
    print(_scene_promise(report.frames if report else 0))
    if sample and sample.problem:  # as at the end of a run
        say(sample.problem)
        raise typer.Exit(1)


@bank_app.command()
def review(
    bank: BankFile,
    preview: Annotated[Path | None, typer.Option(help="Draw the frames, with their numbers, into this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the doubtful frames, and what you said of them."""
    from fsvit_edge.fewshot.bank import SupportBank
    from fsvit_edge.fewshot.review import draw_review
    from fsvit_edge.runtime.errors import InputError

    loaded = SupportBank.load(bank)
    items = loaded.review
    if preview is not None:
        if not items:
            raise InputError(f"{bank} keeps no doubtful frames to draw; collect some with: fsvit-edge run --review.")
        write_preview(preview, draw_review(items, loaded.classes))
    if as_json:
        print(json.dumps({"items": [one.to_dict() for one in items]}, ensure_ascii=False))
        return
    if not items:
        print(f"{bank} keeps no doubtful frames; collect some with: fsvit-edge run --review.")
        return
    rows = []
    for one in items:
        score, level = distinct_texts(one.score, one.level)
        captured = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.wall_time_s))
        answer = f"{_answer(one.was_present)} {score}"
        rows.append((one.name, str(one.number), answer, level, captured, one.verdict or "-"))
    print_table(f"Doubtful frames in {bank}", ("class", "number", "answer", "level", "captured", "verdict"), rows)
    waiting = sum(one.verdict is None for one in items)
    if waiting:
        look = "" if preview else "look at them with --preview FILE, then: "
        say(f"{waiting} wait for a verdict; {look}fsvit-edge bank judge {bank} NUMBER yes (or no)")


@bank_app.command()
def judge(
    bank: BankFile,
    number: Annotated[int, typer.Argument(min=0, help="Number of the frame, as bank review lists it.")],
    verdict: Annotated[str, typer.Argument(help="yes or no: whether the class is there.")],
) -> None:
    """Say whether the class is there in a doubtful frame."""
    from fsvit_edge.fewshot.review import update_review
    from fsvit_edge.fewshot.review_items import Verdict, with_verdict

    loaded = update_review(bank, lambda loaded: with_verdict(loaded.review, number, cast("Verdict", verdict)))
    note_old_signature(bank)
    (name,) = (one.name for one in loaded.review if one.number == number)
    print(f"Frame {number}: {verdict}, {quoted(name)} is {'' if verdict == 'yes' else 'not '}there.")


@bank_app.command()
def check(
    bank: BankFile,
    as_json: JsonOption = False,
    bundle: BundleOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Answer all frames with a verdict again.

    Ends with code 5 if an answer contradicts its verdict.
    """
    from fsvit_edge.runtime.errors import AccuracyGateError

    with open_model(bundle, engine, precision, bank=bank) as model:
        model.load_bank(bank)
        checked = model.review.check()
    if as_json:
        print(json.dumps(checked.to_dict(), ensure_ascii=False))
    else:
        rows = [
            (
                one.item.name,
                str(one.item.number),
                str(one.item.verdict),
                f"{_answer(one.was_present)} {score_text(one.score_before)}",
                f"{_answer(one.is_present)} {score_text(one.score)}",
                " and ".join(["changed"] * one.has_changed + ["wrong"] * one.contradicts) or "-",
            )
            for one in checked.items
        ]
        if rows:
            print_table(f"Verdicts in {bank}", ("class", "number", "verdict", "answer then", "now", ""), rows)
        print(checked)
    if checked.contradicting:
        numbers = ", ".join(str(one.item.number) for one in checked.contradicting)
        raise AccuracyGateError(
            f"{len(checked.contradicting)} of {len(checked.items)} verdicts in {bank} are contradicted: {numbers}; "
            "learn from the frame with Review on the page of a run, add another picture or negative of the class with "
            "fsvit-edge enroll, or change its level with fsvit-edge bank level."
        )


def _answer(is_present: bool) -> str:
    return "present" if is_present else "absent"


def _scene_promise(frames: int) -> str:
    from fsvit_edge.fewshot.scene import false_alarm_bound

    if not frames:
        return "The bank knows no empty scene; teach it with: fsvit-edge bank scene BANK SOURCE."
    return (
        f"Frames of the empty scene: {frames}. If new ones differ from them no more than they do among themselves, "
        f"a class is falsely found in at most {false_alarm_bound(frames):.0%} of those (right in 95 of 100 cases); "
        "classes with a level set by hand, and run --level, are not held to the scene."
    )


def _note_unscored(bank: "SupportBank") -> None:
    names = [name for name in bank.classes if bank.scene and not bank.scene_scores(name)]
    if names:
        say(
            f"Note: compared with the empty scene again at the next run, which may raise the level: {', '.join(names)}."
        )


def _print_scene(bank: Path, report: "SceneReport", levels: "Mapping[str, float]", by_hand: "Collection[str]") -> None:
    for name, highest in report.highest.items():
        score, level = distinct_texts(highest, levels[name])
        print(f"{name}: at most {score} on the empty scene; its level is {level}.")
        if name in report.answering:
            say(
                f"Warning: {report.warning(name, name in by_hand)}; show it what it is not with: fsvit-edge enroll "
                f"{quoted(name)} PICTURE --not, or remove that from view."
            )
    if report.answering:
        forget = command_line("bank", "scene", bank, "--forget")
        say(f"If one of your objects was in view, the scene was not empty: {forget}, and learn it again without them.")
