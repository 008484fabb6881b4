"""TensorRT's timings of its kernels, kept between builds: the second build of a network takes a fraction of the time.

They are valid for one version of TensorRT on one GPU, so the file is named by both. A build holds the file's lock from
beginning to end: two builds that time kernels on one GPU at once would disturb each other's timings anyhow.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.engines.tensorrt_api import TensorRT
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.storage import atomic_write, locked, user_cache


def default_timing_cache(api: TensorRT, gpu: Gpu) -> Path:
    """Return where the timings of this TensorRT on this GPU are kept.

    Raises:
        EnvironmentLacksError: There is no home folder.
    """
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return user_cache("timings") / f"{name}.{gpu.architecture}.trt{api.version}.cache"


@dataclass
class Timings:
    """What is known before a build, and after it.

    Attributes:
        known: The file's contents; empty where there is none.
        learned: With what the build has added; None before it.
    """

    known: bytes
    learned: bytes | None = None

    def load(self, config: Any, say: Callable[[str], None]) -> None:
        """Give a build what is known.

        Args:
            config: The build's `IBuilderConfig`.
            say: Is told where that is of another TensorRT or GPU, and of no use.
        """
        if not config.set_timing_cache(config.create_timing_cache(self.known), False):
            say("the timing cache was made by another TensorRT or GPU; starting anew")
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self, config: Any) -> None:
        """Take what a build has added."""
        cache = config.get_timing_cache()
        self.learned = None if cache is None else bytes(cache.serialize())


@contextlib.contextmanager
def keep_timings(path: Path, is_given: bool, progress: Callable[[str], None]) -> Iterator[Timings | None]:
    """Yield the timings in a file, which stays locked, and write what was learned; None where it cannot be used.

    Args:
        path: The file; it need not exist.
        is_given: The user has named it, so that it must be usable; the one that is ours is left out where it is not.
        progress: Is told when the build waits for another or goes without timings.

    Raises:
        InputError: A file that was named cannot be read or written.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.parent / f"{path.name}.lock"
            stack.enter_context(locked(lock, on_wait=lambda: progress("wait for another build on this GPU")))
            timings = Timings(path.read_bytes() if path.exists() else b"")
        except OSError as error:
            sentence = f"The timing cache {path} cannot be used: {error.strerror or error}"
            if is_given:
                raise InputError(f"{sentence}; name another file with --timing-cache.") from error
            progress(f"{sentence}; building without it")
            yield None
            return
        yield timings
        if timings.learned is None:
            return
        try:
            atomic_write(path, timings.learned)
        except FsvitEdgeError as error:
            if is_given:
                raise
            progress(f"the timings are not kept: {error}")
