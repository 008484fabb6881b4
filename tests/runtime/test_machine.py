import json
from dataclasses import asdict
from pathlib import Path

import pytest
from engine_records import GPU, MACHINE

from fsvit_edge.runtime import machine
from fsvit_edge.runtime.json_records import record_from_json
from fsvit_edge.runtime.machine import Machine


def test_a_machine_survives_a_write_and_a_read() -> None:
    for one in (MACHINE, Machine("Linux", "aarch64", "unknown", None, "36.4.3")):
        values = json.loads(json.dumps(asdict(one)))
        assert record_from_json(Machine, Path("x.json"), values) == one


@pytest.mark.parametrize(
    ("cpu_info", "board", "release", "cpu", "l4t"),
    [
        (
            "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nmodel name\t: AMD EPYC 7B13\n",
            None,
            None,
            "AMD EPYC 7B13",
            None,
        ),
        (
            "processor\t: 0\nCPU implementer\t: 0x41\n",
            "NVIDIA Jetson Orin Nano Developer Kit\0",
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
            "NVIDIA Jetson Orin Nano Developer Kit",
            "36.4.3",
        ),
        ("CPU part\t: 0xd4f\n", "Board\0", "# R38 (release), REVISION: 2.0, GCID: 1\n", "Board", "38.2.0"),
        ("CPU part\t: 0xd4f\n", "Board\0", "something else\n", "Board", None),
    ],
)
def test_processor_and_release_are_read_from_the_system(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpu_info: str,
    board: str | None,
    release: str | None,
    cpu: str,
    l4t: str | None,
) -> None:
    for name, text in (("_CPU_INFO", cpu_info), ("_BOARD", board), ("_TEGRA_RELEASE", release)):
        file = tmp_path / name
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(machine, name, file)
    monkeypatch.setattr(machine, "find_gpu", lambda: GPU)
    here = Machine.here()
    assert (here.cpu, here.l4t, here.gpu) == (cpu, l4t, GPU)


def test_a_system_without_these_files_has_an_unknown_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CPU_INFO", "_BOARD", "_TEGRA_RELEASE"):
        monkeypatch.setattr(machine, name, tmp_path / name)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    assert (Machine.here().cpu, Machine.here().l4t) == ("unknown", None)
