"""Kills while a bank is saved: the old one or the new one, never a mixture, and what was acknowledged is there.

That goes for verdicts too.
"""

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from breakage import leftovers
from killed import Killed

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.identity import EncoderIdentity
from fsvit_edge.fewshot.review_items import MAX_ITEMS, ReviewItem, with_item
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.storage import remove_leftovers

pytestmark = pytest.mark.slow(reason="kills hundreds of processes")

ROUNDS = 200

# Saves a bank of n classes for n = 1, 2, ... without end, and says n when the save is done.
SAVER = """
import numpy as np
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.identity import EncoderIdentity
rng = np.random.default_rng(0)
support = CachedSupport(
    rng.uniform(-1, 1, (4, 200, 64)).astype(np.float16), rng.uniform(-1, 1, (4, 9, 64)).astype(np.float16),
    np.ones(9, np.bool_), np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.bool_), True,
)
def work():
    bank = SupportBank(EncoderIdentity("x", "0" * 64, 32, 4, 64, "fp32"))
    bank.add("class 0", [support])
    number = 1
    while True:
        bank.add(f"class {number}", [support])
        number += 1
        if number % 40 == 0:
            for name in bank.classes[1:]:
                bank.remove(name)
            bank.rename(bank.classes[0], f"only {number}")
        bank.save(path)
        say(bank.classes[-1])
"""
NAIVE = """
import fsvit_edge.fewshot.bank_file as module
module.atomic_write = lambda path, data: path.write_bytes(data)
"""


# Sets the verdict of item 0, 1, ... without end, and says the number when the verdict is in the file.
JUDGE = """
from fsvit_edge.fewshot.review import update_review
from fsvit_edge.fewshot.review_items import with_verdict
def work():
    number = 0
    while True:
        update_review(path, lambda bank: with_verdict(bank.review, number % 50, ("yes", "no")[number // 50 % 2]))
        say(number)
        number += 1
"""


@pytest.fixture
def bank_path(tmp_path: Path) -> Iterator[Path]:
    """A bank to be, in memory where there is such a folder.

    A kill loses nothing that the system has, so there is no need for a disk, which can take seconds for each flush.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder) / "bank.safetensors"


def kill_while_judging(path: Path, rounds: int, naive: str = "") -> tuple[int, int, int]:
    """Kill a judge again and again until a bank is torn; give torn banks, banks that lack verdicts, all verdicts."""
    rng = random.Random(0)
    bank = SupportBank(EncoderIdentity("x", "0" * 64, 32, 1, 2, "fp32"))
    half = np.zeros((1, 9, 2), np.float16)
    picture = np.zeros((2, 2, 3), np.uint8)
    bank.add("cat", [CachedSupport(half, half, np.ones(9, np.bool_), picture, picture[..., 0] > 0, True)])
    for _ in range(MAX_ITEMS):
        bank.review = with_item(bank.review, ReviewItem(0, "cat", 0.5, 0.5, 0.0, b"x" * 20_000))
    torn = lost = given = 0
    with Killed(path, naive + JUDGE) as judges:
        for _ in range(rounds):
            bank.save(path)
            count = len(judges.lines(rng.randint(1, 4), rng.uniform(0.0, 0.03)))
            given += count
            remove_leftovers(path.parent)
            try:
                verdicts = [one.verdict for one in SupportBank.load(path).review]
            except ArtifactError:
                torn += 1
                break
            # The next one may be in the file although the kill came before it could be said.
            wanted = [[verdict_after(done, number) for number in range(MAX_ITEMS)] for done in (count, count + 1)]
            lost += verdicts not in wanted
    return torn, lost, given


def verdict_after(done: int, number: int) -> str | None:
    """The verdict of an item after so many verdicts of `JUDGE`."""
    times = (done - number + MAX_ITEMS - 1) // MAX_ITEMS
    return None if times <= 0 else ("yes", "no")[(times - 1) % 2]


def test_no_acknowledged_verdict_is_lost(bank_path: Path) -> None:
    torn, lost, given = kill_while_judging(bank_path, 25)
    print(f"25 kills in {given} verdicts: {torn} torn, {lost} lost")
    assert (torn, lost) == (0, 0)
    assert given >= 25


def test_verdicts_written_plainly_or_too_late_are_lost(bank_path: Path) -> None:
    """The controls: a torn bank, and an acknowledged verdict that is not in it."""
    torn, _, _ = kill_while_judging(bank_path, 60, NAIVE)
    late = "import fsvit_edge.fewshot.bank_file as module\nmodule.atomic_write = lambda path, data: None"
    _, lost, given = kill_while_judging(bank_path, 2, late)
    assert torn > 0
    assert lost == 2
    assert given > 0


def kill_while_saving(path: Path, rounds: int, naive: str = "") -> tuple[int, int, int]:
    """Kill a saver again and again; give the torn banks, the acknowledged saves lost, and the kills that left files."""
    rng = random.Random(0)
    torn = lost = littered = 0
    with Killed(path, naive + SAVER) as savers:
        for _ in range(rounds):
            acknowledged = savers.lines(0, rng.uniform(0.0, 0.06))
            littered += bool(leftovers(path.parent))
            remove_leftovers(path.parent)
            assert leftovers(path.parent) == []
            if not path.exists():
                assert not acknowledged
                continue
            try:
                bank = SupportBank.load(path)
            except ArtifactError:
                torn += 1
                path.unlink()
                continue
            if acknowledged and acknowledged[-1] not in bank.classes and not bank.classes[0].startswith("only"):
                lost += 1
    return torn, lost, littered


def test_two_hundred_kills_damage_nothing_and_lose_nothing(bank_path: Path) -> None:
    torn, lost, littered = kill_while_saving(bank_path, ROUNDS)
    print(f"{ROUNDS} kills: {torn} torn, {lost} lost, {littered} left temporary files, all of which were removed")
    assert (torn, lost) == (0, 0)
    assert littered > 0  # the kills do hit the saves


def test_a_plain_write_leaves_damaged_banks(bank_path: Path) -> None:
    """The control."""
    torn, _, _ = kill_while_saving(bank_path, 40, NAIVE)
    assert torn > 0
