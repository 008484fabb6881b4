"""Pictures in stores such as S3 and Google Cloud Storage, listed and read by the file systems of pyarrow."""

import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fsvit_edge.label.pictures import WITH_MASKS, Listing, WithSize, stored
from fsvit_edge.live.sources.files import VIDEO_SUFFIXES
from fsvit_edge.live.uri import is_address, printable, printable_address
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError, SourceError, first_line, package_error
from fsvit_edge.runtime.pictures import (
    MAX_PICTURE_BYTES,
    PICTURE_SUFFIXES,
    decode_with_size,
    natural_order,
)

if TYPE_CHECKING:  # an extra, which only --ray needs
    from pyarrow import fs


class LakeReader:
    """Reads pictures below an address by their names, in any process: it opens the file system where it is called.

    Args:
        address: As pyarrow takes it, such as s3://bucket/folder?region=eu-west-1.
        base: The folder, as the file system calls it, that names are below.
    """

    def __init__(self, address: str, base: str) -> None:
        self._address = address
        self._base = base

    def __reduce__(self) -> tuple[type["LakeReader"], tuple[str, str]]:
        """Leave the file system behind: each machine has its own credentials."""
        return LakeReader, (self._address, self._base)

    @cached_property
    def _files(self) -> "fs.FileSystem":
        return _opened(self._address)[0]

    def __call__(self, name: str) -> WithSize:
        """Return a picture; raises as `decode_image`, and a SourceError if it cannot be read."""
        path = f"{self._base}/{name}"
        with _reading(path), self._files.open_input_stream(path) as file:
            data = file.read(MAX_PICTURE_BYTES + 1)
        if not data:
            raise InputError(f"{path} is empty.")
        if len(data) > MAX_PICTURE_BYTES:
            raise InputError(f"{path} is larger than {MAX_PICTURE_BYTES // 10**6} MB.")
        return decode_with_size(data, path)


@dataclass(frozen=True)
class Lake(Listing):
    """What to label in a store.

    Attributes:
        address: One of its addresses.
        versions: Of each name, what differs once it was replaced.
    """

    address: str = field(default="", repr=False)  # may hold a key
    versions: Mapping[str, str] = field(default_factory=dict)

    def version(self, name: str) -> str:
        """Return the size and time of a name as the store listed them."""
        return self.versions.get(name, "")

    @property
    def reader(self) -> Callable[[str], WithSize]:
        """What reads a picture by its name, in any process."""
        return LakeReader(self.address, str(self.base))


def list_lake(addresses: Sequence[str]) -> Lake:
    """Find the pictures below addresses of one store, in the order in which `list_pictures` has those of folders.

    Raises:
        InputError: An address is unknown or has no pictures, or they are of several stores.
        SourceError: There is nothing at an address, or it cannot be read.
    """
    if not all(map(is_address, addresses)) or len({_store(address) for address in addresses}) > 1:
        raise InputError(
            "The sources are in several stores; label those of each, or local ones, with an --output of its own."
        )
    found: dict[str, fs.FileInfo] = {}
    folders, notes = [], []
    for address in addresses:
        files, path = _opened(address)
        shown = printable_address(address)
        infos, masks = _below(files, path, shown)
        folders.append(posixpath.dirname(path) if [info.path for info in infos] == [path] else path.rstrip("/"))
        pictures = [info for info in infos if info.extension.lower() in _SUFFIXES]
        videos = sum(f".{info.extension.lower()}" in VIDEO_SUFFIXES for info in infos)
        if not pictures:
            raise InputError(f"{shown} has no pictures ({', '.join(PICTURE_SUFFIXES)}).")
        if videos:
            notes.append(f"Of {shown}, {videos:,} videos are not read.")
        notes += [f"{one} is left out: beside images/, masks/ has masks." for one in masks]
        found.update((info.path, info) for info in pictures)
    base = posixpath.commonpath(folders)
    names = {path[len(base) + 1 :]: info for path, info in found.items()}
    versions = {name: f"{info.size} {info.mtime_ns}" for name, info in names.items()}
    return Lake(Path(base), [stored(f"{base}/{name}", name) for name in names], tuple(notes), addresses[0], versions)


_SUFFIXES = tuple(suffix[1:] for suffix in PICTURE_SUFFIXES)


def _below(files: "fs.FileSystem", path: str, shown: str) -> tuple[list["fs.FileInfo"], list[str]]:
    """Return the files below a path in order, and the folders that were left out because they have masks."""
    from pyarrow import fs

    with _reading(shown):
        (top,) = files.get_file_info([path])
        if top.type == fs.FileType.NotFound:
            raise SourceError(f"{shown} does not exist; check the address.")
        if top.is_file:
            return [top], []
        infos = files.get_file_info(fs.FileSelector(path, recursive=True))
    start = len(path.rstrip("/")) + 1
    folders = {posixpath.dirname(info.path) for info in infos} | {i.path for i in infos if not i.is_file}
    masks = sorted(
        folder
        for folder in folders
        if posixpath.basename(folder) == WITH_MASKS[1] and f"{posixpath.dirname(folder)}/{WITH_MASKS[0]}" in folders
    )
    kept = [
        info
        for info in infos
        if info.is_file
        and not any(part.startswith(".") for part in info.path[start:].split("/"))
        and not info.path.startswith(tuple(f"{folder}/" for folder in masks))
    ]
    return sorted(kept, key=lambda info: _order(info.path[start:])), masks


def _order(name: str) -> list[tuple[bool, list[tuple[int, str]]]]:
    """The key that sorts names as `list_pictures` walks: in each folder files first, in natural order."""
    *folders, file = name.split("/")
    return [*((True, natural_order(folder)) for folder in folders), (False, natural_order(file))]


def _store(address: str) -> tuple[str, str, str]:
    parts = urlsplit(address)
    return parts.scheme, parts.netloc, parts.query


def _opened(address: str) -> tuple["fs.FileSystem", str]:
    """Return the file system of an address, and the path in it."""
    try:
        from pyarrow import fs
    except ImportError as error:
        needs = f"{printable_address(address)} needs pyarrow"
        raise package_error(needs, "pyarrow", 'pip install "fsvit-edge[ray]"', error) from error
    with _reading(printable_address(address)):
        files, path = fs.FileSystem.from_uri(address)
    return files, path


@contextmanager
def _reading(shown: str) -> Iterator[None]:
    try:
        yield
    except FsvitEdgeError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own errors are ValueErrors
        raise SourceError(f"{printable(shown)} cannot be read: {first_line(error)}.") from error
