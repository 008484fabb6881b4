import json

import numpy as np
import pytest

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.inspect.benchmark import FRAME_SIZE_HW, MASK_COVER, WARM_UP_FRAMES, measure


@pytest.fixture
def model() -> FewShotModel:
    with FewShotModel.load(threads=1) as opened:
        yield opened


def test_the_given_ways_shots_and_frames_are_measured(model: FewShotModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.enroll("somebody's", [np.zeros((8, 8, 3), np.uint8)])
    enrolled, frames = [], []
    enroll, predict = model.enroll, model.predict
    monkeypatch.setattr(model, "enroll", lambda *given: enrolled.append(enroll(*given)))
    monkeypatch.setattr(model, "predict", lambda rgb: frames.append(rgb.shape) or predict(rgb))
    measured = measure(model, ways=2, shots=3, frames=4)
    assert (measured.ways, measured.shots, measured.frames) == (2, 3, 4)
    assert model.classes == ("class 0", "class 1")
    assert [entry.shots for entry in enrolled] == [3, 3]
    for entry in enrolled:
        assert entry.mask_cover == pytest.approx([MASK_COVER] * 3, abs=0.02)
    assert frames == [(*FRAME_SIZE_HW, 3)] * (WARM_UP_FRAMES + 4)


def test_the_figures_are_consistent(model: FewShotModel) -> None:
    measured = measure(model, ways=1, shots=1, frames=5)
    assert list(measured.latency_ms) == ["preprocess", "encoder", "head", "postprocess", "overhead", "total"]
    for median, high in measured.latency_ms.values():
        assert 0 < median <= high
    total = measured.latency_ms["total"][0]
    assert total >= max(median for stage, (median, _) in measured.latency_ms.items() if stage != "total")
    assert measured.fps == pytest.approx(1000 / total)
    assert 20 < measured.peak_rss_mb < 100_000
    named = dict(zip(("p50", "p95"), measured.latency_ms["total"], strict=True))
    assert json.loads(json.dumps(measured.to_dict()))["latency_ms"]["total"] == named


def test_the_warm_up_is_not_counted(model: FewShotModel, monkeypatch: pytest.MonkeyPatch) -> None:
    predict, seen = model.predict, []

    def slow_at_first(rgb: np.ndarray) -> object:
        prediction = predict(rgb)
        seen.append(rgb)
        prediction.latency_ms["encoder"] = 1e6 if len(seen) <= WARM_UP_FRAMES else 2.0
        return prediction

    monkeypatch.setattr(model, "predict", slow_at_first)
    assert measure(model, ways=1, shots=1, frames=3).latency_ms["encoder"] == (2.0, 2.0)
