"""What the routes of the page share: the run that they show and change."""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, Query, Request, Response

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import ClassSupports, share_a_picture
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review import BUSY_S, store_verdict
from fsvit_edge.fewshot.review_items import ReviewItem, Verdict, with_verdicts_of
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page import schemas
from fsvit_edge.page.events import EventLog
from fsvit_edge.page.frame_hub import FrameHub, decode_mask, encode_png
from fsvit_edge.page.trials import Trials
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.storage import BusyError, editing

_Answer = TypeVar("_Answer")


@dataclass
class PageState:
    """What the routes share."""

    hub: FrameHub
    model: LiveModel  # changes to it wait for the end of a frame
    bank_path: Path  # the classes are saved here; a client cannot choose it
    # A page left open across a restart of the run must not take the new classes for the ones it shows.
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))
    learning_scene: threading.Lock = field(default_factory=threading.Lock)
    events: EventLog = field(default_factory=EventLog)
    writing: threading.Lock = field(default_factory=threading.Lock)  # held by `_writing`
    taken_back: list[ReviewItem] = field(default_factory=list)  # verdicts that the bank's file may still have
    trials: Trials = field(init=False)
    saved_revision: int | None = field(init=False)  # None: a verdict is not in the file

    def __post_init__(self) -> None:
        self.trials = Trials(self.model)
        self.saved_revision = self.model.revision

    @property
    def is_saved(self) -> bool:
        """Whether nothing has changed since the classes were saved; a change that timed out may still come."""
        return self.saved_revision == self.model.revision

    def judge(self, number: int, verdict: Verdict | None) -> tuple[ReviewItem, bool]:
        """Set the verdict of a doubtful frame, and return it, and whether the verdict is in the bank's file."""
        with self._writing():
            item, supports = self.model.read(partial(_judge, number=number, verdict=verdict))
            is_stored = False
            try:
                is_stored = store_verdict(self.bank_path, item, supports)
            finally:
                if not is_stored:
                    self.saved_revision = None
                    if verdict is None:
                        self.taken_back.append(item)
        return item, is_stored

    def save(self) -> None:
        """Save the classes to the bank's file, and keep the verdicts that others wrote to it meanwhile."""
        self.model.wait_for_scores()  # so that the file has the levels to come
        with self._writing(), editing(self.bank_path, limit_s=BUSY_S):
            try:
                theirs = SupportBank.load(self.bank_path)
            except ArtifactError:  # it does not exist, or is damaged and about to be replaced
                theirs = None

            def save(model: FewShotModel) -> int:
                if theirs is not None:
                    shared = _shared_classes(model.bank, theirs)
                    others = tuple(one for one in theirs.review if not any(map(one.is_same, self.taken_back)))
                    model.bank.review = with_verdicts_of(model.bank.review, others, shared)
                model.save_bank(self.bank_path)
                return self.model.revision

            # In the thread of the loop, for whose end a run that stops waits.
            self.saved_revision = self.model.read(save)
            self.taken_back.clear()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Let one thread at a time write the bank's file, with what is said of it; a BusyError if that takes long."""
        if not self.writing.acquire(timeout=BUSY_S):
            raise BusyError("The bank's file is being written; try again in a moment.")
        try:
            yield
        finally:
            self.writing.release()

    def update(self, request: Callable[[FewShotModel], _Answer]) -> _Answer:
        """Change the classes; raises like `LiveModel.update`."""
        return self.model.update(request)


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


def make_router() -> APIRouter:
    """Make a router whose description tells how a request fails."""
    error = {"description": "Failed.", "content": {"application/json": {"schema": schemas.Error.model_json_schema()}}}
    return APIRouter(responses={"default": error})


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
