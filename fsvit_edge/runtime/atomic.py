"""The one way in which anything of ours reaches the disk: whole, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

TEMPORARY_PREFIX = ".fsvit-edge-"
"""Of the names of files that are not whole yet."""


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
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=f"-{path.name}", dir=path.parent)
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
        staging = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, suffix=f"-{path.name}", dir=path.parent))
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
