"""What a killed run left of a recording in one file, "NAME-unfinished-....mp4"."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

_HEADER_BYTES = 4096


def finish_recordings_of_killed_runs(path: Path) -> None:
    """Let the newest one replace the recording at `path`, as if its run had ended, and remove those before.

    One without a frame, or older than the recording, is removed; one that its writer has locked is left alone.
    """
    found = [one for one in path.parent.glob("*") if _is_unfinished(one.name, path)]
    for one in sorted(found, key=_written_s):
        with suppress(OSError):
            descriptor = os.open(one, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_newer = not path.exists() or _written_s(path) <= _written_s(one)
                # The first fragment follows the header, which tells nothing of frames.
                if is_newer and b"moof" in os.read(descriptor, _HEADER_BYTES):
                    os.replace(one, path)
                else:
                    one.unlink()
            finally:
                os.close(descriptor)


def _is_unfinished(name: str, path: Path) -> bool:
    start, end = f"{path.stem}-unfinished-", path.suffix
    return name.startswith(start) and name.endswith(end) and len(name) > len(start) + len(end)


def _written_s(path: Path) -> float:
    """When it was last written."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
