"""The folder that `label` writes to: whose it is, what the call was, and what was written."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsvit_edge.label.formats.files import ENCODING, check_inside
from fsvit_edge.label.pictures import STATE_NAME
from fsvit_edge.runtime.disk_steps import flush, write_errors
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.json_records import MAX_JSON_BYTES
from fsvit_edge.runtime.storage import BusyError, atomic_write, locked, read_file, remove_leftovers

PICTURES_NAME = "images"
ERRORS_NAME = "errors.jsonl"
PARQUET_NAME = "parquet"
_SHOWN = 200
_SHOWN_OF_SUM = 12

WORDS = {
    "fsvit_edge": "by fsvit-edge {}",
    "sources": "from {}",
    "base": "of pictures below {}",
    "format": "with --format {}",
    "ray": "with --ray",
    "bundle_sha256": "by the bundle {}",
    "engine": "on the engine {}",
    "precision": "in the precision {}",
    "min_score": "with --min-score {}",
    "split": "with --split {}",
    "every_s": "with --every {}",
    "classes": "for the classes {}",
    "levels": "at the levels {}",
    "bank_sha256": "by the bank {}",
}
"""How a fact of a call is told; the order is that in which two calls are compared: of banks, first what people know."""

Call = Mapping[str, Any]
"""What makes two calls the same, by the keys of `WORDS`; plain values for JSON."""


Summary = Mapping[str, Any]
"""What is said of an output that is complete; plain values for JSON."""


class Output:
    """An open output; `open_output` makes it.

    Attributes:
        folder: The folder.
        journal: The file for the journal.
        parquet: The folder for what is found on Ray.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / STATE_NAME
        self.journal = self._state / "journal.jsonl"
        self.parquet = folder / PARQUET_NAME
        self._call, self._summary = self._state / "call.json", self._state / "complete.json"
        self._files = self._state / "files.txt"

    def begin(self, call: Call) -> None:
        """Note what the call is; an InputError that says what differs if the folder has the labels of another."""
        plain = json.loads(json.dumps(call))
        if not self._call.exists():
            atomic_write(self._call, (json.dumps(call, indent=1) + "\n").encode())
            return
        before = self._read(self._call)
        for key in WORDS:
            if before.get(key) == plain[key]:
                continue
            what = f"{_told(key, before.get(key))}, not {_told(key, plain[key])}"
            if key == "bank_sha256":
                what = "by another bank, of the same classes and levels, but with other pictures, zones or verdicts"
            raise InputError(
                f"{self.folder} has labels made {what}; give another folder with --output, or remove this one."
            )

    @property
    def summary(self) -> Summary | None:
        """What `finish` was given; None while the folder is not complete."""
        return self._read(self._summary, "written_from", "result") if self._summary.exists() else None

    def missing_file(self) -> str | None:
        """Return a file that `finish` wrote and that is no longer there; None if all are."""
        names = (_name_of(fact) for fact in self._facts())
        return next((name for name in names if not (self.folder / name).exists()), None)

    def has_picture(self, name: str) -> bool:
        """Whether there is the picture that stands for a frame of a video."""
        return (self.folder / PICTURES_NAME / name).exists()

    def write_picture(self, name: str, data: bytes) -> None:
        """Write a picture that stands for a frame of a video."""
        atomic_write(self.folder / PICTURES_NAME / name, data)

    def link_pictures(self, source: Path) -> bool:
        """Make the pictures of a folder those of the output, where it has none; False if that cannot be."""
        link = self.folder / PICTURES_NAME
        if os.path.lexists(link):
            return True
        if self.folder.resolve().is_relative_to(source.resolve()):  # programs that follow it would never end
            return False
        try:
            link.symlink_to(source)
        except OSError:  # FAT has no links
            return False
        return True

    def remove_unfinished(self, video: str) -> None:
        """Remove what a call that was killed left of a picture of a video's frame."""
        remove_leftovers(self.folder / PICTURES_NAME / video)

    def remove_pictures(self, video: str) -> None:
        """Remove the pictures that stand for frames of a video."""
        check_inside(video)
        if not (self.folder / PICTURES_NAME).is_symlink():  # or it would be somebody's folder of pictures
            shutil.rmtree(self.folder / PICTURES_NAME / video, ignore_errors=True)

    def finish(self, write: Callable[[Path], None], errors: bytes, summary: Summary) -> None:
        """Write the label files and the list of errors in place of earlier ones, and that the folder is complete.

        A call that was killed in the middle of it is done again from the start.

        Raises:
            InputError: A file that would be replaced was changed by somebody else since it was written.
        """
        with write_errors(self.folder):
            staging = self._state / "labels"
            shutil.rmtree(staging, ignore_errors=True)
            write(staging)
            if errors:
                (staging / ERRORS_NAME).write_bytes(errors)
                flush(staging / ERRORS_NAME)
            files = [path for path in staging.rglob("*") if not path.is_dir()]
            before, after = self._facts(), {_fact(staging, str(file.relative_to(staging))) for file in files}
            names_after = set(map(_name_of, after))
            for name in {*map(_name_of, before), *names_after}:
                if (self.folder / name).exists() and _fact(self.folder, name) not in before:
                    raise InputError(
                        f"{self.folder / name} was changed since it was written, and would be written over; move it "
                        "away, or give another folder with --output."
                    )
            # A call that is killed while it replaces them leaves some of the old and some of the new.
            self._write_facts(before | after)
            self._summary.unlink(missing_ok=True)
            for name in set(map(_name_of, before)) - names_after:
                check_inside(name)
                (self.folder / name).unlink(missing_ok=True)
                with suppress(OSError):
                    os.removedirs((self.folder / name).parent)  # up to the first that is not empty
            # Those at the top tell tools what is in the folders, so they come when that is there.
            for file in sorted(files, key=lambda path: -len(path.relative_to(staging).parts)):
                target = self.folder / file.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
            shutil.rmtree(staging)
        self._write_facts(after)
        atomic_write(self._summary, (json.dumps(summary, indent=1) + "\n").encode())

    def _facts(self) -> set[str]:
        """The size, the time and the name of each file that `finish` put here, or was about to."""
        try:
            text = self._files.read_text(**ENCODING)
        except FileNotFoundError:
            return set()
        return set(text.split("\n")[:-1])

    def _write_facts(self, facts: set[str]) -> None:
        atomic_write(self._files, "".join(f"{fact}\n" for fact in sorted(facts)).encode(**ENCODING))

    def _read(self, file: Path, *keys: str) -> dict[str, Any]:
        try:
            values: Any = json.loads(read_file(file, MAX_JSON_BYTES))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise self._damage(file, reason) from error
        if not isinstance(values, dict) or not values.keys() >= set(keys):
            raise self._damage(file, "it has something else")
        return dict(values)

    def _damage(self, file: Path, reason: object) -> ArtifactError:
        return ArtifactError(
            f"{file} is damaged: {reason}; remove the folder {self.folder}, or give another one with --output."
        )


@contextmanager
def open_output(folder: Path) -> Iterator[Output]:
    """Open a folder that is new, empty, or an output of `label`; one process at a time may have it open.

    Raises:
        InputError: It is a file, or has other files.
        BusyError: Another process has it open.
        FsvitEdgeError: It cannot be written to.
    """
    state = folder / STATE_NAME
    with write_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give the name of a folder with --output.")
        is_ours = (state / "call.json").exists()
        others = [path for path in folder.iterdir() if path.name != STATE_NAME] if folder.is_dir() else []
        if others and not is_ours:
            raise InputError(
                f"{folder} contains other files, such as {others[0].name}, and no labels; choose an empty or a new "
                "folder with --output."
            )
        state.mkdir(parents=True, exist_ok=True)
    try:
        with locked(state, required=False, limit_s=0.0):
            remove_leftovers(state)
            yield Output(folder)
    except BusyError as error:
        raise BusyError(f"Another fsvit-edge label is writing to {folder}; wait for it, or give another folder.") from (
            error
        )


def _fact(folder: Path, name: str) -> str:
    status = os.stat(folder / name)
    return f"{status.st_size} {status.st_mtime_ns} {name}"


def _name_of(fact: str) -> str:
    return fact.split(" ", 2)[-1]


def _told(key: str, value: object) -> str:
    words = WORDS[key]
    if value is None or value == []:
        return words.replace("with", "without").removesuffix(" {}")
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = text[:_SHOWN_OF_SUM] if key == "bundle_sha256" else text
    return words.format(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
