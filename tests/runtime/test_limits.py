import os
from pathlib import Path

import pytest

from fsvit_edge.runtime import limits
from fsvit_edge.runtime.limits import free_memory, usable_cores, usable_threads

MEMORY = "MemTotal: 9000000 kB\nMemAvailable: 7000000 kB\nSwapFree: 1000000 kB\n"
NONE_V1 = "9223372036854771712"


class Groups:
    """A machine with 8 processors and 8.192 GB free, whose control groups are files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._memberships, self._mounts = "", ""

    def mount(self, kind: str, options: str, path: str, root: str = "/") -> Path:
        """Mount a hierarchy, of which the process is in the group at `path`; `root` is the group that is mounted."""
        top = self.folder / (options if kind == "cgroup" else "unified")
        top.mkdir(parents=True)
        self._memberships += f"3:{options if kind == 'cgroup' else ''}:{path}\n"
        self._mounts += f"31 23 0:28 {root} {top} rw,relatime shared:9 - {kind} cgroup rw,{options}\n"
        proc = self.folder / "proc"
        (proc / "self").mkdir(parents=True, exist_ok=True)
        (proc / "meminfo").write_text(MEMORY)
        (proc / "self" / "cgroup").write_text(self._memberships)
        (proc / "self" / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + self._mounts)
        return top


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    monkeypatch.setattr(limits, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return Groups(tmp_path)


@pytest.mark.parametrize(
    ("stated", "cores"),
    [("50000 100000", 1), ("150000 100000", 2), ("1600000 100000", 8), ("max 100000", 8), ("damaged", 8), ("", 8)],
)
def test_a_quota_of_version_2_limits_the_cores(groups: Groups, stated: str, cores: int) -> None:
    write(groups.mount("cgroup2", "nsdelegate", "/"), cpu__max=stated)
    assert usable_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("250000", 3), ("-1", 8), ("0", 8)])
def test_a_quota_of_version_1_limits_the_cores(groups: Groups, quota: str, cores: int) -> None:
    top = groups.mount("cgroup", "cpu,cpuacct", "/docker/a1")
    write(top / "docker" / "a1", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert usable_cores() == cores


def test_the_lowest_limit_of_all_groups_above_counts(groups: Groups) -> None:
    top = groups.mount("cgroup2", "nsdelegate", "/system.slice/run.service/inner")
    write(top / "system.slice" / "run.service", cpu__max="200000 100000")
    write(top / "system.slice" / "run.service" / "inner", cpu__max="400000 100000")
    write(top / "system.slice" / "other", cpu__max="1000 100000")  # not above
    assert usable_cores() == 2


def test_a_container_sees_its_group_at_the_top_of_the_mount(groups: Groups) -> None:
    top = groups.mount("cgroup", "cpu", "/docker/a1", root="/docker/a1")
    write(top, cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    assert usable_cores() == 2
    elsewhere = groups.mount("cgroup2", "nsdelegate", "/../../b2")
    write(elsewhere, cpu__max="100000 100000")
    assert usable_cores() == 1


def test_without_control_groups_the_machine_is_the_limit(groups: Groups) -> None:
    assert (usable_cores(), free_memory()) == (8, None)
    groups.mount("cgroup2", "nsdelegate", "/")
    assert (usable_cores(), free_memory()) == (8, 8_000_000 * 1024)


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"),
    [
        ("2000000000", "1500000000", "400000000", 900_000_000),
        ("2000000000", "2100000000", "0", 0),
        ("50000000000", "0", "0", 8_000_000 * 1024),
        ("max", "1500000000", "0", 8_000_000 * 1024),
        (NONE_V1, "1500000000", "0", 8_000_000 * 1024),
    ],
)
def test_free_memory_is_that_of_the_container(groups: Groups, limit: str, used: str, cached: str, free: int) -> None:
    if limit != NONE_V1:
        stated = {"memory__max": limit, "memory__current": used, "memory__stat": f"anon 1\ninactive_file {cached}\n"}
        write(groups.mount("cgroup2", "nsdelegate", "/"), **stated)
        assert free_memory() == free
    if limit != "max":
        stated = {"memory__limit_in_bytes": limit, "memory__usage_in_bytes": used}
        write(groups.mount("cgroup", "memory", "/"), **stated, memory__stat=f"total_inactive_file {cached}\n")
        assert free_memory() == free


def test_this_machine_has_memory() -> None:
    assert (free_memory() or 0) > 10**6


@pytest.mark.parametrize(("processors", "most"), [(2, 64), (96, 96)])
def test_threads_beyond_what_any_machine_uses_are_not_made(
    monkeypatch: pytest.MonkeyPatch, processors: int, most: int
) -> None:
    """99,999 of them kept a run from its first frame, and ended torch."""
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    assert [usable_threads(wanted) for wanted in (1, 3, 99_999)] == [1, 3, most]
    assert usable_threads(None) == usable_cores()
