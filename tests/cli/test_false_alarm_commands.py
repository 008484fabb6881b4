"""`bank scene`, `enroll --not` and `bank remove --negative`: what they print, keep and refuse."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from typer.testing import CliRunner

from fsvit_edge.cli.main import app
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.picture_sheet import captioned
from fsvit_edge.fewshot.prediction import Rejection
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.errors import InputError
from fsvit_edge.runtime.pictures import read_image, write_image


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bank and the pictures of `bank`."""
    folder = tmp_path_factory.mktemp("enrolled")
    cat = skimage.data.chelsea()
    write_image(folder / "cat.jpg", cat)
    write_image(folder / "like.jpg", cat[..., ::-1].copy())
    write_image(folder / "other.jpg", skimage.data.coffee())
    run("enroll", "cat", str(folder / "cat.jpg"), "--bank", str(folder / "bank.safetensors"))
    return folder


@pytest.fixture
def bank(enrolled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bank with a cat, and pictures: cat.jpg, like.jpg (found as the cat too), other.jpg."""
    shutil.copytree(enrolled, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("bank.safetensors")


def run(*words: str) -> tuple[str, str]:
    """Standard output and standard error of a command that succeeds."""
    done = CliRunner().invoke(app, words)
    if done.exception is not None:
        raise done.exception
    return done.stdout, done.stderr


def test_a_scene_is_learned_told_about_and_forgotten(bank: Path) -> None:
    out, err = run("bank", "scene", str(bank), "other.jpg")
    assert "cat: at most 0.0" in out
    assert err == ""
    assert "Frames of the empty scene: 1." in out
    assert "falsely found in at most 95% of those" in out

    out, err = run("bank", "scene", str(bank), "like.jpg")
    assert "Warning: cat: the empty scene scores 0.99" in err  # four decimals: two would say 1.00
    assert ", so it may be missed" in err
    again = "fsvit-edge bank scene bank.safetensors --forget, and learn it again without them."
    assert f"If one of your objects was in view, the scene was not empty: {again}\n" in err
    assert SupportBank.load(bank).level_source("cat") == "empty scene"
    assert json.loads(run("bank", "list", str(bank), "--json")[0])["scene_frames"] == 2
    assert "Frames of the empty scene: 2." in run("bank", "list", str(bank))[0]

    assert "knows no empty scene" in run("bank", "scene", str(bank), "--forget")[0]
    assert SupportBank.load(bank).scene == ()


def test_a_new_scene_can_replace_the_old_one(bank: Path) -> None:
    run("bank", "scene", str(bank), "like.jpg")
    run("bank", "scene", str(bank), "other.jpg", "--forget")
    assert len(SupportBank.load(bank).scene) == 1
    assert SupportBank.load(bank).level_source("cat") == "default"


def test_a_level_set_by_hand_is_told_to_stay(bank: Path) -> None:
    run("bank", "level", str(bank), "cat", "0.3")
    _, err = run("bank", "scene", str(bank), "like.jpg")
    assert "Warning: cat: the empty scene scores" in err
    assert ", and its level was set by hand, so it will be found there; show it what it is not with: " in err
    assert "may be missed" not in err


@pytest.mark.parametrize(
    ("score", "effect"),
    [
        (1.0, "as high as a score can be, so no level helps and it will be found there"),
        (0.9999999, "so it may be missed"),
    ],
)
def test_a_scene_that_scores_as_high_as_a_score_can_is_told_honestly(
    bank: Path, monkeypatch: pytest.MonkeyPatch, score: float, effect: str
) -> None:
    monkeypatch.setattr(
        "fsvit_edge.fewshot.enrollment.subtract_negatives",
        lambda _, foreground, levels, *__: (np.full(len(levels), score, np.float32), foreground),
    )
    _, err = run("bank", "scene", str(bank), "other.jpg")
    assert f"Warning: cat: the empty scene scores 1.0000, {effect}; show it what it is not with" in err
    told = "Warning: these classes are found even in the empty scene: cat." in run("bank", "list", str(bank))[1]
    assert told == (score == 1)


def test_a_folder_with_a_folder_of_pictures_is_refused_with_the_one_to_give(bank: Path) -> None:
    Path("scene/images").mkdir(parents=True)
    for words in (["bank", "scene", str(bank), "scene"], ["run", "scene", "--bank", str(bank)]):
        with pytest.raises(
            InputError, match=r"contains no pictures \(.*\); give its folder of pictures, scene/images\.$"
        ):
            run(*words)
    write_image(Path("scene/images/1.jpg"), skimage.data.coffee())
    assert "Frames of the empty scene: 1." in run("bank", "scene", str(bank), "scene/images")[0]


def test_a_scene_of_which_a_part_cannot_be_read_is_learned_and_ends_with_1(bank: Path) -> None:
    Path("scene/older").mkdir(parents=True)
    write_image(Path("scene/1.jpg"), skimage.data.coffee())
    _, err = run("bank", "scene", str(bank), "scene")
    assert err == "Note: scene has 1 folder that is not read, as scene/older; give it as a source too.\n"

    Path("scene/2.jpg").write_bytes(Path("scene/1.jpg").read_bytes()[:-400])
    done = CliRunner().invoke(app, ["bank", "scene", str(bank), "scene", "--forget"])
    assert done.exit_code == 1
    assert "Frames of the empty scene: 1." in done.stdout
    assert "Left out: scene/2.jpg is damaged or cut short" in done.stderr
    assert len(SupportBank.load(bank).scene) == 1


def test_all_pictures_of_a_bank_are_drawn_with_their_numbers(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("enroll", "cat", "like.jpg", "other.jpg", "--not", "--box", "100,100,200,150", "--box", "0,0,99,99")
    run("bank", "scene", str(bank), "other.jpg")
    drawn: list[list[str]] = []

    def noting(panel: np.ndarray, lines: list[tuple[str, int | None]]) -> np.ndarray:
        drawn.append([text for text, _ in lines])
        return captioned(panel, lines)

    monkeypatch.setattr("fsvit_edge.fewshot.bank_sheet.captioned", noting)
    out, _ = run("bank", "list", str(bank), "--preview", "sheet.png")
    margins = [one.margin for one in SupportBank.load(bank).negatives("cat")]
    assert drawn == [
        ["cat: picture 0", "by its name"],
        *([f"cat: negative {number}", f"margin {margin:.1f}"] for number, margin in enumerate(margins)),
        ["empty scene 0"],
    ]
    sheet = read_image(Path("sheet.png"))
    assert sheet.shape[1] > 4 * 200
    assert len(np.unique(sheet)) > 100
    rows = [line.split() for line in out.splitlines()]
    assert [row[:2] + row[-1:] for row in rows if row[:1] == ["cat"]][1:] == [
        ["cat", str(number), f"{margin:.1f}"] for number, margin in enumerate(margins)
    ]
    facts = json.loads(run("bank", "list", str(bank), "--json")[0])
    assert facts["false_alarm_bound"] == 0.95
    assert facts["classes"][0]["negative_margins"] == [round(margin, 3) for margin in margins]

    SupportBank.load(bank).emptied().save(bank)
    with pytest.raises(InputError, match="has no pictures to draw"):
        run("bank", "list", str(bank), "--preview", "none.png")
    assert not Path("none.png").exists()


def test_the_demo_as_a_scene_ends(bank: Path) -> None:
    assert "Frames of the empty scene: 2." in run("bank", "scene", str(bank), "demo", "--frames", "2")[0]


def test_a_class_that_the_scene_answers_to_is_told_when_it_is_enrolled(bank: Path) -> None:
    run("bank", "scene", str(bank), "other.jpg")
    err = run("enroll", "cup", "other.jpg")[1]
    assert "Warning: the empty scene answers to 'cup', so it may be missed. If one of your objects was in view" in err
    assert "fsvit-edge bank scene bank.safetensors --forget, and learn it again" in err


@pytest.mark.usefixtures("bank")
@pytest.mark.parametrize(("margin", "warns"), [(2.4, True), (3.0, False)])
def test_a_picture_that_is_much_like_the_class_itself_is_told(
    margin: float, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejection = Rejection("cat", 1, True, 0.99, 0.9, 0.95, margin)
    monkeypatch.setattr(FewShotModel, "reject", lambda *_: rejection)
    assert ("like.jpg is much like 'cat' itself" in run("enroll", "cat", "like.jpg", "--not")[1]) == warns


@pytest.mark.usefixtures("bank")
@pytest.mark.parametrize("is_too_small", [True, False])
def test_what_is_marked_and_too_small_to_see_is_told(is_too_small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rejection = Rejection("cat", 1, True, 0.99, 0.9, 0.95, 3.0, is_too_small)
    monkeypatch.setattr(FewShotModel, "reject", lambda *_: rejection)
    told = "like.jpg: what is marked is too small for the network to see, so all of it was used."
    assert (told in run("enroll", "cat", "like.jpg", "--not")[1]) == is_too_small


def test_more_negatives_than_fit_are_refused_before_anything_is_printed(bank: Path) -> None:
    with pytest.raises(InputError, match="can have 16 negatives and has 0, so 17 more do not fit"):
        run("enroll", "cat", *["like.jpg"] * 17, "--not")
    assert SupportBank.load(bank).negatives("cat") == ()


def test_two_commands_at_once_both_keep_their_change(bank: Path) -> None:
    words = [["bank", "scene", str(bank), "other.jpg"], ["enroll", "cat", "like.jpg", "--not"]]
    running = [subprocess.Popen([sys.executable, "-m", "fsvit_edge.cli.main", *one]) for one in words]
    assert [one.wait(120) for one in running] == [0, 0]
    both = SupportBank.load(bank)
    assert (len(both.scene), len(both.negatives("cat"))) == (1, 1)


def test_steady_answers_of_a_picture_are_refused(bank: Path) -> None:
    with pytest.raises(InputError, match="--steady needs a video, a camera or a stream"):
        run("run", "cat.jpg", "--steady", "--bank", str(bank))


def test_a_rejected_picture_is_listed_and_can_be_removed_again(bank: Path) -> None:
    before = bank.read_bytes()
    out, err = run("enroll", "cat", "like.jpg", "other.jpg", "--not", "--box", "100,100,200,150", "--box", "0,0,99,99")
    assert "like.jpg: not 'cat': scored 0.9999, now 0." in out
    assert "Warning: other.jpg: 'cat' was not found there" in err
    undo = f"To take other.jpg back: fsvit-edge bank remove {bank} cat --negative 1"
    also = f"To take like.jpg back: fsvit-edge bank remove {bank} cat --negative 0"  # it is much like the class itself
    assert err.splitlines()[-2:] == [undo, also]  # in this order the numbers hold
    (listed,) = json.loads(run("bank", "list", str(bank), "--json")[0])["classes"]
    assert (listed["shots"], listed["negatives"]) == (1, 2)
    assert before != bank.read_bytes()

    assert "which has 1 left" in run(*shlex.split(undo.partition("fsvit-edge ")[2]))[0]
    (kept,) = SupportBank.load(bank).negatives("cat")
    assert kept.support.thumbnail_mask.mean() > 0.05  # not the corner of the other picture
    assert "which has 0 left" in run("bank", "remove", str(bank), "cat", "--negative", "0")[0]


def test_a_picture_in_which_the_class_is_not_found_teaches_nothing(bank: Path) -> None:
    before = bank.read_bytes()
    with pytest.raises(
        InputError, match=r"other\.jpg: 'cat' is not found there \(score 0\.\d+, level 0\.\d+\), so there is nothing to"
    ):
        run("enroll", "cat", "other.jpg", "--not")
    assert bank.read_bytes() == before
    out, err = run("enroll", "cat", "other.jpg", "like.jpg", "--not")
    assert "like.jpg: not 'cat': scored 0.9999, now 0." in out
    assert "Note: other.jpg: 'cat' is not found there (score 0." in err
    assert "other.jpg" not in out
    assert len(SupportBank.load(bank).negatives("cat")) == 1  # the control: it is learned where it is found


def test_what_raised_the_level_as_the_empty_scene_is_learned_although_the_class_is_not_found_there(bank: Path) -> None:
    run("bank", "scene", str(bank), "like.jpg")
    before = SupportBank.load(bank).level("cat")
    out, err = run("enroll", "cat", "other.jpg", "like.jpg", "--not")
    assert "Note: other.jpg: 'cat' is not found there (score 0.0" in err  # the control
    assert "like.jpg: not 'cat': scored 0.9999" in out
    assert "was not found there" not in err
    assert SupportBank.load(bank).level("cat") < before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("bank", "scene", "bank.safetensors"), "Give a source that shows none of the objects, or --forget"),
        (("enroll", "cat", "like.jpg", "--not", "--level", "0.5"), "--not goes with neither"),
        (("enroll", "cat", "like.jpg", "--not", "--preview", "a.png"), "--not goes with neither"),
        (("enroll", "dog", "like.jpg", "--not"), "'dog' is not enrolled; enrolled: cat"),
        (("bank", "remove", "bank.safetensors", "cat", "--negative", "0"), "has 0 negatives and no negative 0"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(bank: Path, words: tuple[str, ...], reason: str) -> None:
    before = bank.read_bytes()
    with pytest.raises(InputError, match=reason):
        run(*words)
    assert bank.read_bytes() == before
