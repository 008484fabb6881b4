"""Our files on disk: atomic writes, locks, and the user's cache folder.

These stay our own code. filelock can lock neither a folder nor the file being written, and takes 36 ms to import;
without a home folder platformdirs returns a folder named "~".
"""

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from fsvit_edge.runtime.disk_steps import (
    TEMPORARY_PREFIX,
    append,
    create_file,
    create_folder,
    flush,
    flush_folder_of,
    is_stream,
    kind_of,
    overwrite,
    own_prefix,
    set_mode,
    set_owner,
    target_of,
    umask,
    visible_name,
    write_errors,
)
from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError

_OURS = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}[0-9]{{1,10}}_")
_CANNOT_CREATE = (errno.EACCES, errno.EPERM, errno.EROFS)  # beside a file or folder that may be writable all the same

# ------------------------------------------------------------------------------------------------------- atomic writes


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash, a full disk or a power cut leaves the old file or the new one.

    The temporary file is in the same folder. It is flushed to disk before the rename, and the folder after it: a rename
    without fsync lost acknowledged files when the power was cut. A link is followed, and mode and owner of an old file
    are kept. Into a device, a pipe, or an open file such as /dev/stderr, the data is written as it is.

    Raises:
        InputError: `path` is a folder or a block device, or one of its parents is a file.
        FsvitEdgeError: The disk is full or the folder is not writable; the old file is unchanged.
    """
    with write_errors(path):
        kind = kind_of(path)
        if stat.S_ISDIR(kind):
            raise InputError(f"{path} is a folder; give the name of a file to write.")
        if is_stream(path, kind):
            return append(path, data)
        target_of(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary = TemporaryFile(path)
        except FsvitEdgeError as error:
            if not kind or getattr(error.__cause__, "errno", None) not in _CANNOT_CREATE:
                raise
            return overwrite(path, BytesIO(data))
        with temporary:
            temporary.path.write_bytes(data)
            temporary.replace_target()


@contextmanager
def atomic_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder to fill with files; on success it replaces `path`, on an error it is removed.

    Swapping two folders that are not empty takes two renames, so a kill between them leaves no folder at `path`; it
    never leaves a mixture of old and new. A folder that cannot be renamed, because it is mounted or its parent is not
    writable, gets the files one by one, `marker` last.

    Args:
        path: The folder to create or replace; a link is followed, and the permissions of an old folder are kept.
        marker: Name of a file that only our own results contain; a non-empty folder without it is never replaced.

    Raises:
        InputError: `path` is a file, or a folder that is not empty and does not contain `marker`.
        FsvitEdgeError: The disk is full or the folder is not writable; the old folder is unchanged.
    """
    with write_errors(path):
        kind = kind_of(path)
        if kind and not stat.S_ISDIR(kind):
            raise InputError(f"{path} is a file; give the name of a folder to write.")
        path = target_of(path)  # or a link would be replaced and its folder left behind
        if kind and not (path / marker).is_file() and any(path.iterdir()):
            raise InputError(f"{path} contains other files and no {marker}; choose an empty or a new folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor, staging = create_folder(path.parent)
        except OSError as error:
            if not kind or error.errno not in _CANNOT_CREATE:
                raise
            descriptor, staging = create_folder(path)
        retired = staging.with_name(staging.name + "-old")
        try:
            yield staging
            set_mode(staging, stat.S_IMODE(kind) if kind else 0o777 & ~umask())
            for file in (*staging.iterdir(), staging):
                flush(file)
            if staging.parent == path or not _swap(path, staging, retired):
                return _fill(path, staging, marker)
            try:
                flush_folder_of(path)
            finally:
                shutil.rmtree(retired, ignore_errors=True)
        finally:
            os.close(descriptor)
            shutil.rmtree(staging, ignore_errors=True)  # gone if it has become `path`


def _swap(path: Path, staging: Path, retired: Path) -> bool:
    """Put a folder in the place of another, which becomes `retired`; False if that one is mounted."""
    try:
        if path.exists():
            os.replace(path, retired)
        os.replace(staging, path)
    except OSError as error:
        if retired.exists():
            os.replace(retired, path)
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _fill(path: Path, staging: Path, marker: str) -> None:
    """Replace the files of a folder by others; without its marker, nobody takes it for complete."""
    others = [old for old in path.iterdir() if old != staging]
    for old in sorted(others, key=lambda file: file.name != marker):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    for file in sorted(staging.iterdir(), key=lambda file: file.name == marker):
        shutil.move(file, path / file.name)
        flush(path / file.name)
    flush(path)


class TemporaryFile:
    """A file at `path`, beside its target, for data written over minutes; a context manager closes it.

    It stays locked while it is open, so that `remove_leftovers` of another process does not delete it. The target's
    folder must exist.

    Args:
        target: The file to replace; of a link, what it leads to.
        is_visible: Whether it is named like its target, and stays if the process is killed: what is of use unfinished.

    Raises:
        InputError: The target is something else than a file.
        FsvitEdgeError: The folder is not writable.
    """

    def __init__(self, target: Path, is_visible: bool = False) -> None:
        self._name = target
        with write_errors(target):
            self._old = os.stat(target) if kind_of(target) else None
            if self._old is not None and not stat.S_ISREG(self._old.st_mode):
                raise InputError(f"{target} is no regular file; give the name of a file to write.")
            self._target = target_of(target)
            prefix, suffix = own_prefix(), ""
            if is_visible:
                prefix, suffix = visible_name(self._target)
            self._descriptor, self.path = create_file(self._target.parent, prefix, suffix)
            if is_visible:
                set_mode(self.path, 0o666 & ~umask())

    def __enter__(self) -> "TemporaryFile":
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it, unless it has replaced its target."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def replace_target(self) -> None:
        """Flush it to disk and rename it to its target, whose mode and owner it gets.

        On an FsvitEdgeError an old target is unchanged. A file that is mounted alone is overwritten instead.
        """
        with write_errors(self._name):
            if self._old is not None:
                set_owner(self.path, self._old)
            set_mode(self.path, 0o666 & ~umask() if self._old is None else stat.S_IMODE(self._old.st_mode))
            flush(self.path)
            try:
                os.replace(self.path, self._target)
            except OSError as error:
                if self._old is None or error.errno != errno.EBUSY:
                    raise
                with self.path.open("rb") as file:
                    return overwrite(self._name, file)
        flush_folder_of(self._name)


def no_temporary_place(error: OSError) -> FsvitEdgeError:
    """The error of a folder for temporary files that is full, read-only or not there."""
    reason = error.strerror or error
    return FsvitEdgeError(f"The device has no place for temporary files: {reason}; make room, or set TMPDIR.")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder for files of no use later; an FsvitEdgeError if it cannot be made.

    What killed processes left there is removed first: an upload of a bank is up to 256 MB.
    """
    try:
        parent = Path(tempfile.gettempdir())
        remove_leftovers(parent)
        descriptor, folder = create_folder(parent)
    except OSError as error:
        raise no_temporary_place(error) from error
    try:
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it; an OSError if it is none: a FIFO would block, and a device has no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_file(path: Path, most_bytes: int) -> bytes:
    """Return what is in a file of at most so many bytes; an OSError if it has more, or is not a regular file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            limit = f"more than the {most_bytes / 1e6:.0f} MB that are read"
            raise OSError(errno.EFBIG, f"it has {size / 1e6:.0f} MB, {limit}", str(path))
        return file.read(size)  # not `most_bytes`, for all of which Python would take memory


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove, and return, the unfinished files and folders that our killed processes left behind, as far as possible.

    Something is removed only if its name is ours and nobody has locked it. Process IDs say nothing: two runs may share
    a folder from two containers, in each of which the other's is free or belongs to something else.
    """
    removed = []
    try:
        found = [path for path in folder.iterdir() if _OURS.match(path.name)]
    except OSError:  # it does not exist, or we may not look into it
        return []
    for path in found:
        if _is_locked(path):
            continue
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError:
            continue
        removed.append(path)
    return removed


# --------------------------------------------------------------------------------------------------------------- locks


class BusyError(FsvitEdgeError):
    """Another process, or another part of this one, keeps a lock for longer than somebody may wait."""


@contextmanager
def locked(
    path: Path, required: bool = True, on_wait: Callable[[], None] | None = None, limit_s: float | None = None
) -> Iterator[None]:
    """Let one process at a time into the block; the lock ends with the block, or with the process.

    Args:
        path: The folder or file to lock; if it does not exist, it is created as an empty file.
        required: False enters without a lock if the file system has no locks or `path` cannot be opened; True raises
            the OSError.
        on_wait: Called once if another process has the lock.
        limit_s: How long to wait for it, at most; None: as long as it takes.

    Raises:
        BusyError: The limit is over.
    """
    descriptor = None
    try:
        try:
            descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDONLY | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                _wait_for_lock(descriptor, path, limit_s)
        except OSError:
            if required:
                raise
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _wait_for_lock(descriptor: int, path: Path, limit_s: float | None) -> None:
    if limit_s is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    due_s = time.monotonic() + limit_s
    while True:
        time.sleep(0.02)
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= due_s:
                raise BusyError(f"Another program is changing files in {path}; try again when it is done.") from None


@contextmanager
def editing(
    path: Path, on_wait: Callable[[Path], None] = lambda _: None, limit_s: float | None = None
) -> Iterator[Callable[[], None]]:
    """Let one process at a time read, change and write the files of a file's folder, or the last one would win.

    Of a link, it is the folder that it leads to. A file system without locks lets everyone in, so what this yields is
    to be called before the write: it raises a BusyError if the file was changed since. `on_wait` gets the folder,
    once, if another process has the lock; a BusyError if it still has it after `limit_s`.
    """
    folder = next(parent for parent in target_of(path).parents if parent.is_dir())
    with locked(folder, required=False, on_wait=lambda: on_wait(folder), limit_s=limit_s):
        before = version_of(path)

        def check_unchanged() -> None:
            if version_of(path) != before:
                raise BusyError(f"{path} was changed by another program meanwhile; nothing was saved, so do it again.")

        yield check_unchanged


def version_of(path: Path) -> tuple[int, ...] | None:
    """What differs after a file is written; None if there is none that can be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_locked(path: Path) -> bool:
    """Whether a file or folder is locked, or cannot be opened to find out."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # anybody may put a FIFO into /tmp under such a name
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


# -------------------------------------------------------------------------------------------------------- cache folder


def user_cache(kind: str) -> Path:
    """Return `$XDG_CACHE_HOME/fsvit-edge/<kind>`, by default in `~/.cache`, for files that can be made again.

    The folder need not exist. An EnvironmentLacksError if there is no home folder.
    """
    stated = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(stated) if os.path.isabs(stated) else Path.home() / ".cache"
    except RuntimeError as error:
        raise EnvironmentLacksError(
            "There is no home folder for a cache; name a folder with: export XDG_CACHE_HOME=/path."
        ) from error
    return base / "fsvit-edge" / kind


def cache_problem(kind: str) -> str:
    """Return why nothing can be kept in `user_cache(kind)`, a clause with what to do; empty if that can be."""
    try:
        folder = user_cache(kind)
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else f"there is no permission in {folder}"
    except EnvironmentLacksError:
        reason = "there is no home folder"
    except OSError as error:
        reason = f"{folder} cannot be made ({error.strerror})"
    return reason and f"{reason}; name a folder with: export XDG_CACHE_HOME=/path"
