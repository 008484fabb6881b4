"""The steps of an atomic write, and what is at a path before it.

File systems differ: where one has no permissions, locks or flushed folders, that step is left out, which is told once.
"""

import errno
import fcntl
import logging
import os
import re
import select
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

TEMPORARY_PREFIX = ".fsvit-edge-"
"""Start of the name of an unfinished file or folder; the process ID of its writer follows, for people."""

_LACKS_STEP = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM)
_OPEN_FILES = re.compile(r"/proc/[0-9]+/(task/[0-9]+/)?fd")
_PIPE_S = 0.5  # a pipe that nobody empties may hold up a run for this long
_MAX_NAME_BYTES = 255
_RANDOM_PART = 8  # characters that tempfile adds
_UNFLUSHED = "This file system cannot flush everything to disk: after a power cut, old files may be back"
_log = logging.getLogger(__name__)
_told: set[str] = set()


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the errors of the system into ours, about what is written to `path`."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        # The system names the folder that it could not make below the file, not the file.
        file = next((parent for parent in path.parents if parent.is_file()), path.parent)
        raise InputError(f"{path} cannot be written: {file} is a file, not a folder.") from error
    except OSError as error:
        raise FsvitEdgeError(f"{path} cannot be written: {error.strerror or error}; nothing was changed.") from error


def no_temporary_place(error: OSError) -> FsvitEdgeError:
    """The error of a folder for temporary files that is full, read-only or not there."""
    reason = error.strerror or error
    return FsvitEdgeError(f"The device has no place for temporary files: {reason}; make room, or set TMPDIR.")


# ------------------------------------------------------------------------------------------------ what is at a path


def kind_of(path: Path) -> int:
    """The type and permissions of what is at a path, behind links; 0 if there is nothing."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return 0


def target_of(path: Path) -> Path:
    """What a path leads to: to replace a link would leave the file that it stands for as it was."""
    return Path(os.path.realpath(path))


def is_stream(path: Path, kind: int) -> bool:
    """Whether data can only be added to what is at a path."""
    if stat.S_ISBLK(kind) or stat.S_ISSOCK(kind):
        raise InputError(f"{path} is a {'disk' if stat.S_ISBLK(kind) else 'socket'}; give the name of a file to write.")
    if stat.S_ISCHR(kind) or stat.S_ISFIFO(kind):
        return True
    while path.is_symlink():  # /dev/stderr, which may be the file of a log that others write to
        if _OPEN_FILES.fullmatch(os.path.realpath(path.parent)):
            return True
        path = path.parent / os.readlink(path)
    return False


def append(path: Path, data: bytes) -> None:
    """Add data to a device, a pipe or an open file; a pipe that nobody reads must not hold up a run."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        rest = memoryview(data)
        while rest:
            select.select((), (descriptor,), (), _PIPE_S)
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def overwrite(path: Path, source: BinaryIO) -> None:
    """Replace the contents of a file; what a full disk would cut short is refused before anything changes."""
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    with path.open("r+b") as file:
        before = os.fstat(file.fileno()).st_size
        if size > before:
            try:
                os.posix_fallocate(file.fileno(), before, size - before)
            except OSError as error:
                file.truncate(before)
                if error.errno not in _LACKS_STEP:
                    raise
        shutil.copyfileobj(source, file)
        file.truncate()
        file.flush()
        flush_open(file.fileno())
    tell_once(f"{path} cannot be renamed, so it was overwritten in place: a power cut meanwhile can damage it")


# ------------------------------------------------------------------------------------------- steps of an atomic write


def create_file(folder: Path, prefix: str, suffix: str) -> tuple[int, Path]:
    """Make a file that is locked while its descriptor is open."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=folder)
        _lock_own(descriptor, folder)
        if os.fstat(descriptor).st_nlink > 0:  # else somebody removed it as a leftover before it was locked
            return descriptor, Path(name)
        os.close(descriptor)


def create_folder(parent: Path) -> tuple[int, Path]:
    """Make a folder that is locked while the descriptor is open."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=own_prefix(), dir=parent))
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            _lock_own(descriptor, parent)
            if path.exists():
                return descriptor, path
            os.close(descriptor)


def _lock_own(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        tell_once(f"The file system of {folder} has no locks: do not let two programs change files there at once")


def own_prefix() -> str:
    """Start of the name of an unfinished file or folder of this process."""
    return f"{TEMPORARY_PREFIX}{os.getpid()}_"


def visible_name(target: Path) -> tuple[str, str]:
    """The two ends of an unfinished file's name, which is not longer than a name may be."""
    stem, middle = target.stem, "-unfinished-"
    while len(os.fsencode(f"{stem}{middle}{'x' * _RANDOM_PART}{target.suffix}")) > _MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + middle, target.suffix


def umask() -> int:
    """The permissions that a new file does not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def set_mode(path: Path, mode: int) -> None:
    """Set the permissions, where the file system has any."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in _LACKS_STEP:
            raise
        tell_once(f"The file system of {path.parent} keeps no permissions: files there may be readable for others")


def set_owner(path: Path, like: os.stat_result) -> None:
    """Give a file the owner of another one, as far as we may: root may, others only choose among their groups."""
    with suppress(OSError):
        os.chown(path, -1, like.st_gid)
        os.chown(path, like.st_uid, -1)


def flush_folder_of(path: Path) -> None:
    """Flush the folder of a file that was written, so that its new name outlasts a power cut."""
    try:
        flush(target_of(path).parent)
    except OSError as error:
        raise FsvitEdgeError(
            f"{path} was written, but its folder cannot be flushed to disk: {error.strerror or error}; "
            "a power cut may bring the old one back."
        ) from error


def flush(path: Path) -> None:
    """Flush a file, or a folder if that can be, to disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            flush_open(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno != errno.EACCES or not path.is_dir():
            raise
        tell_once(_UNFLUSHED)


def flush_open(descriptor: int) -> None:
    """Flush an open file or folder, if the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _LACKS_STEP:
            raise
        tell_once(_UNFLUSHED)


def tell_once(text: str) -> None:
    """Tell the person at the device, once per process."""
    if text not in _told:
        _told.add(text)
        _log.warning("%s.", text)
