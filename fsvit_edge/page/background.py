"""What requests compute gets less of the processor than the camera, and its memory goes back to the system."""

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from inspect import iscoroutinefunction
from typing import Any

from fastapi.routing import APIRoute

_NICENESS = 10
"""Of the threads that answer: beside a thread of the loop, each gets a tenth of a processor."""


class BackgroundRoute(APIRoute):
    """A route whose endpoint, if it runs in a thread, lets the threads of the loop go first.

    Only requests use those threads, so each may keep its priority, which a process without privileges cannot raise
    again.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint if iscoroutinefunction(endpoint) else _yielding(endpoint), **options)


def _yielding(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    def answer(*arguments: Any, **named: Any) -> Any:
        with suppress(OSError):  # a sandbox may not allow it
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
        return endpoint(*arguments, **named)

    return answer


def give_memory_back() -> None:
    """Give the system what the C library keeps for later: 100 MB after a picture of 40 megapixels."""
    with suppress(AttributeError):  # musl has no such function, and keeps less
        ctypes.CDLL(None).malloc_trim(0)
