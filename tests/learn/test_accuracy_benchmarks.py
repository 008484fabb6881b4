"""The accuracy benchmarks: their questions, their counts, the gate on outlines, and the tables they print."""

import importlib
import json
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_engine import FakeEngine

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.heads import PaddedHead
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.learn.evaluation import EvaluationOptions
from fsvit_edge.learn.folder import FolderFewShot
from fsvit_edge.learn.scenes import SceneTally
from fsvit_edge.model.checkpoint import save_network
from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.encoder import HYBRID_BACKBONE
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.engines.base import Array, TensorSpec
from fsvit_edge.runtime.errors import AccuracyGateError, InputError
from fsvit_edge.runtime.pictures import write_image

ColorModel = Any
MakeFolder = Callable[..., Path]
Run = Callable[..., tuple[list[str], str]]
FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # as Python does when it runs a script in that folder
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
        for common in ("outlines", "presence", "accuracy"):  # words that another module may have as its name
            sys.modules.pop(common, None)


@pytest.fixture(scope="module")
def outlines() -> ModuleType:
    return load("outlines")


@pytest.fixture(scope="module")
def presence() -> ModuleType:
    return load("presence")


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    return load("accuracy")


def telling(color_model: ColorModel, left: float | None = None) -> FewShotModel:
    """The model that finds colors, with objectness of colored pixels; `left` replaces it in the left half.

    Less sure than the head is of a color that it does not find, whose logit is -2.2.
    """
    size = color_model.model.manifest.image_size

    def tell(feed: dict[str, Array]) -> dict[str, Array]:
        image = feed["image"][:, ::2, ::2].astype(np.int64)
        colored = image.max(axis=3) - image.min(axis=3) > 80
        logits = np.where(colored, 2.0, -2.0).astype(np.float32)
        if left is not None:
            logits[:, :, : size // 4] = left
        return {"objectness": logits}

    engine = FakeEngine(
        (TensorSpec("image", ("batch", size, size, 3), "uint8"),),
        (TensorSpec("objectness", ("batch", size // 2, size // 2), "float32"),),
        tell,
    )
    plain = color_model.model
    network = plain.network
    assert isinstance(network.head, PaddedHead)
    graphs = {"encoder": network.encoder, "enroll": network.enroll, "head": network.head.engine, "objectness": engine}
    return FewShotModel(plain.manifest, graphs)


@pytest.fixture
def answer_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[FewShotModel], None]:
    """Make every script load this model."""

    def answer_with(model: FewShotModel) -> None:
        def load(_bundle: Path, _engine: str = "auto", *, threads: int | None = None, **_: str) -> FewShotModel:
            assert threads is None or threads > 0
            return model

        monkeypatch.setattr(FewShotModel, "load", load)

    return answer_with


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer_with: Any) -> Run:
    """Run a script on a model; returns the lines on stdout, and stderr."""

    def run(script: ModuleType, model: FewShotModel, *arguments: object) -> tuple[list[str], str]:
        answer_with(model)
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        script.main()
        said = capsys.readouterr()
        return said.out.splitlines(), said.err

    return run


def write_example(folder: Path, stem: int, shade: int, rows: int, columns: int, size: int) -> None:
    """Write a gray picture, and a mask of its top left."""
    mask = np.zeros((size, size, 3), np.uint8)
    mask[:rows, :columns] = 255
    write_image(folder / "images" / f"{stem}.png", np.full((size, size, 3), shade, np.uint8))
    write_image(folder / "masks" / f"{stem}.png", mask)


def stems(data: Any, question: Any) -> list[int]:
    return [int(data.examples[index].image.stem) for index in (question.support, *question.queries)]


# ------------------------------------------------------------------------------------------------ outlines: questions


def test_the_first_picture_with_a_large_object_is_the_support_and_the_next_four_are_queries(
    outlines: ModuleType, tmp_path: Path
) -> None:
    covers = {"big": [10] * 8, "late": [0, 10, 0, 10, 10], "tiny": [0, 0, 10]}
    for name, rows in covers.items():
        for stem, count in enumerate(rows):
            write_example(tmp_path / name, stem, stem, count or 1, 20 if count else 2, 60)  # or 2 of 3,600 pixels
    data, questions = outlines.open_folder(tmp_path)
    asked = {data.class_names[one.label]: stems(data, one) for one in questions}
    assert asked == {"big": [0, 1, 2, 3, 4], "late": [1, 3, 4]}


def test_a_folder_with_only_tiny_objects_is_refused(outlines: ModuleType, tmp_path: Path) -> None:
    for stem in range(3):
        write_example(tmp_path / "speck", stem, stem, 1, 2, 60)
    with pytest.raises(InputError, match=r"No class of .* has two pictures in which the object covers more than 0\.2%"):
        outlines.open_folder(tmp_path)


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """Twelve pictures: ground in all, a car from the fourth on, a bird in five, tiny spots and void in all."""
    root = tmp_path / "street" / "sequence"
    for stem in range(12):
        labels = np.full((20, 20), 7, np.uint8)
        labels[0] = 3
        labels[1, :2] = 9
        if stem >= 3:
            labels[5:8, stem : stem + 3] = 2
        if stem < 5:
            labels[12:15, 12:15] = 4
        labels[19] = 255
        write_image(root / "images" / f"{stem:02}.png", np.full((20, 20, 3), stem, np.uint8))
        write_image(root / "labels" / f"{stem:02}.png", labels)
    names = "7 ground\n2 car\n4 bird\n9 speck of dust\n3 void\n"
    (tmp_path / "street" / "labels.txt").write_text(names)
    return root


def test_labels_that_cover_enough_of_enough_pictures_become_classes(outlines: ModuleType, sequence: Path) -> None:
    data, (ground, car) = outlines.open_sequence(sequence)
    assert data.class_names == {7: "ground", 2: "car"}
    assert stems(data, ground) == [0, 5, 8, 11]
    assert stems(data, car) == [3, 8, 10]
    mask = data.read_mask(car.queries[0])
    assert (mask == 1).sum() == 9
    assert (mask[5:8, 8:11] == 1).all()
    assert (mask[19] == 255).all()
    assert outlines.set_name(sequence) == "street"


def test_labels_can_be_chosen_and_an_unknown_one_is_refused(outlines: ModuleType, sequence: Path) -> None:
    assert outlines.LabeledSequence(sequence, ["car"]).class_names == {2: "car"}
    assert outlines.LabeledSequence(sequence, ["void"]).class_names == {3: "void"}
    with pytest.raises(InputError, match="has no label 'dog'; it has: ground, car, bird"):
        outlines.LabeledSequence(sequence, ["dog"])
    with pytest.raises(InputError, match=r"No label of .* covers"):
        outlines.LabeledSequence(sequence, ["bird"])


def test_an_invalid_sequence_is_refused_and_the_file_named(outlines: ModuleType, sequence: Path) -> None:
    names, black = sequence.parent / "labels.txt", np.zeros((20, 20, 3), np.uint8)
    for damage, error in (
        (lambda: write_image(sequence / "images" / "12.png", black), r"12\.png has no label map"),
        (lambda: write_image(sequence / "labels" / "12.png", black), "has mode RGB; expected label numbers"),
        (lambda: names.write_text("ground\n"), "cannot be read"),
        (lambda: names.write_text("300 ground\n"), "gives 'ground' the number 300; expected 0 to 254"),
        (names.unlink, r"list of labels .*labels\.txt cannot be read"),
    ):
        damage()
        with pytest.raises(InputError, match=error):
            outlines.open_sequence(sequence)


# --------------------------------------------------------------------------------------------------- outlines: counts


class HalfModel:
    """Plain outlines are the top 10 rows, sharp ones the top 4; a support has weight 0.5, or 0 without a mask."""

    outlines = "sharp"

    def __init__(self, bank: SupportBank) -> None:
        self.bank = bank
        self.asked = 0
        self.level: float | None = None

    def cache_support(self, _name: str, _image: np.ndarray, mask: np.ndarray | None, _others: Any) -> CachedSupport:
        one = np.ones((1, 1, 1), np.float16)
        picture = np.zeros((1, 1, 3), np.uint8)
        weight = 0.0 if mask is None or self.outlines == "plain" else 0.5
        return CachedSupport(
            one, one, np.ones(9, np.bool_), picture, picture[..., 0] > 0, mask is not None, None, weight
        )

    def set_level_for_all(self, level: float | None) -> None:
        self.level = level

    def predict_with(self, rgb: np.ndarray, banks: Sequence[SupportBank]) -> list[Any]:
        assert self.level is not None
        assert self.level < 0.01  # otherwise absent classes would have no pixels
        self.asked += 1
        rows = np.arange(rgb.shape[0])[:, None].repeat(rgb.shape[1], axis=1)
        tops = [4 if bank.objectness_weights[0] else 10 for bank in banks]
        return [SimpleNamespace(label_map=(rows < top).astype(np.uint8)) for top in tops]


@pytest.fixture
def rows_folder(tmp_path: Path) -> Path:
    """In pictures of 20 x 20, the top rows are the object: 4, 4, 16 of a; 10, 10 of b, the last in a picture of a."""
    for name, counts in {"a": [4, 4, 16], "b": [10, 10]}.items():
        for stem, rows in enumerate(counts):
            shade = 101 if (name, stem) == ("b", 1) else {"a": 100, "b": 200}[name] + stem
            write_example(tmp_path / "rows" / name, stem, shade, rows, 20, 20)
    return tmp_path / "rows"


def test_the_iou_counts_the_pixels_of_all_pictures_of_a_class(
    outlines: ModuleType, color_model: ColorModel, rows_folder: Path
) -> None:
    model = HalfModel(color_model.model.bank)
    data, questions = outlines.open_folder(rows_folder)
    a, b = outlines.measure(model, data, questions)
    # a: plain shares 4 and 10 rows of 10 and 16, sharp 4 and 4 of 4 and 16.
    assert (a.name, a.masked.plain, a.masked.sharp) == ("a", pytest.approx(100 * 14 / 26), pytest.approx(100 * 8 / 20))
    assert (b.name, b.masked.plain, b.masked.sharp) == ("b", pytest.approx(100), pytest.approx(100 * 4 / 10))
    assert (a.masked.weight, a.named.weight) == (0.5, 0.0)
    assert (a.named.plain, a.named.sharp) == (a.masked.plain, a.masked.plain)
    assert model.asked == 2  # the last picture of b is a copy of one of a


def test_the_row_of_a_data_set_has_means_and_the_largest_loss(outlines: ModuleType) -> None:
    fit = outlines.Fit
    fits = [
        outlines.ClassFit("cup", fit(20.0, 60.0, 1.0), fit(10.0, 30.0, 0.5)),
        outlines.ClassFit("sky", fit(80.0, 77.0, 0.5), fit(30.0, 30.0, 0.0)),
    ]
    assert outlines.rows("things", fits) == ["| things | 2 | 50.0 | 68.5 | -3.0 | 0.75 | 20.0 | 30.0 | +0.0 | 0.25 |"]
    assert outlines.rows("things", fits, by_class=True)[1:] == [
        "| things | cup | 20.0 | 60.0 | +40.0 | 1.00 | 10.0 | 30.0 | +20.0 | 0.50 |",
        "| things | sky | 80.0 | 77.0 | -3.0 | 0.50 | 30.0 | 30.0 | +0.0 | 0.00 |",
    ]
    told_nothing = [replace(one, masked=replace(one.masked, sharp=None)) for one in fits]
    assert outlines.rows("things", told_nothing) == ["| things | 2 | 50.0 | - | - | - | 20.0 | 30.0 | +0.0 | 0.25 |"]
    width = {line.count("|") for line in [*outlines.HEADER.splitlines(), *outlines.rows("things", fits, True)]}
    assert len(width) == 1


def test_correct_objectness_passes_the_gate(
    outlines: ModuleType, color_model: ColorModel, make_folder: MakeFolder, run: Run
) -> None:
    lines, _ = run(outlines, telling(color_model), "--sets", make_folder(), "--classes", "--max-loss", 1)
    assert lines[1:3] == outlines.HEADER.splitlines()
    assert [line.split(" | ")[1] for line in lines[3:]] == ["4", "blue", "gold", "green", "red"]
    plain, sharp, worst = (float(cell) for cell in lines[3].split(" | ")[2:5])
    assert 60 < plain <= sharp
    assert worst >= -1
    assert lines[3].split(" | ")[5] == "1.00"


def test_objectness_that_ruins_a_class_fails_the_gate_with_code_5(
    color_model: ColorModel,
    make_folder: MakeFolder,
    answer_with: Callable[[FewShotModel], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer_with(telling(color_model, left=8.0))  # everything on the left is an object
    monkeypatch.setattr(sys, "argv", ["outlines.py", "--sets", str(make_folder()), "--max-loss", "1"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(FOLDER / "outlines.py"), run_name="__main__")
    assert stopped.value.code == AccuracyGateError.exit_code == 5
    assert "The outlines gate failed: from plain to sharp, blue of data -" in capsys.readouterr().err


def test_the_gate_names_every_class_beyond_the_limit_but_none_at_the_limit(outlines: ModuleType) -> None:
    unhurt = outlines.Fit(10.0, 10.0, 1.0)
    fits = [outlines.ClassFit(f"lost {loss}", outlines.Fit(50.0, 50.0 - loss, 1.0), unhurt) for loss in (0, 1, 2, 3)]
    with pytest.raises(
        AccuracyGateError, match=r"sharp, lost 2 of set -2\.0, lost 3 of set -3\.0 points; at most 1 points may"
    ):
        outlines.check_losses([("set", fits)], 1.0)
    outlines.check_losses([("set", fits)], 3.0)
    broken = [outlines.ClassFit("broken", outlines.Fit(50.0, float("nan"), 1.0), unhurt)]
    with pytest.raises(AccuracyGateError, match="broken"):
        outlines.check_losses([("set", broken)], 1.0)


def test_a_gate_without_objectness_is_refused(
    outlines: ModuleType, color_model: ColorModel, make_folder: MakeFolder, run: Run
) -> None:
    with pytest.raises(InputError, match="predicts no objectness"):
        run(outlines, color_model.model, "--sets", make_folder(), "--max-loss", 1)


# ------------------------------------------------------------------------------------------------------------- presence


def test_presence_prints_a_row_per_number_of_shots_and_kind_of_support(
    presence: ModuleType, color_model: ColorModel, make_folder: MakeFolder, run: Run
) -> None:
    lines, _ = run(presence, color_model.model, "--sets", make_folder(), "--per-class", 3)
    assert lines[1:3] == presence.HEADER.splitlines()
    assert lines[3] == "| data | 1 | with masks | 4 | 12 | 100.0 | 0.0 | 100.0 | 100.0 | 100.0 |"
    assert [line.split(" | ")[1:3] for line in lines[3:]] == [
        [shots, supports] for shots in ("1", "3") for supports in ("with masks", "names only")
    ]


def test_other_levels_are_printed_on_request(presence: ModuleType) -> None:
    scores = np.array([[0.96, 0.2], [0.94, 0.6], [0.55, 0.92], [0.1, 0.4]])
    shown = np.array([[True, False], [True, False], [False, True], [False, False]])
    lines = presence.level_rows(SceneTally(scores, np.array([0.5, 0.5]), shown))
    assert len(lines) == len(presence.LEVELS)
    # At 0.5 all three are found; one of two other pictures and one of three others alarm.
    assert lines[0] == f"| 0.5 | 100.0 | {(50 + 100 / 3) / 2:.1f} | {5 + 0.95 * (100 - (50 + 100 / 3) / 2):.1f} |"
    assert lines[presence.LEVELS.index(0.95)] == "| 0.95 | 25.0 | 0.0 | 96.2 |"


def test_a_class_with_too_few_pictures_gives_a_reason_instead_of_a_row(
    presence: ModuleType, color_model: ColorModel, rows_folder: Path, run: Run
) -> None:
    lines, complaint = run(presence, color_model.model, "--sets", rows_folder)
    assert len(lines) == 3 + 2
    assert "rows, 3 shots: Class 'a' has 3 pictures" in complaint


# ------------------------------------------------------------------------------------------------------------- accuracy


def result(fold: int, outlines: str, exact: float, miou: float | None, head: str = "trained") -> dict[str, Any]:
    asked = {"fold": fold, "head": head, "outlines": outlines, "ways": 1, "shots": 1, "masks": True}
    return {**asked, "exact_ratio": {"value": exact}, "miou": None if miou is None else {"value": miou}}


def test_a_cell_shows_sharp_outlines_and_plain_ones_in_parentheses(accuracy: ModuleType) -> None:
    sharp = [result(fold, "sharp", 70 + fold, 50 + fold) for fold in range(4)]
    plain = [result(fold, "plain", 60 + fold, 30 + fold) for fold in range(4)]
    told_nothing = [result(fold, "plain", 60, 20, "training-free") for fold in range(3)]
    lines = accuracy.table([*sharp, *plain, *told_nothing][::-1]).splitlines()
    assert lines[2] == "| trained | with masks | 71.5 / 51.5 (31.5) | - (0 folds) | - (0 folds) |"
    assert lines[4] == "| training-free | with masks | 60.0 / 20.0, 3 folds | - (0 folds) | - (0 folds) |"
    assert accuracy.table([*sharp, *plain[:2]]).splitlines()[2].split(" | ")[2] == "70.5 / 50.5 (30.5), 2 folds"
    assert accuracy.table([result(0, "plain", 60, None)]).splitlines()[2].split(" | ")[2] == "60.0 / -, 1 folds"


@pytest.fixture
def evaluate_fold(
    accuracy: ModuleType, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer_with: Any
) -> SimpleNamespace:
    """Evaluates a model on a fold; `asked` are the splits that it opened, `said` what it printed."""
    options = Namespace(data=make_folder(), work=tmp_path / "work", threads=1)
    asked: list[str] = []
    said: list[str] = []

    def open_split(_kind: str, root: Path, _splits: None, _fold: int, split: str) -> FolderFewShot:
        asked.append(split)
        return FolderFewShot(root)

    monkeypatch.setattr(accuracy, "open_data", open_split)
    monkeypatch.setattr(accuracy, "LEVEL_EPISODES", 20)

    def evaluate(model: FewShotModel, head: str) -> None:
        answer_with(model)
        accuracy.evaluate_fold(0, head, Path("bundle"), EvaluationOptions(1, 1, 12), options, said.append)

    def made(head: str, outlines: str) -> Any:
        return json.loads((options.work / f"fold0.{head}.1w1s.masks.{outlines}.json").read_text())

    return SimpleNamespace(run=evaluate, made=made, folder=options.work, asked=asked, said=said)


def test_each_kind_of_outlines_has_its_own_file(evaluate_fold: SimpleNamespace, color_model: ColorModel) -> None:
    for head, model in (("trained", telling(color_model, left=8.0)), ("training-free", color_model.model)):
        for _ in range(2):
            evaluate_fold.run(model, head)
    assert len(list(evaluate_fold.folder.iterdir())) == len(evaluate_fold.said) == 3
    sharp, plain = (evaluate_fold.made("trained", kind) for kind in ("sharp", "plain"))
    assert (sharp["outlines"], plain["outlines"]) == ("sharp", "plain")
    assert plain["miou"] == evaluate_fold.made("training-free", "plain")["miou"]
    assert sharp["miou"]["value"] < plain["miou"]["value"] - 5
    assert sharp["exact_ratio"] == plain["exact_ratio"]


def test_the_training_free_head_uses_the_best_level_of_the_training_classes(
    evaluate_fold: SimpleNamespace, color_model: ColorModel
) -> None:
    bank = color_model.model.bank
    for head in ("trained", "training-free"):
        bank.head = replace(bank.head, presence_level=1 - 1e-6)
        evaluate_fold.run(color_model.model, head)
    trained, free = (evaluate_fold.made(head, "plain") for head in ("trained", "training-free"))
    assert evaluate_fold.asked == ["test", "train", "test"]
    assert trained["exact_ratio"]["value"] < free["exact_ratio"]["value"] == 100
    assert 0 < free["level"] < trained["level"]


def test_each_data_set_is_a_row_with_both_kinds_of_outlines(
    accuracy: ModuleType, color_model: ColorModel, make_folder: MakeFolder, run: Run
) -> None:
    sets, threads = (make_folder(), make_folder("davis")), torch.get_num_threads()
    lines, _ = run(accuracy, telling(color_model), "--sets", *sets, "--episodes", 8, "--threads", threads)
    header, _, whole, first = lines
    assert header == "| data | 1 shot, masks | 1 shot, names | 5 shots, masks | 5 shots, names |"
    name, *cells = whole.strip("| ").split(" | ")
    assert name == "data, 32 pictures"
    for cell in cells:
        exact, sharp, plain = (float(part) for part in cell.replace("(", "/ ").replace(")", "").split(" / "))
        assert exact > 50
        assert min(sharp, plain) > 50
    assert first.endswith(" | - | - |")


def test_the_training_free_head_has_the_checkpoints_objectness(accuracy: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FewShotNetwork(ModelConfig("hybrid", HYBRID_BACKBONE, 64, objectness=True)).eval()
    assert network.objectness is not None
    for kept in (True, False):
        path = tmp_path / f"{kept}.safetensors"
        if not kept:
            network.config, network.objectness = replace(network.config, objectness=False), None
        wanted = {} if network.objectness is None else network.objectness.state_dict()
        save_network(network, path)
        free = accuracy.training_free_network(path)
        assert free.config.head == "prototype"
        assert free.config.objectness is kept
        assert (free.objectness is not None) is kept
        for name, tensor in wanted.items():
            assert torch.equal(free.objectness.state_dict()[name], tensor)
        assert torch.equal(free.encoder.vit.norm.norm.weight, network.encoder.vit.norm.norm.weight)
