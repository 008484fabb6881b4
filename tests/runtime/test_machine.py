import json
from dataclasses import asdict
from pathlib import Path

import pytest
from engine_records import GPU, MACHINE

from fsvit_edge.runtime import machine
from fsvit_edge.runtime.json_records import record_from_json
from fsvit_edge.runtime.machine import Machine, cpu_flags, has_vnni


def test_a_machine_survives_a_write_and_a_read() -> None:
    for one in (MACHINE, Machine("Linux", "aarch64", "unknown", None, "36.4.3")):
        values = json.loads(json.dumps(asdict(one)))
        assert record_from_json(Machine, Path("x.json"), values) == one


ARM, BOARD = "CPU implementer\t: 0x41\nCPU part\t: 0xd4f\n", "NVIDIA Jetson Orin Nano Developer Kit\0"


@pytest.mark.parametrize(
    ("files", "cpu", "l4t"),
    [
        ({"_CPU_INFO": "processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: AMD EPYC\n"}, "AMD EPYC", None),
        (
            {"_CPU_INFO": ARM, "_BOARD": BOARD, "_TEGRA_RELEASE": "# R36 (release), REVISION: 4.3, GCID: 38968081\n"},
            BOARD[:-1],
            "36.4.3",
        ),
        ({"_BOARD": "Board\0", "_TEGRA_RELEASE": "# R38 (release), REVISION: 2.0, GCID: 1\n"}, "Board", "38.2.0"),
        ({"_CPU_INFO": ARM, "_BOARD": "Board\0", "_TEGRA_RELEASE": "something else\n"}, "Board", None),
        ({}, "unknown", None),
    ],
)
def test_processor_and_release_are_read_from_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpu: str, l4t: str | None
) -> None:
    for name in ("_CPU_INFO", "_BOARD", "_TEGRA_RELEASE"):
        monkeypatch.setattr(machine, name, tmp_path / name)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine, "find_gpu", lambda: GPU)
    here = Machine.here()
    assert (here.cpu, here.l4t, here.gpu) == (cpu, l4t, GPU)


@pytest.mark.parametrize(
    ("arch", "text", "expected"),
    [
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni\nbugs\t\t: none\n", True),
        ("AMD64", "flags\t\t: avx_vnni\n", True),
        ("x86_64", "flags\t\t: fpu avx2 avx512f\nvmx flags\t: avx512_vnni\n", False),
        ("aarch64", "Features\t: fp asimd asimddp\n", False),
        ("x86_64", None, False),
    ],
)
def test_vnni_is_read_from_the_processors_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, text: str | None, expected: bool
) -> None:
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert has_vnni(arch, cpu_flags()) is expected
