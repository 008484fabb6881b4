"""The page's listening socket, which leaves the run its file descriptors whoever connects."""

import errno
import os
import resource
import socket
from io import FileIO
from typing import Any

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


def most_connections(wanted: int) -> int:
    """Return how many connections to keep open, at most a quarter of the descriptors that this process may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if limit == resource.RLIM_INFINITY else max(1, min(wanted, limit // 4))


class BoundedListener(socket.socket):
    """Closes further connections at once while `most` are open, or while there are no descriptors.

    Asyncio would accept them all. Without descriptors, it logs a hundred tracebacks each second.
    """

    def __init__(self, family: int, most: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._most = most
        self._accepted: list[socket.socket] = []
        self._spare: FileIO | None = _open_spare()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; a ConnectionAbortedError, after which asyncio goes on, if it was closed at once."""
        try:
            accepted, address = super().accept()
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS or self._spare is None:
                raise
            self._refuse()
            raise ConnectionAbortedError from error
        self._accepted = [one for one in self._accepted if one.fileno() >= 0]
        if len(self._accepted) >= self._most:
            accepted.close()
            raise ConnectionAbortedError
        self._accepted.append(accepted)
        self._spare = self._spare or _open_spare()
        return accepted, address

    def close(self) -> None:
        """Close it; a second call does nothing."""
        super().close()
        self._free_spare()

    def _refuse(self) -> None:
        """Close the connection that waits, by the descriptor that was kept for this."""
        self._free_spare()
        try:
            super().accept()[0].close()
        finally:
            self._spare = _open_spare()

    def _free_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()


def is_lack_of_descriptors(error: object) -> bool:
    """Whether a connection could not be accepted for want of descriptors, of which the next one may have one."""
    return isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS


def _open_spare() -> FileIO | None:
    try:
        return FileIO(os.devnull)
    except OSError:
        return None
