"""A labeling from sources to label files, resumable at any moment and repeated for what is new or changed.

Phase 1 keeps what is found in each picture: `fill` in the lines of a journal, `on_ray` in Parquet files. Phase 2 writes
the label files from it.
"""

import json
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fsvit_edge.label.fill import InProcess, OnProgress, Way
from fsvit_edge.label.formats import FORMATS, PARQUET, check_path, write_format
from fsvit_edge.label.frames import frame_name
from fsvit_edge.label.journal import Failure, Kept
from fsvit_edge.label.labeler import Labeler, LabelerOptions, open_side_by_side
from fsvit_edge.label.lake import Lake, list_lake
from fsvit_edge.label.output import PICTURES_NAME, Output, Summary, open_output
from fsvit_edge.label.pictures import PARTS, Listing, Stored, list_pictures, parse_split, part_chooser
from fsvit_edge.label.records import About, LabeledPicture
from fsvit_edge.live.uri import is_address, printable, printable_address
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.messages import Say

_NAMED_BY_STEM = ("yolo", "masks")
"""Formats with a file for each picture, of its name without the suffix."""


@dataclass(frozen=True)
class LabelOptions:
    """What to label and where to.

    Attributes:
        labeler: What to look for, and by which model.
        sources: As `list_pictures` takes them; with `ray`, also as `list_lake` does.
        output: The folder for the labels.
        format: A key of `FORMATS`; with `ray`, also `PARQUET`.
        every_s: Seconds between the frames of a video, 0 for every frame; None for no videos.
        split: As `parse_split` takes it; None does not split the pictures.
        ray: The address of the Ray cluster that labels, or "local"; None labels in this process.
    """

    labeler: LabelerOptions
    sources: tuple[str, ...]
    output: Path
    format: str
    every_s: float | None = None
    split: str | None = None
    ray: str | None = None


@dataclass(frozen=True)
class LabelResult:
    """What is in an output.

    Attributes:
        labeled: Pictures and frames with labels.
        failed: Lines of `errors.jsonl`.
        pictures_of: Of each class, the number of pictures that it is present in.
        parts_of: Of each class, the number of its parts.
        pictures_in: Of each part of the split, the number of its pictures; empty without a split.
        earlier: Of the pictures and frames, those that earlier calls labeled.
        elapsed_s: Seconds of this call; None if the output was complete before, and nothing was written.
    """

    labeled: int
    failed: int
    pictures_of: dict[str, int]
    parts_of: dict[str, int]
    pictures_in: dict[str, int]
    earlier: int = 0
    elapsed_s: float | None = None


def label(
    options: LabelOptions,
    say: Say = lambda _: None,
    on_progress: OnProgress = lambda _: None,
) -> LabelResult:
    """Label pictures; the same call again labels what is new, changed or could not be labeled, and goes on if it ended.

    The result is that of one call for all pictures that are there.

    Args:
        options: What to label and where to.
        say: Gets notes and warnings.
        on_progress: Called after each picture, or with Ray after some, in this thread.

    Raises:
        InputError: An option or source cannot be used, or the output holds something else.
        SourceError: A source does not exist.
        ArtifactError: The bundle or bank is missing, damaged or does not fit.
        EnvironmentLacksError: The engine is not installed here, or finds no device; or so it is with Ray.
        FsvitEdgeError: Another process writes to the output, or the disk is full.
    """
    started_s = time.monotonic()
    _check_options(options)
    shares = None if options.split is None else parse_split(options.split)
    is_lake = any(map(is_address, options.sources))
    listing = list_lake(options.sources) if is_lake else list_pictures(options.sources, options.every_s)
    _check_names(listing, options.format)
    for note in listing.notes:
        say(f"Note: {note}")
    with _opened(options, say) as way, open_output(options.output) as output:
        output.begin(_call(options, listing, way.about))
        kept = way.read_kept(output, listing)
        pending = [entry for entry in listing.entries if not (entry.problem or kept.is_done(entry))]
        for entry in pending:
            if entry.is_video:
                output.remove_unfinished(entry.name)
        earlier = len(kept.labeled)
        for note in _notes_at_start(listing, pending, kept, output.summary):
            say(f"Note: {note}")
        kept = way.fill(listing, pending, kept, on_progress)
        result = _earlier_result(output, kept.digest(listing), say)
        if result is None:
            result = _write_labels(listing, kept, way, options.format, output, shares)
            result = replace(result, elapsed_s=time.monotonic() - started_s)
        if options.format == "yolo":
            _place_pictures(options, listing, output, say)
    for note in _split_notes(options.format, result):
        say(note)
    return replace(result, earlier=earlier)


def _check_options(options: LabelOptions) -> None:
    formats = (*FORMATS, PARQUET)
    if options.format not in formats:
        raise InputError(f"--format must be one of {', '.join(formats)}, got {options.format!r:.40}.")
    if is_address(str(options.output).replace(":/", "://", 1)):  # what a Path leaves of an address
        raise InputError("--output must be a folder on this machine; copy it to a store when it is complete.")
    if options.ray is not None:
        if options.every_s is not None:
            raise InputError("--every and --ray do not go together; label videos without --ray, into another folder.")
        return
    if options.format == PARQUET:
        raise InputError("--format parquet is written with --ray; without, --format jsonl has the same.")
    for source in filter(is_address, options.sources):
        raise InputError(f"{printable_address(source)} is no path; add --ray to read pictures of a store.")


@contextmanager
def _opened(options: LabelOptions, say: Say) -> Iterator[Way]:
    """Open what labels; the model first: what it refuses leaves no folder behind."""
    if options.ray is None:
        with open_side_by_side(Labeler, options.labeler, say) as labelers:
            yield InProcess(labelers, options.every_s)
        return
    from fsvit_edge.label.on_ray import open_on_ray

    with open_on_ray(options.ray, Labeler, options.labeler, say) as way:
        yield way


def _call(options: LabelOptions, listing: Listing, about: About) -> dict[str, object]:
    """What makes this call the same as another; threads are left out, because they decide only how fast it is."""
    return {
        "fsvit_edge": about.fsvit_edge,
        "sources": list(map(_shown, options.sources)),
        "base": printable(str(listing.base)),  # of a list, it may change with what is in it, and so do all names
        "format": options.format,
        "ray": None if options.ray is None else True,  # not where: another cluster goes on
        "bundle_sha256": about.bundle_sha256,
        "engine": about.engine,
        "precision": about.precision,
        "min_score": options.labeler.min_score,
        "split": options.split,
        "every_s": options.every_s,
        "classes": list(about.classes),
        "levels": [f"{name} {level:.4g}" for name, level in zip(about.classes, about.levels, strict=True)],
        "bank_sha256": about.bank_sha256,
    }


def _shown(source: str) -> str:
    return printable_address(source) if is_address(source) else printable(os.path.abspath(source))


def _check_names(listing: Listing, format_name: str) -> None:
    """Say at the start, by an InputError, what would be said after the last picture."""
    stems: dict[str, str] = {}
    for entry in listing.entries:
        if entry.problem:
            continue
        check_path(format_name, frame_name(entry.name, 0) if entry.is_video else entry.name)
        if format_name not in _NAMED_BY_STEM or entry.is_video:
            continue
        other = stems.setdefault(os.path.splitext(entry.name)[0], entry.name)
        if other != entry.name:
            raise InputError(
                f"{other} and {entry.name} differ only in their suffix, and --format {format_name} names files without "
                "it; rename one of them, or choose coco, cvat or jsonl."
            )


def _notes_at_start(listing: Listing, pending: Sequence[Stored], kept: Kept, summary: Summary | None) -> Iterator[str]:
    """Say what an earlier call did and what is left; what only could not be labeled then is no news."""
    if not kept.labeled:
        return
    earlier = f"{len(kept.labeled):,} pictures were labeled by an earlier command"
    new = [entry.name for entry in pending if entry.name not in kept.failed and entry.name not in kept.versions]
    if summary is None:
        if pending:
            yield f"{earlier}; {len(pending):,} of {len(listing.entries):,} pictures and videos are left."
        return
    if new:
        yield f"{earlier}; new or changed: {new[0]}{_more(new)}."
    if kept.gone and summary["written_from"] != kept.digest(listing):
        gone = sorted(kept.gone)
        yield f"Labels are left out of what is no longer there: {gone[0]}{_more(gone)}."


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1:,} more" if names[1:] else ""


def _earlier_result(output: Output, written_from: str, say: Say) -> LabelResult | None:
    """Return the result of the call that wrote the label files, if they are there and would be the same now."""
    summary = output.summary
    if summary is None or summary["written_from"] != written_from:
        return None
    missing = output.missing_file()
    if missing is not None:
        say(f"Note: {missing} is missing in {output.folder}; the label files are written again.")
        return None
    return LabelResult(**summary["result"])


def _place_pictures(options: LabelOptions, listing: Listing, output: Output, say: Say) -> None:
    """Let the lists of YOLO find their pictures, or say how."""
    base, images = printable(str(listing.base)), output.folder / PICTURES_NAME
    if isinstance(listing, Lake):
        say(f"Note: Copy the pictures of {base} to {images}, or YOLO finds none.")
        return
    if options.every_s is not None:  # a link would lead the frames of videos into the user's folder
        if not all(entry.is_video for entry in listing.entries):
            say(f"Note: Copy the pictures of {base} to {images}, where the frames of videos are, or YOLO finds none.")
        return
    is_folder = len(options.sources) == 1 and os.path.isdir(options.sources[0])  # others may have / in common
    if not os.path.lexists(images) and not (is_folder and output.link_pictures(listing.base)):
        line = f"ln -s {shlex.quote(base)} {shlex.quote(str(images))}"
        say(f"Note: For YOLO to find the pictures, make a link to them: {line}")


def _split_notes(format_name: str, result: LabelResult) -> Iterator[str]:
    empty = [part for part, count in result.pictures_in.items() if not count]
    if empty:
        yield (
            f"Warning: No picture is in {' and '.join(empty)}; the name of a picture decides, and that of a video for "
            "all of its frames."
        )
    if format_name == "yolo" and not result.pictures_in.get("val"):
        advice = "" if result.pictures_in else "; --split 0.8/0.2 keeps some for validation"
        yield f"Note: data.yaml has the pictures of train.txt for validation, too{advice}."


def _write_labels(
    listing: Listing,
    kept: Kept,
    way: Way,
    format_name: str,
    output: Output,
    shares: Sequence[float] | None,
) -> LabelResult:
    failures: list[Failure] = []
    classes: Sequence[str] = way.about.classes
    pictures_of, parts_of = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0)
    part_of = None if shares is None else part_chooser(shares)
    pictures_in = {} if shares is None else dict.fromkeys(PARTS[: len(shares)], 0)
    labeled = 0
    for record in way.read(kept.items(listing)):
        if isinstance(record, Failure):
            failures.append(record)
            continue
        labeled += 1
        for one in record.classes:
            pictures_of[one.name] += one.present
            parts_of[one.name] += len(one.parts)
        if part_of is not None:
            pictures_in[part_of(_split_name(record))] += 1

    def pictures() -> Iterator[LabeledPicture]:
        for record in way.read(kept.items(listing)):
            if isinstance(record, LabeledPicture):
                yield record if part_of is None else replace(record, split=part_of(_split_name(record)))

    result = LabelResult(labeled, len(failures), pictures_of, parts_of, pictures_in)
    errors = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in failures).encode()
    summary = {"written_from": kept.digest(listing), "result": asdict(result)}
    output.finish(lambda folder: write_format(format_name, folder, way.about, pictures), errors, summary)
    return result


def _split_name(record: LabeledPicture) -> str:
    """Frames of one video are much alike, so they stay together."""
    return record.path if record.time_s is None else record.path.rpartition("/")[0]
