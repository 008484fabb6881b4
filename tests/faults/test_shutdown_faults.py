"""A clean stop from any state within 2 s; a full disk ends only one sink."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from breakage import FakeCamera, Run, leftovers

pytestmark = pytest.mark.faults

Start = Callable[..., Run]
STREAMED = ("--sink", "out.jsonl", "--sink", "out.mp4", "--sink", "http://127.0.0.1:0", "--threads", "1")
ENDLESS_DEMO = ("demo", "--realtime", "--loop", "--max-frames", "100000")


def is_clean(run: Run, video: bool) -> None:
    """Complete lines, a complete video or none, no temporary files."""
    assert "Traceback" not in run.said()
    assert leftovers(run.folder) == []
    raw = (run.folder / "out.jsonl").read_bytes()
    assert raw == b"" or raw.endswith(b"\n")
    assert (run.folder / "out.mp4").exists() == video
    run.lines()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stop_while_frames_arrive(start_run: Start, signal_number: int) -> None:
    run = start_run(*ENDLESS_DEMO, *STREAMED)
    run.wait_for(run.processed(5))
    taken_s = run.end(signal_number)
    print(f"running, signal {signal_number}: {taken_s:.2f} s")
    assert run.process.returncode == (130 if signal_number == signal.SIGINT else 0)
    is_clean(run, video=True)


def test_stop_while_a_camera_does_not_respond(start_run: Start, black_hole: str) -> None:
    run = start_run(black_hole, *STREAMED)
    run.page()
    run.wait_for(lambda: any(line["event"] == "state" for line in run.lines()))
    print(f"connecting: {run.end():.2f} s")
    assert run.process.returncode == 0
    assert run.lines()[0]["state"] == "connecting"
    is_clean(run, video=False)


@pytest.mark.parametrize("fault", ["freeze", "kill"])
def test_stop_while_the_camera_is_frozen_or_lost(start_run: Start, camera: FakeCamera, fault: str) -> None:
    run = start_run(camera.address, *STREAMED)
    run.wait_for(run.processed(3))
    if fault == "freeze":
        camera.freeze()
        time.sleep(0.5)
    else:
        camera.kill()
        run.wait_for(lambda: run.lines()[-1].get("state") == "lost")
    print(f"camera after {fault}: {run.end():.2f} s")
    camera.kill()
    assert run.process.returncode == 0
    is_clean(run, video=True)


SLOW_SAVE = """
import time
from fsvit_edge.runtime import storage
original = storage.os.replace
def replace(source, target):
    if str(target).endswith("bank.safetensors"):
        open("saving", "w").close()
        time.sleep({seconds})
    original(source, target)
storage.os.replace = replace
"""


@pytest.mark.parametrize("seconds", [0.7, 30])
def test_stop_while_a_bank_is_saved(start_run: Start, seconds: float) -> None:
    """A short save is finished; one that hangs is given up, and the old bank is unchanged."""
    run = start_run(*ENDLESS_DEMO, *STREAMED, code=SLOW_SAVE.format(seconds=seconds))
    page = run.page()
    run.wait_for(run.processed(3))
    with httpx.Client() as client, pytest.raises(httpx.TimeoutException):
        client.post(f"{page}/api/bank/save", timeout=0.3)
    run.wait_for(lambda: (run.folder / "saving").exists())
    print(f"saving for {seconds} s: {run.end():.2f} s")
    saved = (run.folder / "bank.safetensors").exists()
    assert saved == (seconds < 1)
    if saved:
        is_clean(run, video=True)


# A call that no signal interrupts, like a read in OpenCV or an engine that hangs.
STUCK = """
import hashlib
from fsvit_edge.fewshot.predictor import FewShotModel
original = FewShotModel.predict
calls = []
def predict(self, rgb, **options):
    calls.append(1)
    if len(calls) == 5:
        open("stuck", "w").close()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)
    return original(self, rgb, **options)
FewShotModel.predict = predict
"""


def start_stuck(start_run: Start, code: str = "") -> Run:
    """A run whose model hangs."""
    run = start_run(*ENDLESS_DEMO, *STREAMED, code=STUCK + code)
    run.wait_for(lambda: (run.folder / "stuck").exists())
    return run


def test_stop_while_the_model_hangs(start_run: Start) -> None:
    run = start_stuck(start_run)
    time.sleep(0.3)
    print(f"model hangs: {run.end():.2f} s")
    assert "Exiting although the model did not stop in time." in run.said()
    is_clean(run, video=True)


IMPATIENT = """
from fsvit_edge.live import supervision
supervision.HANG_MIN_S, supervision.HANG_PER_CLASS_S, supervision.HANG_FACTOR = 1.0, 0.0, 0.0
"""


def test_a_model_that_hangs_ends_the_run(start_run: Start) -> None:
    run = start_stuck(start_run, IMPATIENT)
    stuck_s = time.monotonic()
    assert run.process.wait(6) == 1
    print(f"model hangs for 1 s: ended after {time.monotonic() - stuck_s:.2f} s")
    assert "The model stopped responding, so the run ends with exit code 1" in run.said()
    is_clean(run, video=True)


def test_without_the_watchdog_a_hung_model_does_not_end_the_run(start_run: Start) -> None:
    """The control."""
    blind = IMPATIENT + "supervision.ModelWatchdog.is_hung = lambda *_: False\n"
    run = start_stuck(start_run, blind)
    time.sleep(3)
    assert run.process.poll() is None
    run.end()


def test_a_run_that_was_suspended_continues(start_run: Start) -> None:
    run = start_run(*ENDLESS_DEMO, *STREAMED, code=IMPATIENT)
    run.wait_for(run.processed(5))
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    before = len(run.lines())
    run.process.send_signal(signal.SIGCONT)
    run.wait_for(run.processed(before + 20))
    run.end()
    assert run.process.returncode == 0


def test_a_second_interrupt_exits_at_once(start_run: Start) -> None:
    run = start_stuck(start_run)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    taken_s = run.end(signal.SIGINT, within_s=0.5)
    print(f"second interrupt: {taken_s:.2f} s")
    assert run.process.returncode == 130


def test_without_our_signal_handlers_a_hung_model_blocks_the_stop(start_run: Start) -> None:
    """The control: the signal handler of Python waits for the model."""
    python_own = "import fsvit_edge.live.loop as loop, contextlib\n"
    python_own += "loop.stop_on_signals = lambda stop: contextlib.nullcontext()\n"
    python_own += "loop.run_with_ticks = lambda work, stop, tick: (work(), True)[1]\n"
    run = start_stuck(start_run, python_own)
    run.process.send_signal(signal.SIGINT)
    time.sleep(2.5)
    assert run.process.poll() is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs a small disk, which only root can mount")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("needs a small disk, but mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_stops_one_sink_until_there_is_room_and_the_run_continues(
    start_run: Start, small_disk: Path
) -> None:
    (small_disk / "large").write_bytes(bytes(45_000))
    run = start_run(
        *(*ENDLESS_DEMO, "--sink", "small/full.jsonl", "--sink", "out.jsonl"),
        *("--health", "health.json", "--threads", "1"),
    )
    run.wait_for(lambda: "small/full.jsonl ends after" in run.said())
    so_far = len(run.lines())
    run.wait_for(lambda: len(run.lines()) > so_far + 10)
    run.wait_for(lambda: "No space left" in (run.folder / "health.json").read_text())
    health = json.loads((run.folder / "health.json").read_text())
    lines = [json.loads(line) for line in (small_disk / "full.jsonl").read_bytes().splitlines()]
    assert run.said().count("full.jsonl") == 1
    assert [bool(sink["trouble"]) for sink in health["sinks"]] == [True, False]
    assert len(lines) > 5
    (small_disk / "large").unlink()
    run.wait_for(lambda: (small_disk / "full.jsonl").read_bytes().count(b"\n") > len(lines))
    run.end()
    for line in (small_disk / "full.jsonl").read_bytes().splitlines():
        json.loads(line)
