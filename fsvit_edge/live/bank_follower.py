"""Follows the bank of a fleet: asks its origin for a newer one, tries that, and swaps it in between two frames."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.bank_signature import TrustedKey
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.bank_copies import BankCopies, BankCopy
from fsvit_edge.live.bank_origin import Fetched, NoSignatureError, Origin, OriginError, Version
from fsvit_edge.live.bank_trial import Ask, BankRefusedError, check_verdicts, try_bank
from fsvit_edge.live.health import BankStatus
from fsvit_edge.live.shared_model import PATIENCE_S, LiveModel
from fsvit_edge.runtime.disk_steps import no_temporary_place
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.storage import temporary_folder

_Answer = TypeVar("_Answer")

POLL_S = 30.0
_LIMIT_S = 300.0  # for a bank of 256 MB over a slow line
_START_S = 20.0  # a start waits no longer if there is a copy
_END_S = 0.2


class _UnsignedError(OriginError):
    """The signature is missing or wrong; the right one may be published next."""


class BankFollower:
    """Opens a model with the newest bank that can be used, and then follows its origin in a thread of its own.

    A bank is accepted if the trusted key signed its bytes, it is whole and of this encoder, and its answers here
    contradict none of the verdicts that it keeps. Until then, and if one of that fails, the last accepted bank
    answers. A bank that is refused is fetched and tried once, one whose signature is wrong is fetched once and
    compared with the signature again each time.

    Args:
        origin: Where the bank comes from.
        trusted: The only key whose signatures count; None: banks are not signed.
        poll_s: Seconds between two questions to the origin.
    """

    def __init__(self, origin: Origin, trusted: TrustedKey | None = None, poll_s: float = POLL_S) -> None:
        self._origin, self._trusted, self._poll_s = origin, trusted, poll_s
        self._copies = BankCopies(origin.key)
        self._status = BankStatus(origin.name)
        self._seen: Version | None = None  # what the origin is asked to be newer than
        self._waiting: Fetched | None = None  # fetched, and neither accepted nor refused
        self._refused = self._refusal = ""  # sum of a bank that was refused, and why
        self._trouble_kind: tuple[object, str] | None = None
        self._problem = ""  # without what follows from it
        self._stopping = threading.Event()

    @property
    def status(self) -> BankStatus:
        """Which bank answers, and what is wrong; safe from any thread."""
        return self._status

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of it before it is opened, in sentences."""
        problem = self._copies.problem
        text = f"No copy of the bank is kept for a start at which it cannot be read: {problem}."
        return (text,) if problem else ()

    def open_model(self, load: Callable[[Path], FewShotModel]) -> FewShotModel:
        """Return a model that uses the origin's bank, or else the newest copy.

        Args:
            load: Opens a model for the bank in a file, and leaves the bank to this.

        Raises:
            FsvitEdgeError: Neither can be used, or as `load`.
        """
        kept = [copy for copy in self._copies.newest_first() if self._is_signed(copy)]
        if kept:
            self._seen = kept[0].fetched.version
            self._status = replace(self._status, sha256=kept[0].fetched.sha256)
        try:
            newer = self._newer(_START_S if kept else _LIMIT_S)
        except FsvitEdgeError as error:
            self._note(error)
            newer = None
        for candidate in (*([] if newer is None else [newer]), *kept):
            model = self._opened(candidate, load)
            if model is not None:
                self._answers(candidate, is_copy=bool(self._problem))
                return model
        copies = "nor can a copy from before" if kept else "and there is no copy of an earlier one"
        raise FsvitEdgeError(f"Bank {self._origin.name} cannot be used, {copies}: {self._problem}.")

    def _opened(self, candidate: BankCopy, load: Callable[[Path], FewShotModel]) -> FewShotModel | None:
        """Return a model that uses a bank; None if the bank cannot be used, which is noted."""
        with ExitStack() as stack:
            try:
                path = stack.enter_context(_file_of(candidate))
            except FsvitEdgeError as error:
                self._note(error)
                return None
            model = load(path)
            try:
                model.use_bank(self._accepted(candidate, path, _ask_of(model)))
            except BaseException as error:
                model.close()
                if not isinstance(error, FsvitEdgeError):
                    raise
                self._note(error)
                return None
            return model

    @contextmanager
    def following(self, model: LiveModel) -> Iterator[None]:
        """Follow the origin until the block ends, for a model that `open_model` returned."""
        thread = threading.Thread(target=self._follow, args=(model,), name="bank", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.stop()
            thread.join(_END_S)  # it is a daemon: one that looks up a name for long is left behind

    def stop(self) -> None:
        """Let the thread end, because the model will."""
        self._stopping.set()
        self._origin.cut()

    def _follow(self, model: LiveModel) -> None:
        while not self._stopping.wait(self._poll_s):
            self._ask_once(model)

    def _ask_once(self, model: LiveModel) -> None:
        try:
            newer = self._newer(_LIMIT_S)
            if newer is not None:
                with _file_of(newer) as path:
                    bank = self._accepted(newer, path, _patient(model))
                model.replace_bank(bank)
                self._answers(newer, is_copy=False)
        except Exception as error:  # whatever is wrong with a bank, the run and its next banks go on
            if not self._stopping.is_set():
                self._note(error)
        else:
            self._trouble_kind = None
            self._status = replace(self._status, trouble="", trouble_since_s=None, is_copy=False)

    def _newer(self, limit_s: float) -> BankCopy | None:
        """Return a bank that is to be tried, with its signature; None if there is no new one.

        Raises:
            OriginError: The bank cannot be read, or its signature is missing or wrong.
            BankRefusedError: The origin still has the bank that was refused.
        """
        fetched = self._origin.fetch(self._seen, limit_s)
        if fetched is not None:
            self._seen, self._waiting = fetched.version, fetched
            if fetched.sha256 != self._refused:
                self._refused = self._refusal = ""
        self._status = replace(self._status, asked_s=time.time())
        waiting = self._waiting
        if waiting is None or waiting.sha256 in (self._status.sha256, self._refused):
            self._waiting = None
            if self._refused:
                raise BankRefusedError(self._refusal)
            return None
        return BankCopy(waiting, self._signature_of(waiting, limit_s), None)

    def _signature_of(self, fetched: Fetched, limit_s: float) -> bytes | None:
        if self._trusted is None:
            return None
        try:
            signature = self._origin.fetch_signature(limit_s)
        except NoSignatureError as error:
            raise _UnsignedError(f"The new bank {fetched.sha256:.12} has no signature ({error})") from error
        if not self._trusted.is_signature_of(signature, fetched.data):
            raise _UnsignedError(
                f"The signature beside the new bank {fetched.sha256:.12} is not that of the trusted key"
            )
        return signature

    def _is_signed(self, copy: BankCopy) -> bool:
        return self._trusted is None or (
            copy.signature is not None and self._trusted.is_signature_of(copy.signature, copy.fetched.data)
        )

    def _accepted(self, candidate: BankCopy, path: Path, ask: Ask) -> SupportBank:
        """Try a bank; a new one is kept as a copy before it answers, so that a start without the origin has it."""
        try:
            bank = try_bank(path, ask)
            if candidate.path is None:
                check_verdicts(bank, ask)
        except BankRefusedError as error:
            reason = str(error).replace(str(path), self._origin.name)
            text = f"The new bank {candidate.fetched.sha256:.12} is refused: {reason}"
            if candidate.path is None:
                self._waiting = None
            if not self._refused:  # else a newer one was, which is what the origin has
                self._refused, self._refusal = candidate.fetched.sha256, text
            raise BankRefusedError(text) from error
        if candidate.path is None:
            self._copies.keep(candidate.fetched, candidate.signature)
        return bank

    def _answers(self, candidate: BankCopy, is_copy: bool) -> None:
        if candidate.path is None:
            self._waiting = None
        sha256 = candidate.fetched.sha256
        self._status = replace(self._status, sha256=sha256, since_s=time.time(), is_copy=is_copy)

    def _note(self, error: Exception) -> None:
        """Set what is wrong; the same kind of trouble keeps its time while it lasts, so that it is told once."""
        is_refusal = isinstance(error, (BankRefusedError, _UnsignedError))
        kind = (type(error), self._refused or (self._waiting.sha256 if self._waiting and is_refusal else ""))
        text = (str(error) if isinstance(error, FsvitEdgeError) else f"{type(error).__name__}: {error}").rstrip(".")
        is_new = kind != self._trouble_kind
        self._trouble_kind, self._problem = kind, text
        again = "" if isinstance(error, BankRefusedError) else f", and this is tried again every {self._poll_s:g} s"
        status, now_s = replace(self._status, trouble=f"{text}; the last good bank answers{again}."), time.time()
        if is_new:
            status = replace(status, trouble_since_s=now_s)
        if is_refusal and (is_new or status.last_refusal != f"{text}."):
            status = replace(status, last_refusal=f"{text}.", last_refusal_s=now_s)
        self._status = status


@contextmanager
def _file_of(candidate: BankCopy) -> Iterator[Path]:
    if candidate.path is not None:
        yield candidate.path
        return
    with temporary_folder() as folder:
        path = folder / "bank.safetensors"
        try:
            path.write_bytes(candidate.fetched.data)
        except OSError as error:
            raise no_temporary_place(error) from error
        yield path


def _ask_of(model: FewShotModel) -> Ask:
    def ask(request: Callable[[FewShotModel], _Answer]) -> _Answer:
        return request(model)

    return ask


def _patient(model: LiveModel) -> Ask:
    def ask(request: Callable[[FewShotModel], _Answer]) -> _Answer:
        return model.read(request, PATIENCE_S)  # a trial that gave up at a busy moment would begin again for ever

    return ask
