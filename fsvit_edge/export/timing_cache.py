"""TensorRT's timings of its kernels, kept between builds: the second build of a network takes a fraction of the time.

They are valid for one version of TensorRT on one GPU, so the file is named by both. A build holds the file's lock from
beginning to end: two builds that time kernels on one GPU at once would disturb each other's timings anyhow.
"""

import contextlib
import fcntl
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsvit_edge.runtime.atomic import atomic_write
from fsvit_edge.runtime.engines.tensorrt_api import TensorRT
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.user_cache import user_cache


def default_timing_cache(api: TensorRT, gpu: Gpu) -> Path:
    """Return where the timings of this TensorRT on this GPU are kept.

    Raises:
        EnvironmentLacksError: There is no home folder.
    """
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    major, minor = gpu.compute_capability
    return user_cache("timings") / f"{name}.sm{major}{minor}.trt{api.version}.cache"


@contextlib.contextmanager
def timing_cache(config: Any, path: Path, is_given: bool, progress: Callable[[str], None]) -> Iterator[None]:
    """Lend a build the timings in `path`, and keep what it has added; TensorRT-RTX times nothing and needs none of it.

    Args:
        config: The build's `IBuilderConfig`.
        path: The file; it need not exist.
        is_given: The user has named it, so that it must be usable; the one that is ours is left out where it is not.
        progress: Is told when the build waits for another or goes without timings.

    Raises:
        InputError: A file that was named cannot be read or written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_lock(path, progress))
            known = path.read_bytes() if path.exists() else b""
        except OSError as error:
            sentence = f"The timing cache {path} cannot be used: {error.strerror or error}"
            if is_given:
                raise InputError(f"{sentence}; name another file with --timing-cache.") from error
            progress(f"{sentence}; building without it")
            yield
            return
        if not config.set_timing_cache(config.create_timing_cache(known), False):
            progress(f"{path} was made by another TensorRT or GPU; starting anew")
            config.set_timing_cache(config.create_timing_cache(b""), False)
        yield
        learnt = config.get_timing_cache()
        if learnt is None:
            return
        try:
            atomic_write(path, bytes(learnt.serialize()))
        except FsvitEdgeError as error:
            if is_given:
                raise
            progress(f"the timings are not kept: {error}")


@contextlib.contextmanager
def _lock(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f"{path.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("wait for another build on this GPU")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
