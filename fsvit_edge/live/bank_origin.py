"""Where the bank of a run comes from: a web server or a file, asked again and again for a newer one."""

import hashlib
import os
import ssl
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import SplitResult

from fsvit_edge.fewshot.bank_file import check_bank_path
from fsvit_edge.fewshot.bank_signature import SIGNATURE_SUFFIX, signature_of
from fsvit_edge.live.uri import is_address, printable, printable_address
from fsvit_edge.live.web_request import WEB_ERRORS, WebRequest, answer_text, parse_web_address, redirect_problem
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.storage import open_regular, version_of

MAX_BANK_BYTES = 256_000_000
"""As for an upload to the page."""

_MAX_SIGNATURE_BYTES = 4_000  # more than one has, so that a page of an error is no other trouble than a wrong signature
_STALL_S = 10.0
_CHUNK_BYTES = 2**16
_MAX_VERSION = 1000  # characters of a header
_ABSENT = (403, 404, 410)  # some stores answer 403 for what does not exist

Version = tuple[str, ...]
"""What differs when the bank does: ETag and Last-Modified of a server, or identity, size and time of a file."""


class OriginError(FsvitEdgeError):
    """The bank or its signature cannot be read now; the sentence has no end, so that what happens next can follow."""


class NoSignatureError(OriginError):
    """The bank can be read, and there is no signature beside it."""


@dataclass(frozen=True)
class Fetched:
    """A bank's file as it was read, with nothing checked.

    Attributes:
        data: Its bytes.
        version: To ask for a newer one; None: it is fetched each time.
    """

    data: bytes
    version: Version | None

    @cached_property
    def sha256(self) -> str:
        """Of the bytes, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


class Origin(ABC):
    """Where a bank comes from.

    Attributes:
        name: Safe to print.
        key: Identifies it; may contain a password.
    """

    name: str
    key: str

    @abstractmethod
    def fetch(self, known: Version | None, limit_s: float) -> Fetched | None:
        """Return the bank, or None if it is still the known version; an OriginError if that takes longer or fails."""

    @abstractmethod
    def fetch_signature(self, limit_s: float) -> bytes:
        """Return the bank's signature; raises like `fetch`, and a NoSignatureError if there is none."""

    @abstractmethod
    def cut(self) -> None:
        """End what another thread waits for, as far as possible."""


def open_origin(bank: str, is_signed: bool) -> Origin:
    """Return where a bank comes from; an InputError if it cannot be asked there, or would not be safe unsigned."""
    if not is_address(bank):
        check_bank_path(Path(bank))
        return FileOrigin(Path(bank))
    parts = parse_web_address(bank)
    if parts is None:
        raise InputError(
            f"Invalid address {printable_address(bank)} of a bank; expected a file or https://HOST/bank.safetensors, "
            "with other characters than letters, digits and punctuation as %XX."
        )
    if parts.scheme == "http" and not is_signed:
        raise InputError(
            "A bank from http:// could be exchanged on the way; use https://, or sign it and give the public key with "
            "--trust KEY."
        )
    return WebOrigin(bank, parts)


class WebOrigin(Origin):
    """A web server, asked with If-None-Match and If-Modified-Since. A redirect is not followed."""

    def __init__(self, address: str, parts: SplitResult) -> None:
        self.name, self.key = printable_address(address), address
        self._parts = parts
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._request: WebRequest | None = None

    def fetch(self, known: Version | None, limit_s: float) -> Fetched | None:
        """See `Origin.fetch`."""
        etag, modified = known or ("", "")
        asked = {"If-None-Match": etag, "If-Modified-Since": modified}
        return self._get("", {name: value for name, value in asked.items() if value}, MAX_BANK_BYTES, limit_s)

    def fetch_signature(self, limit_s: float) -> bytes:
        """See `Origin.fetch_signature`."""
        fetched = self._get(SIGNATURE_SUFFIX, {}, _MAX_SIGNATURE_BYTES, limit_s)
        assert fetched is not None
        return fetched.data

    def cut(self) -> None:
        """See `Origin.cut`."""
        if (request := self._request) is not None:
            request.cut()

    def _get(self, suffix: str, headers: dict[str, str], most: int, limit_s: float) -> Fetched | None:
        parts = self._parts._replace(path=self._parts.path + suffix)
        with WebRequest(parts, self._tls, limit_s, _STALL_S) as request:
            self._request = request
            try:
                with request.send("GET", headers) as response:
                    if response.status == 304 and headers:
                        return None
                    if 300 <= response.status < 400:
                        raise OriginError(redirect_problem(response.status))
                    if response.status in _ABSENT and suffix:
                        raise NoSignatureError(f"the server answers {answer_text(response.status)}")
                    if response.status != 200:
                        raise OriginError(f"The server answers {answer_text(response.status)}")
                    stated, data = response.length, bytearray()
                    # `read` believes a chunk of -1 bytes, and takes all that comes at once.
                    part = memoryview(bytearray(_CHUNK_BYTES))
                    too_long = OriginError(f"The answer of the server has more than {most:,} bytes")
                    if stated is not None and stated > most:
                        raise too_long
                    while not request.is_late and (count := response.readinto(part)):
                        data += part[:count]
                        if len(data) > most:
                            raise too_long
                    if request.is_late:
                        raise TimeoutError  # also where it was cut, which looks like the end
                    # `readinto` does not tell that the connection broke off.
                    if stated is not None and len(data) != stated:
                        raise OriginError(f"The answer of the server broke off after {len(data):,} of {stated:,} bytes")
                    # Where the end of the answer is not known, half of it would be taken for this version for ever.
                    is_whole = stated is not None or bool(response.chunked)
                    version = (response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))
                    is_stated = is_whole and any(version) and len("".join(version)) <= _MAX_VERSION
                    return Fetched(bytes(data), version if is_stated else None)
            except WEB_ERRORS as error:
                raise OriginError(request.problem(error)) from error
            finally:
                self._request = None


class FileOrigin(Origin):
    """A file that other programs replace, perhaps on a disk of the network; its link may lead to another one later."""

    def __init__(self, path: Path) -> None:
        self.name, self.key = printable(str(path)), os.path.abspath(path)
        self._path = path

    def fetch(self, known: Version | None, limit_s: float) -> Fetched | None:  # noqa: ARG002 - a disk has no limit
        """See `Origin.fetch`."""
        before = self._version()
        if before is not None and before == known:
            return None
        data = _read(self._path, MAX_BANK_BYTES)
        if self._version() != before:
            raise OriginError(f"The file {self.name} was being written")
        return Fetched(data, before)

    def fetch_signature(self, limit_s: float) -> bytes:  # noqa: ARG002 - a disk has no limit
        """See `Origin.fetch_signature`."""
        path = signature_of(self._path)
        try:
            return _read(path, _MAX_SIGNATURE_BYTES)
        except OriginError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise NoSignatureError(f"there is no {printable(str(path))}") from error
            raise

    def cut(self) -> None:
        """See `Origin.cut`; a read of a disk cannot be ended."""

    def _version(self) -> Version | None:
        version = version_of(self._path)
        return None if version is None else tuple(map(str, version))


def _read(path: Path, most: int) -> bytes:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise OriginError(f"The file {printable(str(path))} has more than {most:,} bytes")
            return file.read(size)  # not `most`, for all of which Python would take memory
    except OSError as error:
        raise OriginError(f"The file {printable(str(path))} cannot be read ({error.strerror})") from error
