"""Kills while a bank is saved: the old one or the new one, never a mixture, and what was acknowledged is there."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from breakage import leftovers

from fsvit_edge.runtime.bank import SupportBank
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.storage import remove_leftovers

pytestmark = pytest.mark.slow(reason="starts hundreds of processes")

ROUNDS = 200

# Saves a bank of n classes for n = 1, 2, ... without end, and says n when the save is done.
SAVER = """
import sys
from pathlib import Path
import numpy as np
from fsvit_edge.runtime.bank import SupportBank
from fsvit_edge.runtime.identity import EncoderIdentity
from fsvit_edge.runtime.cached_support import CachedSupport
{naive}
path = Path(sys.argv[1])
rng = np.random.default_rng(0)
support = CachedSupport(
    rng.standard_normal((4, 200, 64)).astype(np.float16), rng.standard_normal((4, 9, 64)).astype(np.float16),
    np.ones(9, np.bool_), np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.bool_), True,
)
number = int(sys.argv[2])
bank = SupportBank(EncoderIdentity("x", "0" * 64, 32, 4, 64, "fp32"))
for known in range(number):
    bank.add(f"class {{known}}", [support])
print("ready", flush=True)
while True:
    bank.add(f"class {{number}}", [support])
    number += 1
    if number % 40 == 0:
        for name in bank.classes[1:]:
            bank.remove(name)
        bank.rename(bank.classes[0], f"only {{number}}")
    bank.save(path)
    print(bank.classes[-1], flush=True)
"""
NAIVE = """
import fsvit_edge.runtime.bank as module
module.atomic_write = lambda path, data: path.write_bytes(data)
"""


def kill_while_saving(path: Path, rounds: int, naive: str = "", seed: int = 0) -> tuple[int, int, int]:
    """Kill a saver again and again; give the torn banks, the acknowledged saves lost, and the kills that left files."""
    rng = random.Random(seed)
    torn = lost = littered = 0
    for _ in range(rounds):
        with subprocess.Popen(
            [sys.executable, "-c", SAVER.format(naive=naive), str(path), "1"], stdout=subprocess.PIPE, text=True
        ) as saver:
            assert saver.stdout is not None
            assert saver.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.06))
            saver.kill()
            acknowledged = saver.stdout.read().splitlines()
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
