"""A box on a real Triton Inference Server: answers as here, 1,000 frames of 4 devices while it is killed, refusals."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import real_server
from box_answers import HERE, NAME, gray, is_same_answer
from real_server import RealServer
from sample_files import colors

from fsvit_edge import FewShotModel
from fsvit_edge.cli import main as command_line
from fsvit_edge.fewshot.steady import SteadyAnswers
from fsvit_edge.remote.box import FORMAT_VERSION, Settings
from fsvit_edge.remote.client import _PATIENCE_S, RemoteModel
from fsvit_edge.remote.repository import write_model
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.pictures import write_image

ROOT = Path(__file__).parents[2]
DEVICES, FRAMES_OF_EACH = 4, 250
KILL_AT = 300

pytestmark = [
    pytest.mark.slow(reason="starts a real server twice and sends it 1,000 frames, 60 s"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(real_server.why_not()), reason=real_server.why_not()),
]


@pytest.fixture
def server(tmp_path: Path, banks: Path) -> Iterator[RealServer]:
    pytest.importorskip("tritonclient.grpc")
    settings = Settings(FORMAT_VERSION, None, str(banks), instances=2, threads=1, **HERE)
    folder = write_model(tmp_path / "repository", NAME, settings)
    file = folder / "1" / "model.py"  # this checkout, whatever is installed there
    file.write_text(f"import sys\n\nsys.path.insert(0, {str(ROOT)!r})\n{file.read_text()}")
    started = RealServer(tmp_path, tmp_path / "repository")
    try:
        started.start()
        yield started
    finally:
        started.kill()


def address(server: RealServer) -> str:
    return f"triton://127.0.0.1:{server.port}/{NAME}"


def test_a_real_server_answers_as_a_model_here(server: RealServer, here: FewShotModel, tmp_path: Path) -> None:
    remote = RemoteModel(address(server), "two")
    far, near = SteadyAnswers(), SteadyAnswers()
    for index in range(12):
        frame = gray(90) if index % 5 == 4 else colors(index, 100 + 60 * index, 200)
        answer, steady = remote.predict(frame), remote.predict(frame, far.at(0.2 * index))
        assert answer is not None
        assert steady is not None
        assert is_same_answer(answer, here.predict(frame))
        assert is_same_answer(steady, here.predict(frame, over_time=near.at(0.2 * index)))
        assert not is_same_answer(answer, here.predict(255 - frame))
        write_image(tmp_path / "album" / f"{index}.png", frame)
    remote.close()
    for name, sentence in (("foreign", "was made with a different encoder"), ("cut", "is damaged")):
        with pytest.raises(ArtifactError, match=sentence):
            RemoteModel(address(server), name)
    command = [sys.executable, "-m", command_line.__name__, "label", "album", "--format", "jsonl"]
    for output, options in (
        ("box", ["--engine", address(server), "--bank", "two"]),
        (
            "here",
            [
                *(word for name, value in HERE.items() for word in (f"--{name}", value)),
                "--bank",
                "banks/two.safetensors",
            ],
        ),
    ):
        subprocess.run([*command, "--output", output, *options], cwd=tmp_path, check=True)
    assert (tmp_path / "box" / "labels.jsonl").read_bytes() == (tmp_path / "here" / "labels.jsonl").read_bytes()


def test_no_frame_of_four_devices_is_lost_when_the_server_is_killed(server: RealServer, here: FewShotModel) -> None:
    frames = [colors(seed, 120 + seed, 160) if seed else gray(90) for seed in range(7)]
    expected = [here.predict(frame) for frame in frames]
    said: list[str] = []
    answered = 0
    is_time, counting = threading.Event(), threading.Lock()

    def watch(device: int) -> list[bool]:
        nonlocal answered
        remote = RemoteModel(address(server), "two", said.append)
        right = []
        for index in range(FRAMES_OF_EACH):
            number = (device + index) % len(frames)
            while (answer := remote.predict(frames[number])) is None:
                pass
            right.append(is_same_answer(answer, expected[number]))
            with counting:
                answered += 1
                if answered == KILL_AT:
                    is_time.set()
        remote.close()
        return right

    with ThreadPoolExecutor(DEVICES) as pool:
        devices = [pool.submit(watch, device) for device in range(DEVICES)]
        assert is_time.wait(900)
        server.kill()
        with counting:
            before = answered
        time.sleep(_PATIENCE_S + 1)  # or the box may be back before it counts as lost
        server.start()
        right = [one for device in devices for one in device.result()]
    assert right == [True] * (DEVICES * FRAMES_OF_EACH)
    assert before < len(right)
    assert [sum(words in line for line in said) for words in ("does not answer", "answers again.")] == [DEVICES] * 2
