"""`bank review`, `bank judge` and `bank check`: what they print, draw, keep and refuse."""

import json
import shutil
from pathlib import Path

import pytest
import skimage.data
from command_line import Cli, is_one_error

from fsvit_edge import FewShotModel
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.runtime.pictures import read_image, write_image
from fsvit_edge.runtime.presence_level import score_text

BANK = "bank.safetensors"


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bank and the picture of `bank`."""
    folder = tmp_path_factory.mktemp("doubtful")
    cat = skimage.data.chelsea()
    like = cat[..., ::-1].copy()
    write_image(folder / "like.jpg", like)
    with pytest.MonkeyPatch.context() as patch, FewShotModel.load(threads=1) as model:
        patch.setattr("fsvit_edge.fewshot.review._DOUBT_MARGIN", 99.0)  # every score is doubtful
        model.enroll("cat", [cat])
        for image in (cat, like):
            model.review.note(image, model.predict(image), wall_time_s=0.5)
        model.save_bank(folder / BANK)
    return folder


@pytest.fixture
def bank(doubtful: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bank with a cat, and two doubtful frames: 0 shows it, 1 (like.jpg) does not although it is found."""
    shutil.copytree(doubtful, here, dirs_exist_ok=True)
    monkeypatch.setattr("fsvit_edge.fewshot.review._DOUBT_MARGIN", 99.0)  # every score is doubtful
    return here / BANK


def test_frames_are_listed_drawn_and_judged(bank: Path, cli: Cli) -> None:
    listed = cli(f"bank review {BANK} --preview sheet.png")
    assert listed.code == 0
    rows = [line.split() for line in listed.out.splitlines()]
    kept = SupportBank.load(bank).review
    assert [row[:5] for row in rows if row[:1] == ["cat"]] == [
        ["cat", str(one.number), "present", f"{one.score:.4f}", score_text(one.level)] for one in kept
    ]  # four decimals: two would round these scores to 1.00
    assert all(one.score >= 0.995 for one in kept)
    then = f"fsvit-edge bank judge {BANK} NUMBER yes (or no)\n"
    assert listed.err == f"2 wait for a verdict; {then}"
    assert cli(f"bank review {BANK}").err == f"2 wait for a verdict; look at them with --preview FILE, then: {then}"
    assert read_image(bank.parent / "sheet.png").shape[1] > 400

    assert cli(f"bank judge {BANK} 0 yes").out == "Frame 0: yes, 'cat' is there.\n"
    assert cli(f"bank judge {BANK} 1 no").out == "Frame 1: no, 'cat' is not there.\n"
    assert cli(f"bank review {BANK}").err == ""
    items = json.loads(cli(f"bank review {BANK} --json").out)["items"]
    assert [(one["number"], one["name"], one["verdict"], one["present"]) for one in items] == [
        (0, "cat", "yes", True),
        (1, "cat", "no", True),
    ]
    assert [one.verdict for one in SupportBank.load(bank).review] == ["yes", "no"]


def test_the_list_of_classes_counts_doubtful_frames(bank: Path, cli: Cli) -> None:
    def counts() -> tuple[int, int]:
        facts = json.loads(cli(f"bank list {BANK} --json").out)
        return facts["doubtful_frames"], facts["judged_frames"]

    assert counts() == (2, 0)
    cli(f"bank judge {BANK} 1 no")
    assert counts() == (2, 1)
    line = f"Doubtful frames: 2, of them 1 judged; see: fsvit-edge bank review {BANK}"
    assert cli(f"bank list {BANK}").out.splitlines()[-1] == line
    SupportBank.load(bank).emptied().save(bank)  # the control
    assert counts() == (0, 0)
    assert "Doubtful" not in cli(f"bank list {BANK}").out


def test_a_check_fails_until_the_answers_agree_with_the_verdicts(bank: Path, cli: Cli) -> None:
    assert cli(f"bank check {BANK}").out == "There are no verdicts to check.\n"
    cli(f"bank judge {BANK} 0 yes")
    cli(f"bank judge {BANK} 1 no")
    before = bank.read_bytes()

    failed = cli(f"bank check {BANK}")
    assert failed.code == 5
    assert "Answers that change: 0 of 2; that contradict their verdict: 1, of them 1 as before." in failed.out
    score = f"{SupportBank.load(bank).review[1].score:.4f}"
    assert ["cat", "1", "no", "present", score, "present", score, "wrong"] in [
        line.split() for line in failed.out.splitlines()
    ]
    assert failed.err == (
        "Error: 1 of 2 verdicts in bank.safetensors are contradicted: 1; learn from the frame with Review on the page "
        "of a run, add another picture or negative of the class with fsvit-edge enroll, or change its level with "
        "fsvit-edge bank level.\n"
    )
    as_json = cli(f"bank check {BANK} --json")
    assert as_json.code == 5
    found = json.loads(as_json.out)
    assert (found["checked"], found["changed"], found["contradicting"]) == (2, 0, 1)
    assert [one["contradicts"] for one in found["items"]] == [False, True]
    assert bank.read_bytes() == before

    cli(f"enroll cat like.jpg --not --bank {BANK}")
    passed = cli(f"bank check {BANK}")
    assert (passed.code, passed.err) == (0, "")
    assert "Answers that change: 1 of 2; that contradict their verdict: 0." in passed.out


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("bank judge bank.safetensors 2 yes", "The bank keeps doubtful frames 0 to 1, and none with number 2"),
        ("bank judge bank.safetensors 0 perhaps", "A verdict must be yes or no, got 'perhaps'."),
        ("bank review empty.safetensors --preview x.png", "empty.safetensors keeps no doubtful frames to draw"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(bank: Path, cli: Cli, line: str, reason: str) -> None:
    SupportBank.load(bank).emptied().save(bank.with_name("empty.safetensors"))
    before = bank.read_bytes()
    is_one_error(cli(line), 2, reason)
    assert bank.read_bytes() == before
    assert not (bank.parent / "x.png").exists()


def test_a_bank_without_doubtful_frames_says_how_to_get_some(bank: Path, cli: Cli) -> None:
    SupportBank.load(bank).emptied().save(bank)
    assert cli(f"bank review {BANK}").out == (
        "bank.safetensors keeps no doubtful frames; collect some with: fsvit-edge run --review.\n"
    )
    assert json.loads(cli(f"bank review {BANK} --json").out) == {"items": []}
