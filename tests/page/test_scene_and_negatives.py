"""The page's API against false alarms: the empty scene and "this is not it"."""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import skimage.data
from served_page import Served, enroll, filming, freeze, png, show

from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.scene import SceneReport, false_alarm_bound
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page import false_alarms, frame_hub
from fsvit_edge.page.false_alarms import SceneAnswer
from fsvit_edge.page.frame_hub import FrameHub
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.presence_level import score_text

Update = Callable[[Callable[[FewShotModel], SceneAnswer]], SceneAnswer]
CAT = skimage.data.chelsea()
CAT_LIKE = np.repeat(CAT.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)  # gray: another cat
NOTHING = skimage.data.coffee()[: CAT.shape[0], : CAT.shape[1]]
WIDTH = CAT.shape[1]
LEFT_HALF = np.zeros(CAT.shape[:2], np.uint8)
LEFT_HALF[:, : WIDTH // 2] = 255


def state(served: Served) -> dict[str, Any]:
    answer: dict[str, Any] = served.client.get("/api/state").json()
    return answer


def state_of(served: Served, name: str = "cat") -> dict[str, Any]:
    """A class in the state of the page."""
    return next(one for one in state(served)["classes"] if one["name"] == name)


def is_present(served: Served, image: np.ndarray, name: str = "cat") -> bool:
    show(served, image)
    return bool(state_of(served, name)["present"])


def enroll_cat(served: Served, name: str = "cat") -> None:
    show(served, CAT)
    assert enroll(served, name).status_code == 201


def reject(served: Served, name: str = "cat", **how: Any) -> httpx.Response:
    return served.client.post("/api/negatives", json={"name": name, "frame_id": freeze(served), **how})


def error_of(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"])


def learn_scene(served: Served, image: np.ndarray) -> dict[str, Any]:
    with filming(served, image):
        answer = served.client.post("/api/scene")
    assert answer.status_code == 201, answer.text
    report: dict[str, Any] = answer.json()
    return report


# ----------------------------------------------------------------------------------------------------- the empty scene


@pytest.mark.usefixtures("briefly")
def test_a_scene_that_is_taken_for_a_class_raises_its_level_and_is_reported(served: Served) -> None:
    enroll_cat(served)
    assert is_present(served, CAT_LIKE)
    before = state(served)
    assert (before["scene_frames"], before["false_alarm_bound"]) == (0, 1.0)
    assert before["classes"][0]["level_source"] == "default"

    report = learn_scene(served, CAT_LIKE)

    assert (report["frames"], report["answering"]) == (4, ["cat"])
    assert report["false_alarm_bound"] == pytest.approx(false_alarm_bound(4), abs=1e-4)
    assert report["highest"]["cat"] > 0.95
    assert report["warnings"] == [
        f"cat: the empty scene scores {score_text(report['highest']['cat'])}, so it may be missed; press Not it "
        "where it lights up, or remove from view what it mistakes for it."
    ]
    assert not is_present(served, CAT_LIKE)
    after = state(served)
    assert (after["scene_frames"], after["false_alarm_bound"]) == (4, report["false_alarm_bound"])
    assert after["classes"][0]["level_source"] == "empty scene"
    assert not after["bank"]["is_saved"]

    assert served.client.delete("/api/scene").status_code == 204
    assert state(served)["scene_frames"] == 0
    assert is_present(served, CAT_LIKE)


@pytest.mark.usefixtures("briefly")
def test_a_scene_without_the_class_raises_no_level(served: Served) -> None:
    enroll_cat(served)
    report = learn_scene(served, NOTHING)
    assert (report["answering"], report["warnings"]) == ([], [])
    assert report["highest"]["cat"] < 0.5
    assert is_present(served, CAT_LIKE)
    assert state_of(served)["level_source"] == "default"


@pytest.mark.usefixtures("briefly")
def test_a_level_set_by_hand_stays_and_the_report_says_so(served: Served) -> None:
    enroll_cat(served)
    served.model.update(lambda model: model.set_level("cat", 0.4))
    (warning,) = learn_scene(served, CAT_LIKE)["warnings"]
    assert "its level was set by hand, so it will be found there; press Not it" in warning
    assert is_present(served, CAT_LIKE)
    assert (state_of(served)["level_source"], state_of(served)["level"]) == ("by hand", 0.4)


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("score", [1.0, 0.9999999])
def test_a_scene_that_scores_as_high_as_a_score_can_is_reported_honestly(
    served: Served, monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    enroll_cat(served)
    monkeypatch.setattr(
        "fsvit_edge.fewshot.enrollment.subtract_negatives",
        lambda _, foreground, levels, *__: (np.full(len(levels), score, np.float32), foreground),
    )
    (warning,) = learn_scene(served, NOTHING)["warnings"]
    assert ("as high as a score can be, so no level helps and it will be found there; press" in warning) == (score == 1)
    assert ("so it may be missed; press" in warning) == (score < 1)


def by_turns(loaded: FewShotModel, change: Callable[[Update], SceneAnswer]) -> tuple[str, SceneAnswer]:
    """Let a run show frames while another thread changes the model: what the encoder did in turn, and the answer.

    In the first, "f" is a frame of the run and "s" one of the scene.
    """
    model, turns, shown = LiveModel(loaded), [], []
    run = loaded.network.encoder.run

    def noting(feed: Any) -> Any:
        turns.append("f" if shown else "s")
        return run(feed)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as threads:
        patch.setattr(loaded.network.encoder, "run", noting)
        answer = threads.submit(change, model.update)
        while not answer.done():
            model.run_requests()
            shown.append(True)
            model.predict(CAT)
            shown.clear()
    return "".join(turns), answer.result()


SCENE = [np.roll(NOTHING, 90 * step, axis=1) for step in range(3)]


def test_the_run_shows_frames_between_those_of_the_scene_and_none_is_encoded_twice(
    served: Served, loaded: FewShotModel
) -> None:
    enroll_cat(served)
    before = loaded.bank
    turns, answer = by_turns(loaded, lambda update: false_alarms.learn_scene(update, SCENE))
    assert re.fullmatch("f*sf+sf+sf+", turns), turns
    assert answer.frames == 3

    loaded.bank = before.copy()
    loaded.forget_scene()
    turns, reference = by_turns(loaded, lambda update: update(lambda model: all_at_once(model, SCENE)))
    assert re.fullmatch("f*sssf*", turns), turns  # all in one request: the run waits
    assert reference == answer


def all_at_once(model: FewShotModel, images: list[np.ndarray]) -> SceneAnswer:
    report = model.learn_scene(images)
    highest = {name: round(score, 4) for name, score in report.highest.items()}
    bound = round(false_alarm_bound(report.frames), 4)
    return SceneAnswer(report.frames, highest, report.answering, report.still_found, bound, ())


@pytest.mark.usefixtures("briefly")
def test_what_was_learned_before_a_failure_stays_and_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    enroll_cat(served)
    learned = iter([None, None, FsvitEdgeError("The GPU is gone."), None])
    learn = FewShotModel.learn_scene

    def failing(model: FewShotModel, images: list[np.ndarray]) -> SceneReport:
        if error := next(learned):
            raise error
        return learn(model, images)

    monkeypatch.setattr(FewShotModel, "learn_scene", failing)
    with filming(served, CAT_LIKE):
        answer = served.client.post("/api/scene")
    told = "Only 2 of 4 pictures of the empty scene were learned: the GPU is gone."
    assert error_of(answer, 503) == told
    assert state(served)["scene_frames"] == 2
    assert state_of(served)["level_source"] == "empty scene"


def test_sixteen_frames_are_taken_over_four_seconds_while_the_model_answers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_hub, "_SAMPLE_WITHIN_S", 60.0)  # on a busy machine, frames are slow
    with filming(served, NOTHING), ThreadPoolExecutor(1) as browser:
        started_s = time.monotonic()
        learning = browser.submit(served.client.post, "/api/scene")
        answers = 0
        while time.monotonic() - started_s < 0.5 * false_alarms.SCENE_S:
            served.model.read(lambda model: model.classes)
            answers += 1
            assert not learning.done()
            time.sleep(0.01)
        again = served.client.post("/api/scene")
        report = learning.result().json()
    assert time.monotonic() - started_s >= false_alarms.SCENE_S * 15 / 16
    assert answers > 3
    assert error_of(again, 503) == "The empty scene is being learned already; wait until that is done."
    assert report["frames"] == 16
    assert served.client.delete("/api/scene").status_code == 204


ANSWER = Prediction((), np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros((2, 2), np.uint8), None, {})


def frame(shade: int) -> Frame:
    return Frame(np.full((2, 2, 3), shade, np.uint8), shade, "cam", 0.0, 0.0, 1.0)


def while_it_waits(monkeypatch: pytest.MonkeyPatch, *happens: Callable[[], None]) -> None:
    """Let the hub wait on a clock of its own, and these happen one after the other, 0.1 s apart."""
    now_s, coming = 0.0, iter(happens)

    def sleep(_: float) -> None:
        nonlocal now_s
        now_s += 0.1
        next(coming, lambda: None)()

    monkeypatch.setattr(frame_hub, "time", SimpleNamespace(monotonic=lambda: now_s, sleep=sleep))


def test_only_frames_from_after_the_press_are_taken_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FrameHub()
    hub.put(frame(0), ANSWER)
    while_it_waits(monkeypatch, *(partial(hub.put, frame(shade), ANSWER) for shade in (1, 2, 3)))
    assert [int(image[0, 0, 0]) for image in hub.sample(16, 0.0)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ("nothing", r"No frame came for 10 s; try again when the camera is live\."),
        ("frozen", r"The camera repeats the same picture; restart it, then try again\."),
        ("end", r"The run has ended; start it again\."),
    ],
)
def test_a_scene_without_frames_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, event: str, reason: str
) -> None:
    hub = FrameHub()
    hub.put(frame(0), ANSWER)
    happens: dict[str, Callable[[], None]] = {
        "nothing": lambda: None,
        "frozen": lambda: hub.put(replace(frame(1), is_frozen=True), ANSWER),
        "end": hub.close,
    }
    while_it_waits(monkeypatch, happens[event])
    with pytest.raises(FsvitEdgeError, match=reason):
        hub.sample(16, 4.0)


# ------------------------------------------------------------------------------------------------------ this is not it


def test_a_rejected_frame_is_no_longer_the_class_and_its_own_picture_still_is(served: Served) -> None:
    enroll_cat(served)
    assert is_present(served, CAT_LIKE)

    answer = reject(served)

    assert answer.status_code == 201
    rejection = answer.json()
    assert (rejection["name"], rejection["negatives"]) == ("cat", 1)
    assert rejection["score_after"] < rejection["level"] < rejection["score_before"]
    assert not is_present(served, CAT_LIKE)
    lowered = state_of(served)
    assert [one["has_mask"] for one in lowered["negatives"]] == [True]
    assert lowered["score"] < lowered["level"] < lowered["raw_score"]
    assert is_present(served, CAT)

    removed = served.client.delete("/api/negatives", params={"name": "cat", "index": 0})
    assert removed.status_code == 204
    assert state_of(served)["negatives"] == []
    assert is_present(served, CAT_LIKE)


def test_only_where_the_class_was_found_or_what_is_marked_becomes_the_negative(served: Served) -> None:
    enroll_cat(served)
    show(served, CAT_LIKE)
    found = served.model.read(lambda model: model.predict(CAT_LIKE)).pixels("cat")
    assert reject(served).status_code == 201
    assert reject(served, mask_png=png(LEFT_HALF)).status_code == 201
    assert reject(served, box_xyxy=[WIDTH // 2, 10, WIDTH - 10, 250]).status_code == 201
    where, left, box = (one.thumbnail_mask for one in (served.model.enrolled.negatives["cat"]))
    assert where.mean() == pytest.approx(found.mean(), abs=0.03)
    assert left.mean() == pytest.approx(0.5, abs=0.02)
    assert not box[:, : box.shape[1] // 2 - 1].any()
    assert box.any()


def test_the_pictures_of_negatives_are_served(served: Served) -> None:
    enroll_cat(served)
    show(served, CAT_LIKE)
    assert reject(served, mask_png=png(LEFT_HALF)).status_code == 201
    bright, dim = (
        cv2.imdecode(np.frombuffer(served.client.get(path).content, np.uint8), cv2.IMREAD_COLOR).astype(int)
        for path in ("/api/negatives.png?name=cat&index=0", "/api/negatives.png?name=cat&index=0&masked=1")
    )
    half = bright.shape[1] // 2
    assert np.array_equal(bright[:, : half - 1], dim[:, : half - 1])
    assert dim[:, half + 1 :].mean() < 0.4 * bright[:, half + 1 :].mean()
    gone = served.client.get("/api/negatives.png", params={"name": "cat", "index": 1})
    assert error_of(gone) == "Class 'cat' has 1 negatives, so there is no negative 1."


def test_a_frame_in_which_the_class_is_not_found_becomes_no_negative_unless_marked(served: Served) -> None:
    enroll_cat(served)
    assert not is_present(served, NOTHING)
    assert error_of(reject(served)) == (
        "'cat' is not found in this frame, its score is not above its level; press Not it when it is, or mark what is "
        "not it."
    )
    assert state_of(served)["negatives"] == []
    assert reject(served, mask_png=png(LEFT_HALF)).status_code == 201


def test_of_two_presses_on_one_frame_the_second_is_refused(served: Served) -> None:
    enroll_cat(served)
    show(served, CAT_LIKE)
    body = {"name": "cat", "frame_id": freeze(served)}
    with ThreadPoolExecutor(2) as browsers:
        answers = list(browsers.map(lambda _: served.client.post("/api/negatives", json=body), range(2)))
    first, second = sorted(answers, key=lambda answer: answer.status_code)
    assert first.status_code == 201
    assert "is not found in this frame" in error_of(second)
    assert len(state_of(served)["negatives"]) == 1


def test_what_changed_since_the_press_is_said_in_one_sentence(served: Served) -> None:
    enroll_cat(served)
    show(served, CAT_LIKE)
    pressed = freeze(served)
    served.client.patch("/api/classes", json={"name": "cat", "new_name": "tom"})
    late = served.client.post("/api/negatives", json={"name": "cat", "frame_id": pressed})
    assert error_of(late) == "Class 'cat' is not enrolled; enrolled: tom."
    for _ in range(4):
        freeze(served)
    gone = served.client.post("/api/negatives", json={"name": "tom", "frame_id": pressed})
    assert error_of(gone) == "This frame is no longer available; freeze another one."
    removed = served.client.delete("/api/negatives", params={"name": "tom", "index": 0})
    assert error_of(removed) == "Class 'tom' has 0 negatives and no negative 0."
    both = reject(served, "tom", box_xyxy=[1, 2, 60, 70], mask_png=png(LEFT_HALF))
    assert error_of(both) == "Give box_xyxy or mask_png, not both."
    assert state_of(served, "tom")["negatives"] == []


def test_negatives_of_a_renamed_class_stay_and_those_of_a_removed_one_go(served: Served) -> None:
    enroll_cat(served)
    show(served, CAT_LIKE)
    assert reject(served).status_code == 201
    served.client.patch("/api/classes", json={"name": "cat", "new_name": "tom"})
    assert not is_present(served, CAT_LIKE, "tom")
    served.client.delete("/api/classes", params={"name": "tom"})
    enroll_cat(served, "tom")
    assert is_present(served, CAT_LIKE, "tom")


@pytest.mark.usefixtures("briefly")
def test_a_saved_bank_has_the_scene_and_the_negatives(served: Served) -> None:
    enroll_cat(served)
    show(served, CAT_LIKE)
    assert reject(served).status_code == 201
    learn_scene(served, NOTHING)
    saved = served.client.get("/api/bank").content
    kept = state(served)["false_alarm_bound"]
    for path in ("/api/classes?name=cat", "/api/scene"):
        assert served.client.delete(path).status_code == 204
    assert (state(served)["classes"], state(served)["scene_frames"]) == ([], 0)

    assert served.client.put("/api/bank", content=saved).json() == {"classes": ["cat"]}

    assert (state(served)["scene_frames"], state(served)["false_alarm_bound"]) == (4, kept)
    assert len(state_of(served)["negatives"]) == 1
    assert not is_present(served, CAT_LIKE)
    assert is_present(served, CAT)
