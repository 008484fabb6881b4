"""The last accepted banks of an origin, kept in the user's cache for a start without it."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.fewshot.bank_signature import SIGNATURE_SUFFIX, signature_of
from fsvit_edge.live.bank_origin import Fetched, Version
from fsvit_edge.runtime.disk_steps import write_errors
from fsvit_edge.runtime.errors import EnvironmentLacksError
from fsvit_edge.runtime.storage import atomic_write, cache_problem, locked, user_cache

_CACHE = "banks"
_MOST = 2  # the one that was accepted last, and the former one
_LIST = "accepted.json"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class BankCopy:
    """A bank with its signature.

    Attributes:
        fetched: Its bytes, as they are on the disk now, and its version.
        signature: Of the bytes, as it was kept; None if the bank was accepted without one.
        path: Its file among the copies; None: it is none of these.
    """

    fetched: Fetched
    signature: bytes | None
    path: Path | None


class BankCopies:
    """The copies of one origin, which several runs may share.

    Args:
        key: Of the origin; no file tells it, because it may contain a password.

    Attributes:
        problem: Why no copies are kept, as on a device whose disk is read-only: a clause; empty if they are.
    """

    def __init__(self, key: str) -> None:
        self.problem = cache_problem(_CACHE)
        try:
            folder = user_cache(_CACHE)
        except EnvironmentLacksError:
            folder = Path(os.devnull)  # nothing is in it
        self._folder = folder / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def newest_first(self) -> tuple[BankCopy, ...]:
        """Return the copies whose bytes are still those that were accepted."""
        copies = (self._read(sha256, version) for sha256, version in self._listed())
        return tuple(copy for copy in copies if copy is not None)

    def keep(self, fetched: Fetched, signature: bytes | None) -> None:
        """Keep a bank that was accepted, and the one before; an FsvitEdgeError if the disk does not take it."""
        if self.problem:
            return
        sha256 = fetched.sha256
        path = self._path(sha256)
        with write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder, required=False):
            if signature is not None:
                atomic_write(signature_of(path), signature)
            atomic_write(path, fetched.data)
            others = [one for one in self._listed() if one[0] != sha256]
            copies = [(sha256, fetched.version), *others][:_MOST]
            listed = {"format_version": _FORMAT_VERSION, "copies": copies}
            # Last: after a power cut before it, the copies of before count.
            atomic_write(self._folder / _LIST, json.dumps(listed).encode())
            kept = {self._path(one).name for one, _ in copies}
            for file in self._folder.glob("*.safetensors*"):
                if file.name.removesuffix(SIGNATURE_SUFFIX) not in kept:
                    file.unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.safetensors"

    def _listed(self) -> list[tuple[str, Version | None]]:
        """Sum and version of each copy; none if the list cannot be read."""
        try:
            listed = json.loads((self._folder / _LIST).read_bytes())
            if listed["format_version"] != _FORMAT_VERSION:
                return []
            return [(str(sha256), version and tuple(map(str, version))) for sha256, version in listed["copies"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def _read(self, sha256: str, version: Version | None) -> BankCopy | None:
        path = self._path(sha256)
        try:
            fetched = Fetched(path.read_bytes(), version)
        except OSError:
            return None
        if fetched.sha256 != sha256:
            return None
        try:
            signature = signature_of(path).read_bytes()
        except OSError:
            signature = None
        return BankCopy(fetched, signature, path)
