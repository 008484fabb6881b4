"""The benchmark of a frame's time answers in each way what it says, and prints a table or JSON."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.events import EventDetector


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")  # as Python does for a script there
    module = importlib.import_module("answers")
    one_class = module.demo_supports()[:1]
    monkeypatch.setattr(module, "demo_supports", lambda: one_class)
    monkeypatch.setattr(module, "SCENE_FRAMES", 1)
    return module


def test_each_way_answers_with_what_it_says(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[bool, bool, int, bool]] = []
    told: list[tuple[bool, int]] = []
    predict, update = FewShotModel.predict, EventDetector.update

    def watched(model: FewShotModel, rgb: np.ndarray, over_time: Any = None) -> Prediction:
        negatives = len(model.bank.negatives(model.classes[0])) if model.classes else 0
        asked.append((model.exclusive, bool(model.bank.scene), negatives, over_time is not None))
        return predict(model, rgb, over_time=over_time)

    def heard(detector: EventDetector, frame: Any, prediction: Prediction, now_s: float) -> Any:
        told.append((prediction.steady_present is not None, len(prediction.zones)))
        return update(detector, frame, prediction, now_s)

    monkeypatch.setattr(FewShotModel, "predict", watched)
    monkeypatch.setattr(EventDetector, "update", heard)
    monkeypatch.setattr(sys, "argv", ["answers.py", "--turns", "1", "--frames", "1", "--threads", "1"])
    benchmark.main()

    plain, everything, negative = (False, False, 0, False), (True, True, 0, True), (False, False, 1, False)
    assert asked[-6:] == [plain, everything, negative] * 2  # the first turn does not count
    assert told == [(True, 2)] * 2
    machine, used, header, _, *rows = capsys.readouterr().out.splitlines()
    assert "onnxruntime" in machine
    assert used.endswith("1 turns of 1 frames")
    assert header == "| answers | ms per frame | range | ratio | range |"
    assert [row.split(" | ")[0] for row in rows] == ["| plain", "| all", "| one negative"]
    assert rows[0].endswith("| 1.000 | 1.000 to 1.000 |")


def test_json_has_the_time_of_every_turn(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "ways_to_answer", lambda _model, _frames: {"plain": list, "all": list})
    monkeypatch.setattr(sys, "argv", ["answers.py", "--turns", "3", "--json"])
    benchmark.main()
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["machine", "model", "ms_per_frame", "ratio"]
    assert {name: len(times) for name, times in found["ms_per_frame"].items()} == {"plain": 3, "all": 3}
    assert found["ratio"]["plain"] == [1, 1, 1]
