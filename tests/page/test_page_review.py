"""The page's API for the review: verdicts that last, and changes that are tried before they are kept."""

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from served_page import Served, enroll, show
from test_scene_and_negatives import CAT, CAT_LIKE, NOTHING, error_of, state

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review import CheckedItem, Review, update_review
from fsvit_edge.fewshot.review_items import ReviewItem, with_verdict
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page.state import PageState
from fsvit_edge.page.trials import Trials
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.storage import editing

DOG_LIKE = CAT[:, ::-1].copy()


@pytest.fixture
def reviewed(served: Served) -> Served:
    """A page whose class "cat" is doubtful in three frames: 0 a gray cat, 1 coffee, 2 the cat, mirrored."""
    show_doubtful(served)
    return served


def show_doubtful(served: Served) -> None:
    show(served, CAT)
    served.model.update(lambda model: setattr(model, "bank", doubtful_bank().copy()))


@functools.cache
def doubtful_bank() -> SupportBank:
    with FewShotModel.load(threads=1) as model:
        model.enroll("cat", [CAT])
        keep_doubtful(model, CAT_LIKE, NOTHING, DOG_LIKE)
        return model.bank


def keep_doubtful(model: FewShotModel, *images: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fsvit_edge.fewshot.review._DOUBT_MARGIN", 50.0)  # every score is doubtful
        for image in images:
            assert len(model.review.note(image, model.predict(image))) == 1


def items(served: Served) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = served.client.get("/api/review").json()["items"]
    return listed


def judge(served: Served, number: int, verdict: str | None, **more: Any) -> httpx.Response:
    return served.client.put(f"/api/review/{number}", json={"verdict": verdict, **more})


def start_trial(served: Served, number: int, **more: Any) -> httpx.Response:
    return served.client.post("/api/review-trials", json={"number": number, **more})


def keep_trial(served: Served, trial: dict[str, Any]) -> httpx.Response:
    return served.client.post(f"/api/review-trials/{trial['id']}/keep")


def save(served: Served) -> None:
    assert served.client.post("/api/bank/save").status_code == 200


def refuse(*_: object) -> None:
    raise FsvitEdgeError("the disk is full")


def verdicts(items: tuple[ReviewItem, ...]) -> list[tuple[int, str | None]]:
    return [(one.number, one.verdict) for one in items]


def test_doubtful_frames_are_listed_with_their_pictures_and_the_state_only_counts_them(reviewed: Served) -> None:
    listed = items(reviewed)
    assert [(one["number"], one["name"], one["verdict"]) for one in listed] == [(n, "cat", None) for n in range(3)]
    assert [one["present"] for one in listed] == [True, False, True]
    assert listed[0]["score"] > listed[0]["level"] > listed[1]["score"]
    picture = reviewed.client.get("/api/review/0.jpg")
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content == reviewed.model.review[0].jpeg
    assert state(reviewed)["review"] == {"doubtful": 3, "judged": 0}
    judge(reviewed, 0, "no")
    assert state(reviewed)["review"] == {"doubtful": 2, "judged": 1}


def test_a_verdict_says_what_the_model_answers_now_and_can_be_taken_back(reviewed: Served) -> None:
    wrong = judge(reviewed, 0, "no").json()
    assert (wrong["present"], wrong["contradicts"]) == (True, True)
    right = judge(reviewed, 0, "yes").json()
    assert (right["present"], right["contradicts"]) == (True, False)
    assert right["score"] == pytest.approx(items(reviewed)[0]["score"], abs=1e-3)
    assert judge(reviewed, 1, "no").json()["contradicts"] is False
    assert judge(reviewed, 1, "yes").json()["contradicts"] is True
    taken_back = judge(reviewed, 1, None).json()
    assert (taken_back["verdict"], taken_back["score"], taken_back["contradicts"]) == (None, None, False)
    assert [one["verdict"] for one in items(reviewed)] == ["yes", None, None]


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("PUT", "/api/review/9", {"verdict": "yes"}, "There is no doubtful frame 9"),
        ("PUT", "/api/review/0", {"verdict": "maybe"}, "Field verdict must be 'yes' or 'no'."),
        ("PUT", "/api/review/0", {}, "Field verdict is required."),
        ("PUT", "/api/review/0", {"verdict": "yes", "wall_time_s": 1.0}, "Frame 0 is another one now"),
        ("PUT", "/api/review/x", {"verdict": "yes"}, "Parameter number must be a valid integer"),
        ("GET", "/api/review/9.jpg", None, "There is no doubtful frame 9"),
        ("POST", "/api/review-trials", {"number": 0}, "There is no frame 0 with a verdict; judge it first."),
        ("POST", "/api/review-trials", {"number": 9}, "There is no doubtful frame 9"),
        ("POST", "/api/review-trials", {"number": 0, "wall_time_s": 1.0}, "Frame 0 is another one now"),
        ("POST", "/api/review-trials/gone/keep", None, "This change is no longer available; try it again."),
    ],
)
def test_what_makes_no_sense_is_refused(reviewed: Served, method: str, path: str, body: object, error: str) -> None:
    assert error in error_of(reviewed.client.request(method, path, json=body))
    assert [one["verdict"] for one in items(reviewed)] == [None] * 3
    known = items(reviewed)[0]["wall_time_s"]
    assert judge(reviewed, 0, "yes", wall_time_s=known).status_code == 200  # the control


# ------------------------------------------------------------------------------------------------------ the bank's file


def test_a_verdict_is_in_the_file_before_the_answer_whatever_its_number_there(reviewed: Served) -> None:
    save(reviewed)
    # As another process would: frames of another class come first, so the numbers differ.
    with_others = SupportBank.load(reviewed.bank)
    with_others.review = tuple(
        ReviewItem(one.number + 7, one.name, one.score, one.level, one.wall_time_s, one.jpeg)
        for one in with_others.review[1:]
    )
    with_others.save(reviewed.bank)
    assert judge(reviewed, 1, "no").json()["is_saved"] is True
    assert verdicts(SupportBank.load(reviewed.bank).review) == [(8, "no"), (9, None)]
    assert judge(reviewed, 0, "yes").json()["is_saved"] is True  # one that the file does not have
    assert verdicts(SupportBank.load(reviewed.bank).review) == [(8, "no"), (9, None), (10, "yes")]
    assert SupportBank.load(reviewed.bank).review[2].jpeg == reviewed.model.review[0].jpeg
    assert judge(reviewed, 0, None).json()["is_saved"] is True
    assert verdicts(SupportBank.load(reviewed.bank).review) == [(8, "no"), (9, None), (10, None)]
    assert state(reviewed)["bank"]["is_saved"] is True


def test_a_verdict_that_the_file_cannot_take_yet_is_an_unsaved_change(reviewed: Served) -> None:
    assert judge(reviewed, 0, "no").json()["is_saved"] is False  # there is no file
    assert not reviewed.bank.exists()
    save(reviewed)
    assert verdicts(SupportBank.load(reviewed.bank).review)[0] == (0, "no")
    assert state(reviewed)["bank"]["is_saved"] is True
    assert judge(reviewed, 1, "no").json()["is_saved"] is True  # the control
    assert state(reviewed)["bank"]["is_saved"] is True

    reviewed.client.patch("/api/classes", json={"name": "cat", "new_name": "tom"})
    save(reviewed)
    older = SupportBank.load(reviewed.bank)
    older.rename("tom", "cat")  # the file does not have "tom"
    older.save(reviewed.bank)
    assert judge(reviewed, 2, "yes").json()["is_saved"] is False
    assert state(reviewed)["bank"]["is_saved"] is False


def test_verdicts_stay_in_their_own_class_if_the_file_has_another_of_its_name(reviewed: Served) -> None:
    """As with the demo, which loads no bank, beside a person's own one."""
    save(reviewed)
    mine = reviewed.bank.read_bytes()
    other = SupportBank.load(reviewed.bank)
    supports = other.supports("cat")
    other.remove("cat")
    other.add("cat", [replace(supports[0], kept=supports[0].kept[:, ::-1], thumbnail=supports[0].thumbnail[::-1])])
    other.review = (ReviewItem(0, "cat", 0.5, 0.5, 0.0, reviewed.model.review[1].jpeg, "yes"),)
    other.save(reviewed.bank)
    theirs = reviewed.bank.read_bytes()
    assert judge(reviewed, 0, "no").json()["is_saved"] is False
    assert reviewed.bank.read_bytes() == theirs
    assert state(reviewed)["bank"]["is_saved"] is False
    reviewed.client.post("/api/bank/save", params={"overwrite": "true"})
    assert verdicts(SupportBank.load(reviewed.bank).review) == [(0, "no"), (1, None), (2, None)]

    reviewed.bank.write_bytes(mine)  # the control
    assert judge(reviewed, 0, "no").json()["is_saved"] is True
    update_review(reviewed.bank, lambda bank: with_verdict(bank.review, 1, "yes"))
    save(reviewed)
    assert verdicts(SupportBank.load(reviewed.bank).review) == [(0, "no"), (1, "yes"), (2, None)]


def test_a_verdict_that_cannot_be_written_is_an_error_and_an_unsaved_change(
    reviewed: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(reviewed)
    monkeypatch.setattr("fsvit_edge.fewshot.bank_file.atomic_write", refuse)
    assert error_of(judge(reviewed, 0, "no"), 503) == "the disk is full"
    assert state(reviewed)["bank"]["is_saved"] is False
    monkeypatch.undo()
    save(reviewed)
    assert verdicts(SupportBank.load(reviewed.bank).review)[0] == (0, "no")


def test_a_verdict_taken_back_while_the_file_cannot_be_written_does_not_come_back(
    reviewed: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_back() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("fsvit_edge.page.state.store_verdict", refuse)
            assert error_of(judge(reviewed, 0, None), 503) == "the disk is full"

    save(reviewed)
    for number in (0, 1):
        judge(reviewed, number, "no")
    take_back()
    save(reviewed)
    assert verdicts(SupportBank.load(reviewed.bank).review) == [(0, None), (1, "no"), (2, None)]
    update_review(reviewed.bank, lambda bank: with_verdict(bank.review, 0, "yes"))  # since then, by another process
    save(reviewed)
    assert verdicts(SupportBank.load(reviewed.bank).review)[0] == (0, "yes")

    take_back()
    reviewed.page._state.unstored.clear()
    save(reviewed)
    assert verdicts(SupportBank.load(reviewed.bank).review)[0] == (0, "yes")  # the control: it comes back


def test_a_bank_that_another_program_is_changing_is_told_soon(
    reviewed: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("fsvit_edge.fewshot.review", "fsvit_edge.page.state"):
        monkeypatch.setattr(f"{module}.BUSY_S", 0.2)
    save(reviewed)
    busy = f"Another program is changing files in {reviewed.bank.parent}; try again when it is done."
    with editing(reviewed.bank):
        assert error_of(judge(reviewed, 0, "no"), 503) == busy
        assert error_of(reviewed.client.post("/api/bank/save"), 503) == busy
    with reviewed.page._state.writing:
        assert "is being written; try again" in error_of(judge(reviewed, 0, "no"), 503)
    assert judge(reviewed, 0, "no").json()["is_saved"] is True  # the control


def test_saving_keeps_verdicts_that_another_process_gave_meanwhile(
    reviewed: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge_elsewhere() -> None:
        for number, verdict in ((0, "yes"), (1, "yes")):
            update_review(reviewed.bank, lambda bank, n=number, v=verdict: with_verdict(bank.review, n, v))  # type: ignore[misc]

    save(reviewed)
    assert judge(reviewed, 1, "no").json()["is_saved"]
    judge_elsewhere()
    save(reviewed)
    assert verdicts(SupportBank.load(reviewed.bank).review) == [(0, "yes"), (1, "yes"), (2, None)]
    assert [one["verdict"] for one in items(reviewed)] == ["yes", "yes", None]

    judge(reviewed, 0, None)
    judge_elsewhere()
    monkeypatch.setattr("fsvit_edge.page.state.with_verdicts_of", lambda mine, *_: mine)
    save(reviewed)
    assert verdicts(SupportBank.load(reviewed.bank).review) == [(0, None), (1, "yes"), (2, None)]  # the control: lost


def lost_verdicts(served: Served) -> int:
    """Save without end while another process judges; count the verdicts that are then neither in file nor memory."""
    save(served)
    stop = threading.Event()

    def save_on() -> None:
        while not stop.is_set():
            save(served)

    saving = threading.Thread(target=save_on)
    saving.start()
    lost = 0
    for count in range(12):
        verdict = ("yes", "no")[count % 2]
        update_review(served.bank, lambda bank, v=verdict: with_verdict(bank.review, 2, v))  # type: ignore[misc]
        time.sleep(0.05)
        lost += SupportBank.load(served.bank).review[2].verdict != verdict
        served.client.put("/api/review/2", json={"verdict": None})
    stop.set()
    saving.join()
    return lost


def test_a_verdict_given_while_the_page_saves_is_not_lost(reviewed: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lost_verdicts(reviewed) == 0

    def naive(page: PageState, overwrite: bool) -> None:  # noqa: ARG001 - as the real one
        page.model.read(lambda model: model.save_bank(page.bank_path))

    # The control: no lock, and no look at whether the file was changed.
    monkeypatch.setattr(PageState, "save", naive)
    monkeypatch.setattr("fsvit_edge.runtime.storage.version_of", lambda _: 0)
    assert lost_verdicts(reviewed) > 0


# -------------------------------------------------------------------------------------------------------------- trials


def test_a_false_alarm_is_tried_as_a_negative_and_then_kept(reviewed: Served) -> None:
    save(reviewed)
    judge(reviewed, 0, "no")
    judge(reviewed, 1, "no")
    judge(reviewed, 2, "yes")
    before = state(reviewed)
    trial = start_trial(reviewed, 0).json()
    assert (trial["name"], trial["checked"], trial["frame"]["number"]) == ("cat", 3, 0)
    assert trial["summary"].startswith(f"Answers that change: {trial['changed']} of 3; ")
    assert (trial["frame"]["present_before"], trial["frame"]["present"]) == (True, False)
    assert (trial["frame"]["has_changed"], trial["frame"]["contradicts"]) == (True, False)
    assert trial["frame"] in trial["changes"]
    after = state(reviewed)
    assert (after["revision"], after["bank"], after["classes"]) == (
        before["revision"],
        before["bank"],
        before["classes"],
    )

    judge(reviewed, 1, "yes")  # a verdict since then stays
    assert keep_trial(reviewed, trial).status_code == 204
    assert len(state(reviewed)["classes"][0]["negatives"]) == 1
    assert state(reviewed)["bank"]["is_saved"] is False
    assert [one["verdict"] for one in items(reviewed)] == ["no", "yes", "yes"]
    assert judge(reviewed, 0, "no").json()["contradicts"] is False
    assert "no longer available" in error_of(keep_trial(reviewed, trial))
    save(reviewed)
    assert len(SupportBank.load(reviewed.bank).negatives("cat")) == 1


def test_a_trial_and_bank_check_name_things_alike(reviewed: Served) -> None:
    judge(reviewed, 0, "no")
    trial = start_trial(reviewed, 0).json()
    check = reviewed.model.read(lambda model: model.review.check()).to_dict()
    assert check["items"][0].keys() == trial["frame"].keys()
    assert check.keys() - {"items"} == {"checked", "changed", "contradicting"} <= trial.keys()
    (listed,) = (one for one in items(reviewed) if one["number"] == 0)
    assert check["items"][0].keys() != listed.keys()  # the control


def test_a_missed_class_is_tried_as_a_picture_of_it(reviewed: Served) -> None:
    judge(reviewed, 1, "yes")
    trial = start_trial(reviewed, 1).json()
    assert trial["frame"]["score"] > trial["frame"]["score_before"]
    assert len(state(reviewed)["classes"][0]["supports"]) == 1
    assert keep_trial(reviewed, trial).status_code == 204
    assert len(state(reviewed)["classes"][0]["supports"]) == 2


def test_what_is_discarded_changes_nothing(reviewed: Served) -> None:
    judge(reviewed, 0, "no")
    trial = start_trial(reviewed, 0).json()
    for _ in range(2):
        assert reviewed.client.delete(f"/api/review-trials/{trial['id']}").status_code == 204
    assert "no longer available" in error_of(keep_trial(reviewed, trial))
    assert state(reviewed)["classes"][0]["negatives"] == []


def test_only_the_latest_trial_can_be_kept(reviewed: Served) -> None:
    judge(reviewed, 0, "no")
    judge(reviewed, 1, "yes")
    older, newer = start_trial(reviewed, 0).json(), start_trial(reviewed, 1).json()
    assert "no longer available" in error_of(keep_trial(reviewed, older))
    reviewed.client.delete(f"/api/review-trials/{older['id']}")  # no longer says anything of the newer one
    assert keep_trial(reviewed, newer).status_code == 204


def test_a_trial_from_before_another_change_is_refused(reviewed: Served) -> None:
    judge(reviewed, 0, "no")
    trial = start_trial(reviewed, 0).json()
    show(reviewed, NOTHING)
    assert enroll(reviewed, "coffee").status_code == 201
    assert error_of(keep_trial(reviewed, trial), 503) == "The classes changed; try again."
    assert [one["name"] for one in state(reviewed)["classes"]] == ["cat", "coffee"]
    assert keep_trial(reviewed, start_trial(reviewed, 0).json()).status_code == 204  # the control
    assert [one["name"] for one in state(reviewed)["classes"]] == ["cat", "coffee"]


def test_a_trial_is_not_of_another_frame_that_has_its_number_by_now(reviewed: Served) -> None:
    listed = items(reviewed)[0]["wall_time_s"]
    reviewed.model.read(lambda model: setattr(model.bank, "review", (replace(model.bank.review[0], wall_time_s=5.0),)))
    judge(reviewed, 0, "no")
    assert "Frame 0 is another one now" in error_of(start_trial(reviewed, 0, wall_time_s=listed))
    assert start_trial(reviewed, 0, wall_time_s=5.0).status_code == 201  # the control


@pytest.mark.parametrize("since", [None, "yes"])
def test_a_trial_is_not_kept_if_its_verdict_was_changed_or_taken_back_since(
    reviewed: Served, since: str | None
) -> None:
    judge(reviewed, 0, "no")
    trial = start_trial(reviewed, 0).json()
    judge(reviewed, 0, since)
    assert "has changed; try again" in error_of(keep_trial(reviewed, trial), 503)
    assert state(reviewed)["classes"][0]["negatives"] == []
    judge(reviewed, 0, "no")
    trial = start_trial(reviewed, 0).json()
    judge(reviewed, 1, since)
    assert keep_trial(reviewed, trial).status_code == 204  # the control: that of another frame


def test_a_trial_ends_if_the_classes_change_or_another_starts_while_it_is_checked(
    reviewed: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(reviewed, 0, "no")
    trials, check_item = Trials(reviewed.model), Review.check_item

    def start_with(meanwhile: Callable[[], None]) -> None:
        def check(review: Review, item: ReviewItem, bank: SupportBank | None = None) -> CheckedItem:
            meanwhile()
            return check_item(review, item, bank)

        monkeypatch.setattr(Review, "check_item", check)
        trials.start(0)

    start_with(lambda: None)  # the control
    judge(reviewed, 1, "yes")
    with pytest.raises(FsvitEdgeError, match="The classes changed; try again"):
        start_with(lambda: setattr(reviewed.model, "_revision", reviewed.model.revision + 1))
    with pytest.raises(FsvitEdgeError, match="Another change is being tried now"):
        start_with(lambda: setattr(trials, "_latest_id", "newer"))


def test_a_trial_and_a_saved_bank_are_scored_on_all_of_the_empty_scene(reviewed: Served) -> None:
    reviewed.model.update(lambda model: model.learn_scene([NOTHING, NOTHING[:, ::-1].copy()]))
    judge(reviewed, 0, "no")
    assert start_trial(reviewed, 0).status_code == 201
    trial = reviewed.page._state.trials._trial
    assert trial is not None
    assert (len(trial.bank.scene), trial.bank.unscored_frames) == (2, ())
    picture = reviewed.model.review[0].picture
    left = reviewed.model.read(lambda model: model.bank_after(lambda one: one.reject("cat", picture))).unscored_frames
    assert len(left) == 2  # the control

    reviewed.model.update(lambda model: model.reject("cat", picture))
    save(reviewed)
    reviewed.model.wait_for_scores()
    assert state(reviewed)["bank"]["is_saved"] is True  # new scores are no change of a person
    levels = reviewed.model.read(lambda model: model.bank.levels)
    with FewShotModel.load(threads=1) as other:
        other.load_bank(reviewed.bank)
        np.testing.assert_allclose(other.bank.levels, levels, atol=1e-6)


def test_the_list_does_not_wait_for_the_bank_to_be_written(reviewed: Served) -> None:
    with reviewed.page._state.writing:
        assert [one["verdict"] for one in items(reviewed)] == [None] * 3


def test_a_time_that_is_no_number_is_that_of_no_frame(reviewed: Served) -> None:
    body = '{"verdict": "no", "wall_time_s": %s}'
    headers = {"Content-Type": "application/json"}
    answers = [
        reviewed.client.put("/api/review/0", content=body % time_s, headers=headers).status_code
        for time_s in ("NaN", items(reviewed)[0]["wall_time_s"])
    ]
    assert answers == [400, 200]


def test_frames_go_on_while_verdicts_are_checked(reviewed: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        judge(reviewed, number, "no")
    turns, checked = [0], []
    run_requests, check_item = LiveModel.run_requests, Review.check_item

    def count_turn(model: LiveModel) -> None:
        turns[0] += 1
        run_requests(model)

    def note_turn(review: Review, *given: Any) -> CheckedItem:
        checked.append(turns[0])
        return check_item(review, *given)

    monkeypatch.setattr(LiveModel, "run_requests", count_turn)
    monkeypatch.setattr(Review, "check_item", note_turn)
    assert start_trial(reviewed, 0).status_code == 201
    assert len(set(checked)) == len(checked) == 3  # a frame can come between any two
    checked.clear()
    reviewed.model.read(lambda model: model.review.check())
    assert len(checked) == 3
    assert len(set(checked)) == 1  # the control
