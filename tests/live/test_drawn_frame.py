import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fsvit_edge.fewshot.overlay import draw
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.live import drawn_frame
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.sinks.json_lines import frame_record


def answer() -> Prediction:
    labels = np.zeros((90, 160), np.uint8)
    labels[20:60, 40:100] = 1
    return Prediction(("cup",), np.float32([0.9]), np.float32([0.5]), labels, None, {})


def frame() -> Frame:
    return Frame(np.full((90, 160, 3), 90, np.uint8), 0, "cam", 0.0, 0.0, 1.0)


def test_sinks_share_one_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, found, drawn = frame(), answer(), []

    def counted(image: np.ndarray, prediction: Prediction) -> np.ndarray:
        drawn.append(threading.get_ident())
        return draw(image, prediction)

    monkeypatch.setattr(drawn_frame, "draw", counted)
    with ThreadPoolExecutor(4) as sinks:
        pictures = list(sinks.map(lambda _: shown.drawn(found), range(8)))
    assert len(drawn) == 1
    assert all(one is pictures[0] for one in pictures)
    assert np.array_equal(pictures[0], draw(shown.image, found))
    assert (shown.image == 90).all()
    frame().drawn(found)
    replace(shown, age_ms=1.0).drawn(found)
    assert len(drawn) == 3  # the control: another frame is another picture


def test_another_prediction_is_drawn_anew() -> None:
    shown = frame()
    absent = replace(answer(), scores=np.float32([0.1]))
    assert not np.array_equal(shown.drawn(answer()), shown.image)
    assert np.array_equal(shown.drawn(absent), shown.image)


def test_pictures_and_json_share_the_outline_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    found, traced = answer(), []
    trace = cv2.findContours
    monkeypatch.setattr(cv2, "findContours", lambda *given: traced.append(1) or trace(*given))
    frame().drawn(found)
    (part,) = frame_record(frame(), found)["classes"][0]["instances"]
    assert part == {"area_px": 40 * 60, "box_xyxy": [40, 20, 100, 60]}
    assert len(traced) == 1
    frame().drawn(answer())
    assert len(traced) == 2  # the control: another prediction has another outline


def test_no_sink_can_change_what_another_shows() -> None:
    picture = frame().drawn(answer())
    with pytest.raises(ValueError, match="read-only"):
        picture[0, 0] = 0
