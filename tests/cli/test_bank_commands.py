"""Classes enrolled, listed, renamed, removed, and their levels."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Cli, Result

from fsvit_edge import FewShotModel
from fsvit_edge.enroll.fit import Fit
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle, read_manifest

BUNDLED_LEVEL = read_manifest(DEFAULT_BUNDLE).presence_level


def test_classes_are_enrolled_listed_renamed_and_removed(folder: Path, cli: Cli) -> None:
    (folder / "bank.safetensors").unlink()
    first = cli("enroll cat cat1.jpg cat2.png --mask cat1_mask.png --mask cat2_mask.png")
    assert first.code == 0
    fit = re.compile(r"fit on its own picture: IoU [01]\.\d\d, outline \d+\.\d x the mask's area$", re.MULTILINE)
    assert fit.sub("FIT", first.out).splitlines() == [
        "cat1.jpg: mask covers 25% of the picture",
        "cat1.jpg: FIT",
        "cat2.png: mask covers 25% of the picture",
        "cat2.png: FIT",
        "Enrolled 'cat' from 2 pictures; bank.safetensors contains: cat.",
        first.out.splitlines()[-1],
    ]
    assert re.fullmatch(
        r"Its level, the score above which it is present: 0\.\d\d \(own pictures\)\.", first.out.splitlines()[-1]
    )
    assert re.fullmatch(
        r"Next: fsvit-edge run (--camera|photo\.jpg) --bank bank\.safetensors", first.err.splitlines()[-1]
    )
    second = cli("enroll thing cat2.png")
    assert second.code == 0
    assert "cat2.png: guessed mask covers " in second.out
    assert "Enrolled 'thing' from 1 picture; bank.safetensors contains: cat, thing." in second.out
    assert f"Its level, the score above which it is present: {BUNDLED_LEVEL:.2f} (default)." in second.out
    third = cli("enroll cat photo.jpg")
    assert "Enrolled 'cat' from 3 pictures; bank.safetensors contains: cat, thing." in third.out
    assert "already" not in third.err
    again = cli("enroll cat cat1.jpg --mask cat1_mask.png")
    assert "Note: 'cat' had cat1.jpg already; again, it takes time and teaches nothing.\n" in again.err
    assert "To take it back: fsvit-edge bank remove bank.safetensors cat --picture 3\n" in again.err
    assert cli("bank remove bank.safetensors cat --picture 3").out == "Removed picture 3 of 'cat', which has 3 left.\n"
    refused = cli("bank remove bank.safetensors cat --picture 3")
    assert (refused.code, "Class 'cat' has 3 pictures and no picture 3." in refused.err) == (2, True)
    assert cli("bank remove bank.safetensors cat --picture 0 --negative 0").code == 2

    listed = json.loads(cli("bank list bank.safetensors --json").out)
    assert listed["encoder"]["encoder_sha256"] == Bundle.load(DEFAULT_BUNDLE).manifest.graphs["encoder"].sha256
    assert [(c["name"], c["shots"], c["masks"]) for c in listed["classes"]] == [("cat", 3, 2), ("thing", 1, 0)]
    for entry in listed["classes"]:
        assert len(entry["kept_tokens"]) == entry["shots"]
        assert entry["bytes"] > 0
    table = cli("bank list bank.safetensors")
    assert (table.code, table.err) == (0, "")
    rows = [line.split()[:3] for line in table.out.splitlines()]
    assert ["cat", "3", "2"] in rows
    assert ["thing", "1", "0"] in rows

    renamed = cli("bank rename bank.safetensors cat 'Katze 猫'")
    assert renamed == Result(0, "Renamed 'cat' to 'Katze 猫'; bank.safetensors contains: Katze 猫, thing.\n", "")
    removed = cli("bank remove bank.safetensors thing --picture 0")  # its last one
    assert removed == Result(0, "Removed 'thing'; bank.safetensors contains: Katze 猫.\n", "")
    last = cli("bank remove bank.safetensors 'Katze 猫'")
    assert last.out == "Removed 'Katze 猫'; bank.safetensors contains: no class.\n"
    assert SupportBank.load(folder / "bank.safetensors").classes == ()


@pytest.mark.usefixtures("folder")
def test_names_with_joiners_and_new_emoji_are_shown_as_they_are_in_sentences_too(cli: Cli) -> None:
    new = "क्\u200dष \U0001fabf"
    renamed = cli("bank rename bank.safetensors cat", new)
    assert renamed.out == f"Renamed 'cat' to '{new}'; bank.safetensors contains: {new}, Größe 猫.\n"
    assert cli("bank level bank.safetensors", new, "0.5").out.startswith(f"The level of '{new}' is now 0.50")


def test_a_level_can_be_set_listed_and_reset(folder: Path, cli: Cli) -> None:
    (folder / "bank.safetensors").unlink()

    def listed() -> list[tuple[float, str]]:
        entries = json.loads(cli("bank list bank.safetensors --json").out)["classes"]
        return [(entry["level"], entry["level_source"]) for entry in entries]

    first = cli("enroll cat cat1.jpg --level 0.7")
    assert first.out.splitlines()[-1] == "Its level, the score above which it is present: 0.70 (by hand)."
    cli("enroll thing cat1.jpg")
    assert (
        cli("enroll cat cat2.png").out.splitlines()[-1]
        == "Its level, the score above which it is present: 0.70 (by hand)."
    )
    assert listed() == [(0.7, "by hand"), (BUNDLED_LEVEL, "default")]
    table = cli("bank list bank.safetensors").out
    assert "0.70 (by hand)" in table
    assert f"{BUNDLED_LEVEL:.2f} (default)" in table
    back = cli("bank level bank.safetensors cat")
    level, source = listed()[0]
    assert source == "own pictures"
    assert back.out == f"The level of 'cat' is now {level:.2f} (own pictures).\n"
    assert cli("bank level bank.safetensors thing 0.3").out == "The level of 'thing' is now 0.30 (by hand).\n"
    assert listed()[1] == (0.3, "by hand")


@pytest.mark.usefixtures("folder")
def test_zones_are_added_listed_and_removed(cli: Cli) -> None:
    assert "Zones" not in cli("bank list bank.safetensors").out
    added = cli("bank zone bank.safetensors door=0,0,0.5,0,0.5,1")
    assert added == Result(0, "Zones in bank.safetensors: door.\n", "")
    assert cli("bank zone bank.safetensors 'the yard=0.5,0,1,0,1,1'").out.endswith(": door, the yard.\n")
    assert cli("bank list bank.safetensors").out.endswith("\nZones: door, the yard.\n")
    listed = json.loads(cli("bank list bank.safetensors --json").out)["zones"]
    assert listed[0] == {"name": "door", "corners": [[0, 0], [0.5, 0], [0.5, 1]]}
    for wrong, said in (
        ("door=0,0,1,0,1,1", "Two zones are named 'door'; give each its own name."),
        ("gate", "Unsupported zone 'gate'; expected NAME="),
        ("gate --remove", "There is no zone 'gate'; zones: door, the yard."),
    ):
        refused = cli(f"bank zone bank.safetensors {wrong}")
        assert (refused.code, refused.out) == (2, "")
        assert said in refused.err
    assert cli("bank zone bank.safetensors door --remove").out == "Zones in bank.safetensors: the yard.\n"
    assert cli("enroll another cat1.jpg").code == 0
    assert cli("bank list bank.safetensors").out.endswith("\nZones: the yard.\n")


@pytest.mark.usefixtures("folder")
def test_poor_masks_cause_a_warning(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    enroll = FewShotModel.enroll
    good, absent = Fit(0.7, 1.2, True), Fit(0.7, 1.2, False)
    for cover, fit, expected in (
        (0.999, good, ["Warning: cat1.jpg: The guessed mask covers almost the whole picture; give a mask or a box."]),
        (0.4, good, []),
        (
            0.4,
            absent,
            [
                "Warning: cat1.jpg: The class is not found in its own picture; give a tighter mask or box, or add "
                "another picture."
            ],
        ),
    ):
        changed = {"mask_cover": (cover,)}
        monkeypatch.setattr(FewShotModel, "enroll", lambda *given, c=changed: replace(enroll(*given), **c))
        monkeypatch.setattr("fsvit_edge.enroll.enroll_pictures.measure_fit", lambda *_, f=fit: f)
        result = cli("enroll cat cat1.jpg")
        assert result.code == 0
        assert [line for line in result.err.splitlines() if line.startswith("Warning: ")] == expected
        assert "fit" not in result.out  # of a guess
        assert f"cat1.jpg: fit on its own picture: {fit}\n" in cli("enroll cat cat1.jpg --box 0,0,60,60").out
