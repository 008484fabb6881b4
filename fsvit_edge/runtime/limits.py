"""What this process may use of the machine: processors and memory, which a container limits by control groups.

Both versions are read, v1 as in older Docker and Jetson Linux, at each level from the group of this process up to the
mount: a limit of a group applies to all below it.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROC = Path("/proc")
_MOST_THREADS = 64
_UNLIMITED_BYTES = 2**60  # v1 states no limit as about 2**63


def usable_cores() -> int:
    """Return the number of threads that can run at once: the processors of this process, or its share of their time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _cpu_quotas())]))


def usable_threads(wanted: int | None) -> int:
    """Return how many threads to compute with: as many as are wanted, at most 64 or the machine's processors.

    With 99,999, engines made threads until the run was ended, without a frame.
    """
    return usable_cores() if wanted is None else min(wanted, max(_MOST_THREADS, os.cpu_count() or 1))


def free_memory() -> int | None:
    """Return how many bytes this process can still use: the machine's, or the container's if they are fewer."""
    return min([*_free_of_machine(), *_free_of_groups()], default=None)


def _cpu_quotas() -> Iterator[float]:
    """Processors' worth of time that each group may use."""
    for version, group in _groups("cpu"):
        if version == 2:
            stated = _words(group / "cpu.max")
        else:
            stated = _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(stated) == 2 and all(word.isdecimal() and int(word) > 0 for word in stated):  # not "max", not -1
            yield int(stated[0]) / int(stated[1])


def _free_of_machine() -> Iterator[int]:
    stated = [line.split() for line in _text(_PROC / "meminfo").splitlines()]
    free = [int(words[1]) for words in stated if len(words) > 1 and words[0] in ("MemAvailable:", "SwapFree:")]
    if free:
        yield sum(free) * 1024


def _free_of_groups() -> Iterator[int]:
    for version, group in _groups("memory"):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        stated = [*_words(group / names[0]), *_words(group / names[1])]
        if len(stated) != 2 or not all(word.isdecimal() for word in stated) or int(stated[0]) >= _UNLIMITED_BYTES:
            continue
        name = "inactive_file" if version == 2 else "total_inactive_file"
        lines = (line.split() for line in _text(group / "memory.stat").splitlines())
        cached = sum(int(words[1]) for words in lines if len(words) == 2 and words[0] == name)
        yield max(int(stated[0]) - max(int(stated[1]) - cached, 0), 0)  # files that are cached make room


def _groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Yield the version and the folder of each group of this process that can limit what a controller controls."""
    paths: dict[int, str] = {}
    for line in _text(_PROC / "self/cgroup").splitlines():
        _, _, membership = line.partition(":")
        controllers, _, path = membership.partition(":")
        if controllers == "" or controller in controllers.split(","):
            paths[1 if controllers else 2] = path
    for line in _text(_PROC / "self/mountinfo").splitlines():
        mounted, _, of_kind = line.partition(" - ")
        fields, kind = mounted.split(), of_kind.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        version = {"cgroup": 1, "cgroup2": 2}.get(kind[0])
        if version not in paths or (version == 1 and controller not in kind[2].split(",")):
            continue
        top = Path(fields[4])
        group = top / _below(paths[version], fields[3])
        yield from ((version, folder) for folder in (group, *group.parents) if folder == top or top in folder.parents)


def _below(path: str, root: str) -> str:
    """The part of a group's path below the group that is mounted; "" if the container does not show it."""
    try:
        below = PurePosixPath(path).relative_to(root)
    except ValueError:
        return ""
    return "" if ".." in below.parts else str(below)


def _words(file: Path) -> list[str]:
    return _text(file).split()


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
