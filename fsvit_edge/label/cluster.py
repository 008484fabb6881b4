"""The connection to Ray, which an extra installs, and errors that come back from its processes."""

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from fsvit_edge.runtime.errors import FsvitEdgeError, first_line, package_error
from fsvit_edge.runtime.limits import usable_cores
from fsvit_edge.runtime.messages import Say

LOCAL = "local"
"""The address that starts a Ray of this machine alone, which ends with the command."""

_STORE_BYTES = 1 << 30  # of the local object store: names and answers, and a bundle
_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # or it tells its makers how it is used
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # or it complains of how its own actors get their arguments (ray#53727)
    # Or it writes, in color, of each task of an actor that Ray Data itself ends, as it does after Ctrl-C.
    "RAY_enable_output_error_log_if_still_retry": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or a thread of Ray Data starts it again when it has ended
}


@contextmanager
def connected(address: str, say: Say = lambda _: None) -> Iterator[None]:
    """Connect to Ray, or use the connection that there is.

    Args:
        address: Of the cluster, as `ray.init` takes it, or `LOCAL`.
        say: Gets a note before what takes seconds.

    Raises:
        EnvironmentLacksError: Ray is not installed.
        FsvitEdgeError: The cluster cannot be reached.
    """
    for name, value in _VARIABLES.items():  # before Ray is imported, which reads them; who sets others gets those
        os.environ.setdefault(name, value)
    if address == LOCAL:  # it listens on all interfaces, and obeys who knows a token; its own stays in the home folder
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import pyarrow.parquet  # noqa: F401 - only to see that it is there, before Ray needs it
        import ray
        import ray.data
    except ImportError as error:
        missing = "pyarrow" if (error.name or "").startswith("pyarrow") else "ray"  # which Ray alone does not bring
        raise package_error("--ray needs Ray", missing, 'pip install "fsvit-edge[ray]"', error) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:
        options |= {"num_cpus": usable_cores(), "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    say("Note: Starting Ray on this machine." if address == LOCAL else f"Note: Connecting to Ray at {address}.")
    try:
        with _silence():
            ray.init(address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise FsvitEdgeError(f"Ray cannot be reached at {address}: {first_line(error)}.") from error  # as of a box
    try:
        with redirect_stdout(sys.stderr):  # where Ray's words on a process that ended belong
            yield
    finally:
        with _uninterrupted():
            ray.shutdown()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C up for the second that it takes Ray to end: else Ray ends this process as well, with code 1."""
    if threading.current_thread() is not threading.main_thread():  # where Ctrl-C does not arrive
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@contextmanager
def _silence() -> Iterator[None]:
    """Discard what Ray writes to standard error: a line that its logs are silenced."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def our_errors(reported: Callable[[], FsvitEdgeError | None] = lambda: None) -> Iterator[None]:
    """Raise what a process of Ray raised on purpose as itself, and of other errors of Ray a sentence.

    Args:
        reported: Returns the error that a process told of, if Ray itself has lost it.
    """
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, FsvitEdgeError):
            raise cause from error
        try:
            told = reported()
        except RayError:  # who would tell it has ended as well
            told = None
        raise told or failure_of(error) from error


def failure_of(error: Exception) -> FsvitEdgeError:
    """Return an error of which nobody has thought, as a sentence."""
    return FsvitEdgeError(f"Ray failed: {type(error).__name__}: {first_line(error)}; the same command goes on.")
