"""What a run must not write over: other outputs, the bank, and files that are not its own."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from fsvit_edge.live.sinks.open import path_of, recording_folder, sink_name
from fsvit_edge.runtime.errors import InputError

_MAX_BYTES = 2**22  # of the health of an earlier run


def refuse_collisions(sources: Sequence[str], sinks: Sequence[str], bank: Path | None, health: Path | None) -> None:
    """Refuse outputs of a run that would replace what it reads, or each other.

    Args:
        sources: As `open_source` takes them.
        sinks: As `open_sink` takes them, without places for names.
        bank: The bank of the run, which may not exist yet; None if it is not on this machine.
        health: The file for the health of the run.

    Raises:
        InputError: Two outputs are one file, folder, topic or page, or one is the bank; a picture has the name of one
            that a sink writes; or the health would replace a file of another kind.
    """
    the_bank, taken = None if bank is None else os.path.realpath(bank), set[str]()
    for uri in sinks:
        is_file = recording_folder(uri) is not None
        place = os.path.realpath(path_of(uri)) if is_file else uri.rstrip("/")
        if place in taken:
            raise InputError(f"Two sinks would write to {sink_name(uri)}; give each its own with --sink.")
        if is_file and place == the_bank:
            raise InputError(f"The sink {sink_name(uri)} is the bank, too; give another name with --sink.")
        taken.add(place)
    for path in (Path(os.path.realpath(uri)) for uri in sources):
        if str(path.parent) in taken and re.fullmatch(r"frame_\d+\.(jpg|png)", path.name):
            raise InputError(f"A sink would write over the source {path}; give another folder with --sink.")
    if health is None:
        return
    place = os.path.realpath(health)
    if place in taken or place == the_bank:
        what = "a sink" if place in taken else "the bank"
        raise InputError(f"The health file {health} is {what}, too; give another name with --health.")
    if health.is_dir():
        raise InputError(f"The health file {health} is a folder; give the name of a file with --health.")
    if health.is_file() and not _is_health(health):
        raise InputError(
            f"The file {health} is not the health of a run, which would replace it; give another name with --health."
        )


def _is_health(path: Path) -> bool:
    """Whether a file is empty or what an earlier run wrote."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
        values = json.loads(text) if text else {"source_status": None}
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "source_status" in values
