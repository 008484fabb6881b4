"""The one way in which anything of ours reaches the disk: whole, or not at all."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

TEMPORARY_PREFIX = ".fsvit-edge-"
"""Of the names of files that are not whole yet; the number of the process that makes them follows."""
_MADE_BY = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}([0-9]{{1,10}})_")


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash, a full disk or a power cut leaves the old file or the new one.

    The temporary file lies in the same folder; it is flushed to the disk before the rename, and the folder after it,
    because a rename without fsync lost acknowledged files when the power was cut.

    Raises:
        InputError: `path` is a folder, or its parent is not one.
        FsvitEdgeError: The disk is full or the folder cannot be written; the old file is untouched.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write.")
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=_own_prefix(), suffix=f"-{path.name}", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        _sync_rename(path)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be written: {_file_above(path)} is a file, not a folder.") from error
    except OSError as error:
        raise FsvitEdgeError(f"{path} cannot be written: {error.strerror or error}; nothing was changed.") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


class TemporaryFile:
    """A hidden file beside its target, for what is written over minutes; use it as a context manager at the end.

    It is locked while it is open, so that nobody takes it for a leftover; see `remove_leftovers`.

    Args:
        target: The file that it is to become; its folder is there.

    Attributes:
        path: Where it is.

    Raises:
        FsvitEdgeError: The folder cannot be written.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        try:
            self._descriptor, path = tempfile.mkstemp(prefix=_own_prefix(), suffix=f"-{target.name}", dir=target.parent)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            os.fchmod(self._descriptor, 0o666 & ~_umask())
        except OSError as error:
            raise FsvitEdgeError(f"{target} cannot be written: {error.strerror}.") from error
        self.path = Path(path)

    def __enter__(self) -> "TemporaryFile":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove it, unless it has become its target."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def replace_target(self) -> None:
        """Make it the target, whole and on the disk.

        Raises:
            FsvitEdgeError: The disk is full or the folder is gone; an old target is untouched.
        """
        try:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self.path, self._target)
            _sync_rename(self._target)
        except OSError as error:
            raise FsvitEdgeError(f"{self._target} was not written: {error.strerror}.") from error


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the hidden files and folders in which processes that were killed had begun something.

    Ours alone, by their names, and only where the process that made them has gone and no lock is held: two runs may
    share a folder, also from two containers, where a process number says little.

    Returns:
        What was removed. What cannot be removed stays.
    """
    removed = []
    for path in folder.glob(f"{TEMPORARY_PREFIX}*") if folder.is_dir() else ():
        maker = _MADE_BY.match(path.name)
        if maker is None or _is_running(int(maker[1])) or _is_locked(path):
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


def _is_locked(path: Path) -> bool:
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


@contextmanager
def atomic_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it takes the place of `path`, on an error it is removed.

    Two renames are needed to swap folders that are not empty, so a kill between them leaves no folder at `path`;
    it never leaves a mixture of old and new.

    Args:
        path: The folder to make or to replace.
        marker: A file that tells an earlier result of ours from a folder of somebody's, which is never replaced.

    Raises:
        InputError: `path` is a file, or a folder that is neither empty nor holds `marker`.
        FsvitEdgeError: The disk is full or the folder cannot be written; the old folder is untouched.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; give the name of a folder to write.")
    if path.is_symlink():
        path = path.resolve()  # or the link would be replaced and its folder left behind
    if path.is_dir() and not (path / marker).is_file() and any(path.iterdir()):
        raise InputError(f"{path} holds other files and no {marker}; choose an empty or a new folder.")
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_own_prefix(), suffix=f"-{path.name}", dir=path.parent))
        staging.chmod(0o777 & ~_umask())
        yield staging
        for file in staging.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        _sync_folder(staging)
        retired = staging.with_name(staging.name + "-old")
        if path.exists():
            os.replace(path, retired)
        try:
            os.replace(staging, path)
        except OSError:
            if retired.exists():
                os.replace(retired, path)
            raise
        staging = None
        try:
            _sync_rename(path)
        finally:
            shutil.rmtree(retired, ignore_errors=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be written: {_file_above(path)} is a file, not a folder.") from error
    except OSError as error:
        raise FsvitEdgeError(
            f"{path} cannot be written: {error.strerror or error}; the old folder is untouched."
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _file_above(path: Path) -> Path:
    """The parent that is a file; the system names the folder that it could not make below it."""
    return next((parent for parent in path.parents if parent.is_file()), path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_rename(path: Path) -> None:
    try:
        _sync_folder(path.parent)
    except OSError as error:
        raise FsvitEdgeError(
            f"{path} was written, but its folder cannot be flushed to the disk: {error.strerror or error}; "
            "a power cut may bring the old one back."
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
