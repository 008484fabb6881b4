"""Frames of a live run beside clients of its page that ask without a pause, and how long the run takes to end.

    python benchmarks/busy_page.py [--ask enroll] [--clients 8] [--seconds 5] [--turns 7]

Plays the demo with the page. In turns: no client, clients that each do the same again and again, no client; then the
classes that they enrolled are removed. Each class makes later frames slower, so the rate beside the clients is compared
with the mean of the two without. At the end, SIGTERM is sent beside the clients. They run on the same cores.

    enroll    stop the picture and enroll a box of it
    download  get the bank
    save      save the bank to its file
"""

import argparse
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

_BOX = [40, 40, 300, 300]

Ask = Callable[[httpx.Client, int], httpx.Response]
"""What a client, given with its number, does."""


def enroll(page: httpx.Client, number: int) -> httpx.Response:
    """Enroll a box of the newest frame as a class of this client."""
    frozen = page.post("/api/frames").json()["id"]
    return page.post("/api/classes", json={"name": f"busy {number}", "frame_id": frozen, "box_xyxy": _BOX})


def download(page: httpx.Client, _: int) -> httpx.Response:
    """Get the bank."""
    return page.get("/api/bank")


def save(page: httpx.Client, _: int) -> httpx.Response:
    """Save the bank."""
    return page.post("/api/bank/save")


ASKS: dict[str, Ask] = {"enroll": enroll, "download": download, "save": save}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ask", choices=ASKS, default="enroll")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each part of a turn")
    parser.add_argument("--turns", type=int, default=7)
    asked = parser.parse_args()
    with demo_run() as (run, address), client_of(address) as page:
        ratios, answers = [], 0
        for turn in range(asked.turns + 1):
            before = frames_per_second(page, asked.seconds)
            with busy(address, asked.clients, ASKS[asked.ask]) as answered:
                beside = frames_per_second(page, asked.seconds)
            after = frames_per_second(page, asked.seconds)
            for number in range(asked.clients):
                page.delete("/api/classes", params={"name": f"busy {number}"})
            if turn:  # the first warms up
                ratios.append(beside / statistics.mean((before, after)))
                answers += len(answered)
            print(f"{before:5.1f} {beside:5.1f} {after:5.1f} frames/s, {len(answered)} answered", flush=True)
        with busy(address, asked.clients, ASKS[asked.ask]):
            time.sleep(asked.seconds)
            started_s = time.perf_counter()
            run.send_signal(signal.SIGTERM)
            run.wait()
            ended_s = time.perf_counter() - started_s
    print(
        f"beside {asked.clients} clients that {asked.ask}: {statistics.median(ratios):.2f} of the frames "
        f"({min(ratios):.2f} to {max(ratios):.2f}), {answers / asked.turns / asked.seconds:.1f} answers/s; "
        f"SIGTERM {ended_s:.2f} s"
    )


@contextmanager
def demo_run() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Play the demo with the page on a free port, and yield the process and its address."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("w", encoding="utf-8") as stderr:
            program = Path(sys.executable).with_name("fsvit-edge")
            command = [str(program), "run", "demo", "--loop", "--sink", "http://127.0.0.1:0"]
            run = subprocess.Popen(command, stdout=stderr, stderr=stderr, cwd=folder, text=True)
        try:
            yield run, wait_for_address(run, log)
        finally:
            run.kill()
            run.wait()


def wait_for_address(run: subprocess.Popen[str], log: Path) -> str:
    """Return the page's address once frames come."""
    while run.poll() is None:
        time.sleep(0.5)
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8"))
        if found:
            with client_of(found[0]) as page:
                while run.poll() is None and not frames_of(page):
                    time.sleep(0.5)
            return found[0]
    sys.exit(log.read_text(encoding="utf-8"))


def client_of(address: str) -> httpx.Client:
    """A client of the page."""
    return httpx.Client(base_url=address, timeout=60, trust_env=False)


def frames_per_second(page: httpx.Client, seconds: float) -> float:
    """Watch the count of processed frames for so long."""
    first, started_s = frames_of(page), time.perf_counter()
    time.sleep(seconds)
    last = frames_of(page)
    return (last - first) / (time.perf_counter() - started_s)


def frames_of(page: httpx.Client) -> float:
    """Frames processed so far."""
    found = re.search(r"^fsvit_edge_frames_total (\S+)", page.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@contextmanager
def busy(address: str, clients: int, ask: Ask) -> Iterator[list[int]]:
    """Let clients ask without a pause while the block runs; yields the list of their successes so far."""
    stop, done = threading.Event(), list[int]()

    def ask_again(number: int) -> None:
        with client_of(address) as page:
            while not stop.is_set():
                with suppress(httpx.TransportError, KeyError):  # the run ends, or too many frames are stopped
                    if ask(page, number).is_success:
                        done.append(number)

    threads = [threading.Thread(target=ask_again, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
