"""Kills while a bank is saved: the old one or the new one, never a mixture, and what was acknowledged is there.

That goes for verdicts too.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from breakage import leftovers

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.identity import EncoderIdentity
from fsvit_edge.fewshot.review_items import MAX_ITEMS, ReviewItem, with_item
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.storage import remove_leftovers

pytestmark = pytest.mark.slow(reason="kills hundreds of processes")

ROUNDS = 200

# Forks for each line of its input, and says when that process is killed: a fork is there at once, a start takes 0.3 s.
FORKER = """
import faulthandler
import os
import sys
from pathlib import Path
import numpy as np
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.cached_support import CachedSupport
from fsvit_edge.fewshot.identity import EncoderIdentity
from fsvit_edge.fewshot.review import update_review
from fsvit_edge.fewshot.review_items import with_verdict
{naive}
path = Path(sys.argv[1])
{work}
for _ in sys.stdin:
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(60, exit=True)  # one stood still once, for minutes, and did not say where
        print(os.getpid(), flush=True)
        work()
    os.waitpid(child, 0)
    print("killed", flush=True)
"""
# Saves a bank of n classes for n = 1, 2, ... without end, and says n when the save is done.
SAVER = """
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
        print(bank.classes[-1], flush=True)
"""
NAIVE = """
import fsvit_edge.fewshot.bank_file as module
module.atomic_write = lambda path, data: path.write_bytes(data)
"""


# Sets the verdict of item 0, 1, ... without end, and says the number when the verdict is in the file.
JUDGE = """
def work():
    number = 0
    while True:
        update_review(path, lambda bank: with_verdict(bank.review, number % 50, ("yes", "no")[number // 50 % 2]))
        print(number, flush=True)
        number += 1
"""


class Killed:
    """What a process says until it is killed; each time, a new one begins."""

    def __init__(self, path: Path, work: str, naive: str) -> None:
        command = [sys.executable, "-c", FORKER.format(naive=naive, work=work), str(path)]
        self._forker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def __enter__(self) -> "Killed":
        self._forker.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._forker.kill()
        self._forker.__exit__(None, None, None)

    def lines(self, first: int, then_s: float) -> list[str]:
        """Let a process say some lines, wait, kill it, and return all that it said."""
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        print(file=self._forker.stdin, flush=True)
        process = int(self._forker.stdout.readline())
        said = [self._forker.stdout.readline() for _ in range(first)]
        time.sleep(then_s)
        os.kill(process, signal.SIGKILL)
        said.extend(iter(self._forker.stdout.readline, "killed\n"))
        return [line.removesuffix("\n") for line in said]


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
    with Killed(path, JUDGE, naive) as judges:
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


def test_no_acknowledged_verdict_is_lost(tmp_path: Path) -> None:
    torn, lost, given = kill_while_judging(tmp_path / "bank.safetensors", 25)
    print(f"25 kills in {given} verdicts: {torn} torn, {lost} lost")
    assert (torn, lost) == (0, 0)
    assert given >= 25


def test_verdicts_written_plainly_or_too_late_are_lost(tmp_path: Path) -> None:
    """The controls: a torn bank, and an acknowledged verdict that is not in it."""
    torn, _, _ = kill_while_judging(tmp_path / "torn.safetensors", 60, NAIVE)
    late = "import fsvit_edge.fewshot.bank_file as module\nmodule.atomic_write = lambda path, data: None"
    _, lost, given = kill_while_judging(tmp_path / "late.safetensors", 2, late)
    assert torn > 0
    assert lost == 2
    assert given > 0


def kill_while_saving(path: Path, rounds: int, naive: str = "", seed: int = 0) -> tuple[int, int, int]:
    """Kill a saver again and again; give the torn banks, the acknowledged saves lost, and the kills that left files."""
    rng = random.Random(seed)
    torn = lost = littered = 0
    with Killed(path, SAVER, naive) as savers:
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


def test_two_hundred_kills_damage_nothing_and_lose_nothing(tmp_path: Path) -> None:
    torn, lost, littered = kill_while_saving(tmp_path / "bank.safetensors", ROUNDS)
    print(f"{ROUNDS} kills: {torn} torn, {lost} lost, {littered} left temporary files, all of which were removed")
    assert (torn, lost) == (0, 0)
    assert littered > 0  # the kills do hit the saves


def test_a_plain_write_leaves_damaged_banks(tmp_path: Path) -> None:
    """The control."""
    assert any(kill_while_saving(tmp_path / "bank.safetensors", 1, NAIVE, seed)[0] for seed in range(40))
