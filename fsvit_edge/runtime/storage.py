"""Our files on disk: atomic writes, locks, and the user's cache folder.

These stay our own code. filelock can lock neither a folder nor the file being written, and takes 36 ms to import;
without a home folder platformdirs returns a folder named "~".
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsvit_edge.runtime.errors import EnvironmentLacksError, FsvitEdgeError, InputError

TEMPORARY_PREFIX = ".fsvit-edge-"
"""Start of the name of an unfinished file or folder; the process ID of its writer follows."""
_WRITER = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}([0-9]{{1,10}})_")

# ------------------------------------------------------------------------------------------------------- atomic writes


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash, a full disk or a power cut leaves the old file or the new one.

    The temporary file is in the same folder. It is flushed to disk before the rename, and the folder after it: a rename
    without fsync lost acknowledged files when the power was cut.

    Raises:
        InputError: `path` is a folder, or one of its parents is a file.
        FsvitEdgeError: The disk is full or the folder is not writable; the old file is unchanged.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write.")
    with _write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(path) as temporary:
            temporary.path.write_bytes(data)
            temporary.replace_target()


@contextmanager
def atomic_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it replaces `path`, on an error it is removed.

    Swapping two folders that are not empty takes two renames, so a kill between them leaves no folder at `path`; it
    never leaves a mixture of old and new.

    Args:
        path: The folder to create or replace.
        marker: Name of a file that only our own results contain; a non-empty folder without it is never replaced.

    Raises:
        InputError: `path` is a file, or a folder that is not empty and does not contain `marker`.
        FsvitEdgeError: The disk is full or the folder is not writable; the old folder is unchanged.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; give the name of a folder to write.")
    if path.is_symlink():
        path = path.resolve()  # or the link would be replaced and its folder left behind
    if path.is_dir() and not (path / marker).is_file() and any(path.iterdir()):
        raise InputError(f"{path} contains other files and no {marker}; choose an empty or a new folder.")
    with _write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_own_prefix(), suffix=f"-{path.name}", dir=path.parent))
        retired = staging.with_name(staging.name + "-old")
        try:
            staging.chmod(0o777 & ~_umask())
            yield staging
            for file in (*staging.iterdir(), staging):
                _flush(file)
            if path.exists():
                os.replace(path, retired)
            try:
                os.replace(staging, path)
            except OSError:
                if retired.exists():
                    os.replace(retired, path)
                raise
            try:
                _flush_folder_of(path)
            finally:
                shutil.rmtree(retired, ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # gone if it has become `path`


class TemporaryFile:
    """A file at `path`, beside its target, for data written over minutes; a context manager closes it.

    It stays locked while it is open, so that `remove_leftovers` of another process does not delete it. The target's
    folder must exist.

    Args:
        target: The file to replace.
        is_visible: Whether it is named like its target, and stays if the process is killed: what is of use unfinished.

    Raises:
        FsvitEdgeError: The folder is not writable.
    """

    def __init__(self, target: Path, is_visible: bool = False) -> None:
        self._target = target
        prefix, suffix = _own_prefix(), f"-{target.name}"
        if is_visible:
            prefix, suffix = f"{target.stem}-unfinished-", target.suffix
        with _write_errors(target):
            self._descriptor, path = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=target.parent)
            os.fchmod(self._descriptor, 0o666 & ~_umask())
        self.path = Path(path)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __enter__(self) -> "TemporaryFile":
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it, unless it has replaced its target."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def replace_target(self) -> None:
        """Flush it to disk and rename it to its target; on an FsvitEdgeError an old target is unchanged."""
        with _write_errors(self._target):
            _flush(self.path)
            os.replace(self.path, self._target)
        _flush_folder_of(self._target)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove, and return, the unfinished files and folders that our killed processes left behind, as far as possible.

    Something is removed only if its name is ours, its writer is gone and nobody has locked it: two runs may share a
    folder, also from two containers, where process IDs mean little.
    """
    removed = []
    for path in folder.glob(f"{TEMPORARY_PREFIX}*") if folder.is_dir() else ():
        writer = _WRITER.match(path.name)
        if writer is None or _is_running(int(writer[1])) or _is_locked(path):
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


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        # The system names the folder that it could not make below the file, not the file.
        file = next((parent for parent in path.parents if parent.is_file()), path.parent)
        raise InputError(f"{path} cannot be written: {file} is a file, not a folder.") from error
    except OSError as error:
        raise FsvitEdgeError(f"{path} cannot be written: {error.strerror or error}; nothing was changed.") from error


def _own_prefix() -> str:
    return f"{TEMPORARY_PREFIX}{os.getpid()}_"


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_folder_of(path: Path) -> None:
    try:
        _flush(path.parent)
    except OSError as error:
        raise FsvitEdgeError(
            f"{path} was written, but its folder cannot be flushed to disk: {error.strerror or error}; "
            "a power cut may bring the old one back."
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
) -> Iterator[None]:
    """Let one process at a time read, change and write the files of a file's folder, or the last one would win.

    A file system without locks lets everyone in. `on_wait` gets the folder, once, if another process has the lock; a
    BusyError if it still has it after `limit_s`.
    """
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    with locked(folder, required=False, on_wait=lambda: on_wait(folder), limit_s=limit_s):
        yield


def _is_locked(path: Path) -> bool:
    """Whether a file or folder is locked, or cannot be opened to find out."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
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
