"""Kills right after a verdict was acknowledged by the page of a real run: the verdict is in the bank's file."""

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from breakage import Run

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.fewshot.review_items import ReviewItem, with_item

pytestmark = pytest.mark.slow(reason="starts a run for each kill")

Start = Callable[..., Run]
ROUNDS = 3
TOO_LATE = """
import fsvit_edge.fewshot.bank_file as module
module.atomic_write = lambda path, data: None
"""


def make_bank(path: Path) -> None:
    """A bank with one class and ten doubtful frames."""
    rng = np.random.default_rng(0)
    with FewShotModel.load(threads=1) as model:
        image = np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
        model.enroll("thing", [image])
        model.learn_scene([image])
        (jpeg,) = model.bank.scene
        model.forget_scene()
        for number in range(10):
            # A JPEG ends at its end marker: what follows only tells the pictures apart.
            item = ReviewItem(0, "thing", 0.5, 0.25, float(number), jpeg + bytes([number]))
            model.bank.review = with_item(model.bank.review, item)
        model.save_bank(path)


def lost_verdicts(folder: Path, start_run: Start, code: str = "") -> tuple[int, int]:
    """Judge by the page and kill the run at once, again and again; give the verdicts lost and all."""
    bank = folder / "bank.safetensors"
    make_bank(bank)
    wanted: dict[int, str | None] = dict.fromkeys(range(10))
    for turn in range(ROUNDS):
        run = start_run(
            *("demo", "--bank", str(bank), "--sink", "http://127.0.0.1:0", "--threads", "1", "--review"), code=code
        )
        with httpx.Client(base_url=run.page(), trust_env=False, timeout=30) as client:
            for number in range(3 * turn, 3 * turn + 3):
                wanted[number] = ("yes", "no")[number % 2]
                answer = client.put(f"/api/review/{number}", json={"verdict": wanted[number]})
                assert answer.json()["is_saved"], answer.text
            run.kill()
    found = {int(one.wall_time_s): one.verdict for one in SupportBank.load(bank).review if one.wall_time_s < 10}
    given = [number for number, verdict in wanted.items() if verdict]
    return sum(found[number] != wanted[number] for number in given), len(given)


def test_no_verdict_that_the_page_acknowledged_is_lost(tmp_path: Path, start_run: Start) -> None:
    lost, given = lost_verdicts(tmp_path, start_run)
    print(f"{ROUNDS} kills in {given} verdicts: {lost} lost")
    assert (lost, given) == (0, 3 * ROUNDS)


def test_verdicts_that_are_not_written_are_lost(tmp_path: Path, start_run: Start) -> None:
    """The control."""
    lost, given = lost_verdicts(tmp_path, start_run, TOO_LATE)
    assert lost == given
