"""What the routes of the page share: the run that they show and change."""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, Query, Request, Response

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import ClassSupports, share_a_picture
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review import BUSY_S, store_verdict
from fsvit_edge.fewshot.review_items import ReviewItem, ReviewItems, Verdict, with_verdicts_of
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page import schemas
from fsvit_edge.page.background import BackgroundRoute
from fsvit_edge.page.event_log import EventLog
from fsvit_edge.page.frame_hub import FrameHub, decode_mask, encode_png
from fsvit_edge.page.frozen_answers import FrozenAnswers
from fsvit_edge.page.shown_state import Seen, ShownState
from fsvit_edge.page.trials import Trials
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, InputError
from fsvit_edge.runtime.storage import BusyError, editing, version_of

UPLOAD_WAIT_S = 5.0
"""How long a file waits for others to be loaded."""
_POLL_S = 0.05


@dataclass
class PageState:
    """What the routes share."""

    hub: FrameHub
    model: LiveModel  # changes to it wait for the end of a frame
    bank_path: Path  # the classes are saved here; a client cannot choose it
    # A page left open across a restart of the run must not take the new classes for the ones it shows.
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))
    learning_scene: threading.Lock = field(default_factory=threading.Lock)
    scene_check: schemas.SceneCheck | None = None
    events: EventLog = field(default_factory=EventLog)
    shown: ShownState = field(default_factory=ShownState)
    uploading: threading.Lock = field(default_factory=threading.Lock)
    packing: threading.Lock = field(default_factory=threading.Lock)  # one download at a time takes processor and memory
    writing: threading.Lock = field(default_factory=threading.Lock)  # held by `_writing`
    unstored: list[ReviewItem] = field(default_factory=list)  # what the bank's file does not know of verdicts
    trials: Trials = field(init=False)
    answers: FrozenAnswers = field(init=False)
    saved_changes: int | None = field(init=False)  # None: the file does not have all of it
    file_sum: str | None = field(init=False)  # of the file as this run read or wrote it; None: it did neither
    first_changes: int = field(init=False)
    found_in_file: tuple[tuple[int, ...] | None, str | None] = (None, None)  # its version, and the sum of that

    def __post_init__(self) -> None:
        self.trials, self.answers = Trials(self.model), FrozenAnswers(self.model)
        self.first_changes = self.model.changes
        self.saved_changes = self.file_sum = None
        file = None if self.model.bank_origin else self._file()
        if file is None:
            if not self.model.classes:  # nothing to save
                self.saved_changes = self.first_changes
        elif file.classes == self.model.classes:
            mine = self.model.enrolled.supports
            # Or it is another file of that name, as that of a person who runs the demo.
            if all(share_a_picture(file.supports(name), mine[name]) for name in mine):
                self.saved_changes, self.file_sum = self.first_changes, file.sum_without_review

    @property
    def is_saved(self) -> bool:
        """Whether the file has these classes; a change that timed out may still come."""
        return bool(self.model.bank_origin) or (self.saved_changes == self.model.changes and self._file_is_as_known())

    @property
    def has_unsaved_changes(self) -> bool:
        """Whether a person changed something here that is not in the file."""
        return not self.is_saved and (self.model.changes != self.first_changes or bool(self.unstored))

    def seen(self, source: str) -> Seen:
        """What the page shows now of a source."""
        hub, model = self.hub, self.model
        return Seen(
            source,
            hub.health,
            hub.newest(source),
            model.enrolled,
            model.zones_of_run,
            self.scene_check,
            self.events.newest_number,
            model.review,
            self.run_id,
            model.revision,
            self.model.bank_origin or str(self.bank_path),
            version_of(self.bank_path) is not None,
            self.is_saved,
            bool(self.model.bank_origin),
        )

    def judge(self, number: int, verdict: Verdict | None) -> tuple[ReviewItem, bool]:
        """Set the verdict of a doubtful frame, and return it, and whether the verdict is in the bank's file."""
        self.model.refuse_changes()
        with self._writing():
            item, supports = self.model.read(partial(_judge, number=number, verdict=verdict))
            is_stored = False
            try:
                is_stored = store_verdict(self.bank_path, item, supports)
            finally:
                self.unstored = [one for one in self.unstored if not one.is_same(item)]
                if not is_stored:
                    self.saved_changes = None
                    self.unstored.append(item)
        return item, is_stored

    def save(self, overwrite: bool) -> None:
        """Save the classes to the bank's file, and keep the verdicts that others wrote to it meanwhile.

        Raises:
            ArtifactError: Without `overwrite`, the file is no bank, or has classes that this run never read or wrote.
            BusyError: Another process has been changing the bank for `BUSY_S`.
            InputError: As `LiveModel.refuse_changes`.
        """
        self.model.refuse_changes()
        with self._writing(), editing(self.bank_path, limit_s=BUSY_S) as check_unchanged:
            theirs = self._file()
            if not overwrite:
                self._refuse_to_overwrite(theirs)

            def take(model: FewShotModel) -> tuple[int, SupportBank]:
                model.bank.review = self._with_verdicts_of(model.bank, theirs)
                return self.model.changes, model.bank.copy()

            # Written in this thread: the disk may take seconds, in which the loop would process no frames.
            changes, bank = self.model.read(take)
            check_unchanged()
            bank.save(self.bank_path)
            self.saved_changes, self.file_sum = changes, bank.sum_without_review
            self.unstored.clear()

    def wait_for_writing(self, limit_s: float) -> None:
        """Let a thread that writes the bank's file finish, if that takes no longer than the limit."""
        with suppress(BusyError), self._writing(limit_s):
            pass

    def _refuse_to_overwrite(self, theirs: SupportBank | None) -> None:
        if theirs is not None and theirs.sum_without_review != self.file_sum:
            names = ", ".join(theirs.classes) or "no classes"
            raise ArtifactError(
                f"{self.bank_path} was written by another program and has: {names:.200}. Restart the run to take that, "
                "or save again to overwrite it."
            )
        if theirs is None and self.bank_path.exists():
            raise ArtifactError(f"{self.bank_path} is no bank that can be read; save again to overwrite it.")

    def upload(self, path: Path) -> None:
        """Replace the classes by those of a file, which may be a copy of the bank's file; raises like `load_bank`."""
        # Read in this thread, as it is written.
        bank = SupportBank.load(path, *self.model.read(lambda model: model.rules_of_banks))
        uploaded = bank.sum_without_review
        self.model.update(lambda model: model.use_bank(bank))
        if (file := self._file()) is not None and file.sum_without_review == uploaded:
            self.file_sum = uploaded

    def read_verdicts(self) -> None:
        """Take over the verdicts that others wrote to the bank's file, unless it is being written now."""
        with suppress(BusyError), self._writing(limit_s=0):
            if self.model.bank_origin or (theirs := self._file()) is None:
                return

            def take_over(model: FewShotModel) -> None:
                model.bank.review = self._with_verdicts_of(model.bank, theirs)

            self.model.read(take_over)

    def _file_is_as_known(self) -> bool:
        """Whether the file is as this run read or wrote it, but for verdicts; it is read only if it was written."""
        if self.file_sum is None:
            return True
        version, found = self.found_in_file
        if version != (now := version_of(self.bank_path)):
            file = self._file()
            found = None if file is None else file.sum_without_review
            self.found_in_file = now, found
        return found == self.file_sum

    def _file(self) -> SupportBank | None:
        """The bank in the file; None if it does not exist or cannot be read."""
        try:
            return SupportBank.load(self.bank_path)
        except ArtifactError:
            return None

    def _with_verdicts_of(self, bank: SupportBank, theirs: SupportBank | None) -> ReviewItems:
        if theirs is None:
            return bank.review
        others = tuple(one for one in theirs.review if not any(map(one.is_same, self.unstored)))
        return with_verdicts_of(bank.review, others, _shared_classes(bank, theirs))

    @contextmanager
    def _writing(self, limit_s: float | None = None) -> Iterator[None]:
        """Let one thread at a time write the bank's file, with what is said of it; a BusyError if that takes longer.

        The limit is `BUSY_S` if it is None.
        """
        if not self.writing.acquire(timeout=BUSY_S if limit_s is None else limit_s):
            raise BusyError("The bank's file is being written; try again in a moment.")
        try:
            yield
        finally:
            self.writing.release()


def _judge(model: FewShotModel, number: int, verdict: Verdict | None) -> tuple[ReviewItem, ClassSupports]:
    """Set a verdict; return the item, and the supports of its class."""
    item = model.review.judge(number, verdict)
    return item, model.bank.supports(item.name)


def _shared_classes(one: SupportBank, other: SupportBank) -> list[str]:
    """The classes that are in both banks: in a file, another one can have the same name."""
    both = [name for name in one.classes if name in other.classes]
    return [name for name in both if share_a_picture(one.supports(name), other.supports(name))]


async def _page_state(request: Request) -> PageState:
    state: PageState = request.app.state.page
    return state


# Plain functions run in threads, so a request that waits for the model holds up no other.
Page = Annotated[PageState, Depends(_page_state)]
Index = Annotated[int, Query(ge=0)]


async def _file_body(request: Request, page: Page) -> AsyncIterator[bytes]:
    # One after the other: each may take 256 MB. The others wait, and send nothing meanwhile: a file that is refused is
    # read to its end, and 8 clients that try again sent 15 MB up to 14 times a second.
    due_s = time.monotonic() + UPLOAD_WAIT_S
    while not page.uploading.acquire(blocking=False):
        if time.monotonic() >= due_s:
            raise FsvitEdgeError("Another file is being loaded; try again when it is done.")
        await asyncio.sleep(_POLL_S)
    try:
        yield await request.body()
    finally:
        page.uploading.release()


FileBody = Annotated[bytes, Depends(_file_body)]
# What describes such a body.
FILE_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


def make_router() -> APIRouter:
    """Make a router whose description tells how a request fails."""
    error = {"description": "Failed.", "content": {"application/json": {"schema": schemas.Error.model_json_schema()}}}
    return APIRouter(responses={"default": error}, route_class=BackgroundRoute)


def thumbnail(name: str, supports: ClassSupports, index: int, what: str, masked: bool) -> Response:
    """Answer with a thumbnail of a picture of a class; with `masked`, everything outside its mask is dimmed."""
    if index >= len(supports):
        raise InputError(f"Class {name!r} has {len(supports)} {what}s, so there is no {what} {index}.")
    return schemas.PngResponse(encode_png(supports[index].dimmed() if masked else supports[index].thumbnail))


def marked(page: PageState, asked: schemas.MarkedFrame) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
    """Return a frozen frame, (H, W, 3) uint8 RGB, and its mask, (H, W) bool; None if nothing is marked."""
    box, image = asked.box_xyxy, page.hub.frozen(asked.frame_id)
    if box is not None and asked.mask_png is not None:
        raise InputError("Give box_xyxy or mask_png, not both.")
    if asked.mask_png is not None:
        return image, decode_mask(asked.mask_png, (image.shape[0], image.shape[1]))
    return image, None if box is None else mask_of_box(page, image, box)


def mask_of_box(page: PageState, image: npt.NDArray[np.uint8], box: schemas.Box) -> npt.NDArray[np.bool_]:
    """Return the mask that a box on a frame would enroll, (H, W) bool."""
    left, top, right, bottom = map(round, box)
    return page.model.read(lambda model: model.mask_of_box(image, (left, top, right, bottom)))
