"""Facts about this machine that engines depend on."""

import platform
import re
import resource
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.runtime.gpu import Gpu, find_gpu

_CPU_INFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")
_TEGRA_RELEASE = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class Machine:
    """The machine, as far as engines depend on it."""

    os: str  # "Linux"
    arch: str  # "x86_64" or "aarch64"
    cpu: str  # model of the processor, or of the board if the processor does not state it
    gpu: Gpu | None  # None without a GPU or its driver
    l4t: str | None  # release of Jetson Linux, "36.4.3"; None elsewhere

    @classmethod
    def here(cls) -> "Machine":
        """Describe this machine; finding the GPU initializes its driver, which takes a moment."""
        return cls(platform.system(), platform.machine(), processor(), find_gpu(), _l4t())


def resident_memory_mb(process_ids: Iterable[int]) -> float:
    """Return the resident memory of processes in 10^6 bytes; a process that has ended counts as 0."""
    pages = 0
    for process_id in process_ids:
        fields = _text(Path(f"/proc/{process_id}/statm")).split()
        pages += int(fields[1]) if len(fields) > 1 else 0
    return pages * resource.getpagesize() / 1e6


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets that the kernel lists for this processor; empty where it lists none."""
    found = re.search(r"^flags\s*:\s*(.+)$", _text(_CPU_INFO), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def has_vnni(machine: str, flags: Collection[str]) -> bool:
    """Whether an x86 processor multiplies uint8 by int8 exactly and fast, by its kind and its instruction sets."""
    return machine.lower() in ("x86_64", "amd64") and not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def has_vnni_here() -> bool:
    """Whether this processor has it."""
    return has_vnni(platform.machine(), cpu_flags())


def processor() -> str:
    """Return the model of the processor, or of the board if the processor does not state it."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(_CPU_INFO), re.MULTILINE)  # x86; ARM has no such line
    return (found[1] if found else _text(_BOARD).strip("\0\n ")) or platform.processor() or "unknown"


def _l4t() -> str | None:
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(_TEGRA_RELEASE))
    return f"{found[1]}.{found[2]}" if found else None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
