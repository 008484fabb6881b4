"""Saving on the page, beside others who write the same file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import skimage.data
from served_page import Served, serve

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review_items import ReviewItem, with_item, with_verdict
from fsvit_edge.page.state import PageState

CAT, COFFEE = skimage.data.chelsea(), skimage.data.coffee()
OVERWRITE = {"overwrite": "true"}


@pytest.fixture
def served(loaded: FewShotModel, tmp_path: Path) -> Iterator[Served]:
    with serve(loaded, tmp_path / "bank.safetensors") as one:
        one.model.update(lambda model: model.enroll("cat", [CAT]))
        yield one


def enroll_elsewhere(path: Path, name: str = "coffee") -> None:
    with FewShotModel.load(threads=1) as other:
        other.load_bank(path)
        other.enroll(name, [COFFEE])
        other.save_bank(path)


def test_the_page_knows_whether_there_is_a_file(served: Served) -> None:
    served.model.update(lambda model: model.remove("cat"))
    served.page._state.saved_changes = served.model.changes  # as at the start of a run without a bank
    bank = served.client.get("/api/state").json()["bank"]
    assert (bank["is_saved"], bank["is_there"]) == (True, False)
    served.client.post("/api/bank/save")
    bank = served.client.get("/api/state").json()["bank"]
    assert (bank["is_saved"], bank["is_there"]) == (True, True)


def is_saved(served: Served) -> bool:
    saved: bool = served.client.get("/api/state").json()["bank"]["is_saved"]
    return saved


def test_a_class_that_another_program_enrolled_is_not_overwritten_unasked(served: Served) -> None:
    assert served.client.post("/api/bank/save").status_code == 200
    assert served.client.post("/api/bank/save").status_code == 200  # the control: nobody else wrote
    assert is_saved(served)
    enroll_elsewhere(served.bank)
    assert not is_saved(served)
    refused = served.client.post("/api/bank/save")
    assert refused.status_code == 409
    assert "was written by another program and has: cat, coffee. Restart the run" in refused.json()["error"]
    assert SupportBank.load(served.bank).classes == ("cat", "coffee")
    assert served.client.post("/api/bank/save", params=OVERWRITE).status_code == 200
    assert SupportBank.load(served.bank).classes == ("cat",)
    assert is_saved(served)
    assert served.client.post("/api/bank/save").status_code == 200


def test_a_copy_of_what_another_program_wrote_is_loaded_and_then_saved(served: Served) -> None:
    served.client.post("/api/bank/save")
    enroll_elsewhere(served.bank)
    assert served.client.put("/api/bank", content=served.bank.read_bytes()).status_code == 200
    served.model.update(lambda model: model.set_level("cat", 0.5))
    assert served.client.post("/api/bank/save").status_code == 200
    assert SupportBank.load(served.bank).classes == ("cat", "coffee")


def test_verdicts_of_another_program_are_no_reason_to_refuse_and_are_listed(served: Served) -> None:
    doubtful = ReviewItem(0, "cat", 0.5, 0.9, 1.0, b"no picture")

    def keep(model: FewShotModel) -> None:
        model.bank.review = with_item(model.bank.review, doubtful)

    served.model.update(keep)
    served.client.post("/api/bank/save")
    other = SupportBank.load(served.bank)
    other.review = with_verdict(other.review, 0, "no")
    other.save(served.bank)
    assert is_saved(served)
    assert [one["verdict"] for one in served.client.get("/api/review").json()["items"]] == ["no"]
    assert served.client.post("/api/bank/save").status_code == 200


def test_a_file_that_the_run_did_not_load_is_not_called_saved(served: Served, tmp_path: Path) -> None:
    """As in the demo, which has classes of its own, beside a person's bank."""
    missing, same, other = (tmp_path / f"{name}.safetensors" for name in ("missing", "same", "other"))
    served.model.read(lambda model: (model.save_bank(same), model.save_bank(other)))
    enroll_elsewhere(other)
    for path, expected in ((missing, False), (same, True), (other, False)):
        assert PageState(served.page._hub, served.model, path).is_saved == expected


def test_the_end_of_a_run_tells_of_changes_that_are_not_saved(loaded: FewShotModel, tmp_path: Path) -> None:
    told = []
    for saves in (False, True):
        with serve(loaded, tmp_path / f"{saves}.safetensors") as one:
            assert is_saved(one)  # there is nothing to save
            one.model.update(lambda model: model.enroll("cat", [CAT]))
            if saves:
                one.client.post("/api/bank/save")
            assert is_saved(one) == saves
        told.append(one.page.trouble)
    assert told == [f"What changed on the page was not saved to {tmp_path / 'False.safetensors'}, and is lost.", ""]


def test_a_file_that_is_no_bank_is_not_overwritten_unasked(served: Served) -> None:
    served.bank.write_bytes(b"notes of a person")
    refused = served.client.post("/api/bank/save")
    assert refused.status_code == 409
    assert "is no bank that can be read; save again to overwrite it." in refused.json()["error"]
    assert served.bank.read_bytes() == b"notes of a person"
    assert served.client.post("/api/bank/save", params=OVERWRITE).status_code == 200
