"""A device that asks a box: answers as here, and what happens while the box is away or has changed."""

import hashlib
import json
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from backend_stub import Loopback
from box_answers import ADDRESS, gray, is_same_answer
from sample_files import colors

from fsvit_edge import FewShotModel
from fsvit_edge.fewshot.first_look import FirstLook
from fsvit_edge.fewshot.index_mask import index_png
from fsvit_edge.fewshot.steady import SteadyAnswers
from fsvit_edge.fewshot.zones import Zone
from fsvit_edge.remote import client, wire
from fsvit_edge.remote.client import RemoteModel, bank_on_box
from fsvit_edge.remote.wire import Options
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError

FRAMES = [colors(1, 121, 163), gray(90), colors(2, 480, 640), colors(3, 256, 256), colors(4, 31, 7)]


def test_a_frame_of_any_size_gets_the_answer_of_a_model_here(box: type[Loopback], here: FewShotModel) -> None:
    remote = RemoteModel(ADDRESS, "two")
    for frame in FRAMES:
        answer, expected = remote.predict(frame), here.predict(frame)
        assert answer is not None
        assert is_same_answer(answer, expected)
        assert list(answer.latency_ms) == [*expected.latency_ms, "network"]
        assert not is_same_answer(answer, here.predict(255 - frame))  # the check sees a difference
    assert box.asked == ["box.example:8001"]
    assert (remote.name, remote.classes, remote.scene_frames) == ("cst-nano", here.classes, 1)
    assert (remote.choice.engine, remote.choice.precision) == ("triton", "fp32")


@pytest.mark.parametrize("options", [Options(level=0.9999), Options(exclusive=True), Options(first_look=1)])
def test_options_of_a_run_mean_on_a_box_what_they_mean_here(
    box: type[Loopback], here: FewShotModel, options: Options
) -> None:
    assert not box.asked
    here.set_level_for_all(options.level)
    here.exclusive = options.exclusive
    here.first_look = FirstLook(1) if options.first_look else None
    zone = Zone("of the run", ((0.5, 0), (1, 0), (1, 1), (0.5, 1)))
    remote = RemoteModel(ADDRESS, "two", options=options, zones=(zone,))
    for frame in FRAMES:
        answer = remote.predict(frame)
        assert answer is not None
        assert is_same_answer(answer, replace(here.predict(frame), zones=(zone,)))


@pytest.mark.slow(reason="answers many frames twice, 5 s")
def test_steady_answers_are_those_of_a_model_here_also_after_the_box_was_replaced(
    box: type[Loopback], here: FewShotModel
) -> None:
    remote = RemoteModel(ADDRESS, "two")
    far, near = SteadyAnswers(), SteadyAnswers()
    seen, shown = [], colors(1, 121, 163)
    for index in range(40):
        frame = shown if index in range(5, 20) or index in range(22, 24) else gray(90)
        now_s = 0.1 * index
        answer, expected = remote.predict(frame, far.at(now_s)), here.predict(frame, over_time=near.at(now_s))
        assert answer is not None
        assert is_same_answer(answer, expected)
        assert far.state == near.state
        seen.append(bool(answer.present.any()))
        if index == 10:
            box.model._box._banks.clear()
    # On 0.3 s after it appears, off 1 s after it has gone for good.
    assert (seen.index(True), 39 - seen[::-1].index(True)) == (8, 33)


@pytest.fixture
def away(box: type[Loopback], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make the box go away for a reason, or come back for none."""
    return lambda reason: monkeypatch.setattr(box, "away", staticmethod(lambda: reason))


def test_a_box_that_is_away_is_told_once_and_answers_when_it_is_back(away: Callable[[str], None]) -> None:
    said: list[str] = []
    remote = RemoteModel(ADDRESS, "two", said.append)
    away("failed to connect to all addresses")
    assert remote.predict(FRAMES[0]) is None
    away("Stub process 'cst-nano_0_0' is not healthy.")
    assert remote.predict(FRAMES[0]) is None
    assert said == [f"The box {ADDRESS} does not answer, and is waited for: failed to connect to all addresses."]
    assert (remote.box.state, remote.box.trouble) == ("lost", "Stub process 'cst-nano_0_0' is not healthy")  # of now
    away("")
    assert remote.predict(FRAMES[0]) is not None
    assert said[1:] == [f"The box {ADDRESS} answers again."]
    assert (remote.box.state, remote.box.trouble) == ("live", "")


def test_a_box_of_which_one_process_is_dead_is_asked_again_at_once_and_told_once(
    box: type[Loopback], monkeypatch: pytest.MonkeyPatch, here: FewShotModel
) -> None:
    asked = count()
    monkeypatch.setattr(client, "_PATIENCE_S", 30.0)
    monkeypatch.setattr(client, "_RETRY_S", 0.0)
    monkeypatch.setattr(client, "_PAUSE_S", 1e9)  # never
    monkeypatch.setattr(box, "away", staticmethod(lambda: "it is not healthy" if next(asked) % 2 else ""))
    said: list[str] = []
    remote = RemoteModel(ADDRESS, "two", said.append)
    assert (remote.box.state, remote.box.trouble) == ("live", "")
    for frame in FRAMES:
        while (answer := remote.predict(frame)) is None:  # every second is tried again
            pass
        assert is_same_answer(answer, here.predict(frame))
    assert next(asked) == 1 + 2 * len(FRAMES)
    assert said == [f"The box {ADDRESS} answers only some requests, so frames come more slowly: it is not healthy."]
    assert (remote.box.state, remote.box.trouble) == ("live", "it is not healthy")
    monkeypatch.setattr(box, "away", staticmethod(lambda: ""))
    assert remote.predict(FRAMES[0]) is not None
    assert len(said) == 1  # not yet: the next request may meet the dead one
    monkeypatch.setattr(client, "_SOUND_S", 0.0)
    assert remote.predict(FRAMES[0]) is not None
    assert said[1:] == [f"The box {ADDRESS} answers every request again."]
    assert remote.box.trouble == ""


def test_a_box_that_comes_back_with_a_damaged_bank_is_waited_for(
    box: type[Loopback], banks: Path, here: FewShotModel
) -> None:
    said: list[str] = []
    remote = RemoteModel(ADDRESS, "two", said.append)
    whole = (banks / "two.safetensors").read_bytes()
    for break_it, reason in (
        (lambda file: file.write_bytes(whole[:-1]), "is damaged"),
        (lambda file: file.write_bytes((banks / "foreign.safetensors").read_bytes()), "with a different encoder"),
        (lambda file: file.unlink(), "There is no bank 'two' on the box"),
    ):
        break_it(banks / "two.safetensors")
        box.model._box._banks.clear()  # as after a restart
        assert [remote.predict(FRAMES[0]) for _ in range(3)] == [None] * 3
        assert remote.box.state == "lost"
        (line,) = said
        assert line.startswith(f"The box {ADDRESS} does not answer, and is waited for: ")
        assert reason in line
        assert reason in remote.box.trouble
        (banks / "two.safetensors").write_bytes(whole)
        answer = remote.predict(FRAMES[0])
        assert answer is not None
        assert is_same_answer(answer, here.predict(FRAMES[0]))
        assert said[1:] == [f"The box {ADDRESS} answers again."]
        said.clear()


def test_what_is_wrong_with_a_frame_or_a_choice_of_classes_is_not_waited_for(
    box: type[Loopback], banks: Path, here: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not box.asked
    remote = RemoteModel(ADDRESS, "two", options=Options(classes=("cat",)))
    with monkeypatch.context() as patch:
        patch.setattr("fsvit_edge.remote.box.MAX_PICTURE_PX", 1000)
        with pytest.raises(InputError, match="The size of the frame must be above 0"):
            remote.predict(FRAMES[0])
    assert remote.predict(FRAMES[0]) is not None
    here.remove("cat")
    here.save_bank(banks / "two.safetensors")
    with pytest.raises(InputError, match="'cat'"):
        remote.predict(FRAMES[0])


def test_a_box_that_is_away_at_the_start_is_an_error(away: Callable[[str], None]) -> None:
    away("failed to connect")
    with pytest.raises(FsvitEdgeError, match=r"The box triton://.* does not answer: failed to connect; see") as error:
        RemoteModel(ADDRESS, "two")
    assert error.value.exit_code == 1


def test_the_port_of_http_is_said_to_be_none_of_grpc() -> None:
    pytest.importorskip("tritonclient.grpc", reason='needs tritonclient: pip install "fsvit-edge[triton]"')
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(FsvitEdgeError, match="the port of its gRPC") as error:
            RemoteModel(f"triton://127.0.0.1:{server.server_port}/cst-nano", "two")
    finally:
        server.shutdown()
        server.server_close()
    assert error.value.exit_code == 1


def test_a_model_that_the_box_has_not_is_a_wrong_option(away: Callable[[str], None]) -> None:
    away("Request for unknown model: 'cst-nano' is not found")
    with pytest.raises(InputError, match=r"The box triton://.* has no model 'cst-nano'; it has: cst-nano\.") as error:
        RemoteModel(ADDRESS, "two")
    assert error.value.exit_code == 2
    away("Request for unknown model: 'cst-nano' has no available versions")  # it may still be loaded
    with pytest.raises(FsvitEdgeError, match="does not answer") as error:
        RemoteModel(ADDRESS, "two")
    assert error.value.exit_code == 1


def test_a_model_that_is_gone_later_is_waited_for(away: Callable[[str], None]) -> None:
    remote = RemoteModel(ADDRESS, "two")
    away("Request for unknown model: 'cst-nano' is not found")
    assert remote.predict(FRAMES[0]) is None
    assert remote.box.state == "lost"


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("foreign", ArtifactError, "was made with a different encoder"),
        ("cut", ArtifactError, "is damaged"),
        ("none", InputError, "There is no bank 'none' on the box; it has: cut, foreign, two."),
    ],
)
def test_a_bank_that_the_box_refuses_is_refused_with_its_own_error(
    box: type[Loopback], name: str, kind: type[Exception], sentence: str
) -> None:
    assert not box.asked
    with pytest.raises(kind, match=sentence):
        RemoteModel(ADDRESS, name)


def test_a_new_bank_is_used_from_the_next_frame_and_a_broken_one_is_told_once(
    box: type[Loopback], here: FewShotModel, banks: Path
) -> None:
    said: list[str] = []
    remote = RemoteModel(ADDRESS, "two", said.append)
    here.remove("cat")
    here.save_bank(banks / "two.safetensors")
    answer = remote.predict(FRAMES[0])
    assert answer is not None
    assert is_same_answer(answer, here.predict(FRAMES[0]))
    assert remote.classes == ("Größe 猫",)
    assert said == []
    (banks / "two.safetensors").write_bytes(b"cut")
    assert [remote.predict(FRAMES[0]) is not None for _ in range(2)] == [True, True]
    (line,) = said
    assert line.startswith(f"{ADDRESS}: The former bank goes on: Bank ")
    assert remote.box.bank_trouble == line.removeprefix(f"{ADDRESS}: ")
    sums = [remote.box.bank_sha256, remote.facts.bank_sha256]
    assert sums[0] == sums[1] != hashlib.sha256((banks / "two.safetensors").read_bytes()).hexdigest()
    here.save_bank(banks / "two.safetensors")
    assert remote.predict(FRAMES[0]) is not None
    assert said[1:] == [f"{ADDRESS}: the bank of now is used."]
    assert remote.box.bank_trouble == ""
    assert remote.box.bank_sha256 == hashlib.sha256((banks / "two.safetensors").read_bytes()).hexdigest()
    assert box.asked


@pytest.mark.parametrize("change", [{"wire": 99}, {"color": "red"}])
def test_a_box_of_another_version_is_refused(
    box: type[Loopback], monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    answer = box.model._box.answer

    def changed(*arguments: object) -> dict[str, np.ndarray]:
        facts = json.loads(answer(*arguments)["facts"][0])
        return {"facts": wire.text_tensor(json.dumps(facts | change).encode())}

    monkeypatch.setattr(box.model._box, "answer", changed)
    with pytest.raises(ArtifactError, match="install the same version on both"):
        RemoteModel(ADDRESS, "two")


PIXELS = FRAMES[0].shape[:2]


def texts(*said: str) -> np.ndarray:
    return wire.text_tensor(*(one.encode() for one in said))


def label_png(size_hw: tuple[int, int] = PIXELS, value: int = 0) -> np.ndarray:
    return wire.text_tensor(index_png(np.full(size_hw, value, np.uint8)))


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_stages_that_only_the_box_knows_are_left_out(box: type[Loopback], monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RemoteModel(ADDRESS, "two")
    answer = box.model._box.answer
    told = texts('{"latency_ms": {"head": 2, "\\u001b[31m1": 3, "encoder": 86400000}}')
    monkeypatch.setattr(box.model._box, "answer", lambda *arguments: answer(*arguments) | {wire.DETAILS: told})
    prediction = remote.predict(FRAMES[0])
    assert prediction is not None
    assert prediction.latency_ms.keys() == {"preprocess", "encoder", "head", "network"}
    assert (prediction.latency_ms["head"], prediction.latency_ms["network"]) == (2.0, 0.0)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({wire.SCORES: None}, "the tensor 'scores' is missing"),
        ({wire.SCORES: floats(0.5)}, r"the tensor 'scores' is float32 \(1,\), not float32 \(2,\)"),
        ({wire.SCORES: floats(0.5, 0.5).astype(np.float64)}, "the tensor 'scores' is float64"),
        ({wire.SCORES: floats(0.5, math.nan)}, "the tensor 'scores' has values outside 0 to 1"),
        ({wire.RAW_SCORES: floats(0.5, 7)}, "the tensor 'raw_scores' has values outside 0 to 1"),
        ({wire.LEVELS: floats(0.5, -1)}, "the tensor 'levels' has values outside 0 to 1"),
        ({wire.PRESENT: floats(1, 1)}, "the tensor 'present' is float32"),
        ({wire.CONTESTED: np.zeros((2, 2), np.bool_)}, "the tensor 'contested' is bool"),
        ({wire.NAMES: texts("cat", "dog")}, "the names are not those of the facts"),
        ({wire.NAMES: wire.text_tensor(b"cat", b"\xff")}, "the names are not those of the facts"),
        ({wire.LABEL_PNG: label_png((5, 5))}, "the label map is P of 5x5, and the frame has 163x121"),
        ({wire.LABEL_PNG: label_png(value=3)}, "the label map has 3, and there are 2 classes"),
        ({wire.LABEL_PNG: texts("no picture")}, "the label map is damaged or not a PNG"),
        ({wire.DETAILS: texts("[]")}, "must hold a JSON object"),
        ({wire.DETAILS: texts('{"latency_ms": {"head": NaN}}')}, "latency_ms is"),
        ({wire.DETAILS: texts('{"latency_ms": {"head": 1e300}}')}, "latency_ms is"),
        ({wire.DETAILS: texts('{"steady": {"now_s": 1, "classes": {"dog": [true, null]}}}')}, "steady is"),
    ],
)
def test_an_answer_that_cannot_be_one_is_refused_in_one_sentence(
    box: type[Loopback], monkeypatch: pytest.MonkeyPatch, changed: dict[str, np.ndarray | None], problem: str
) -> None:
    remote = RemoteModel(ADDRESS, "two")
    answer = box.model._box.answer

    def other(*arguments: object) -> dict[str, np.ndarray]:
        return {name: array for name, array in (answer(*arguments) | changed).items() if array is not None}

    monkeypatch.setattr(box.model._box, "answer", other)
    with pytest.raises(ArtifactError, match=rf"answers in a form that this fsvit-edge does not know \(.*{problem}"):
        remote.predict(FRAMES[0])


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 10**400}, "image_size is 1000"),  # resizing to it would take all of the memory
        ({"levels": [0.5]}, "2 classes with 1 levels"),
        ({"levels": [0.5, math.nan]}, "The level of a class must be between 0 and 1"),
        ({"classes": ["cat", "cat"]}, "2 classes with 2 levels"),
        ({"classes": [], "levels": []}, "0 classes with 0 levels"),
        ({"classes": ["cat", "\x1b[2J"]}, "A class name must be 1 to 80 printable characters"),
        ({"model": "\x1b[2J"}, "a text has control characters"),
        ({"scene_frames": -1}, "scene_frames is -1"),
    ],
)
def test_facts_that_no_bank_has_are_refused_at_the_start(
    box: type[Loopback], monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], problem: str
) -> None:
    answer = box.model._box.answer

    def other(*arguments: object) -> dict[str, np.ndarray]:
        return {"facts": texts(json.dumps(json.loads(answer(*arguments)["facts"][0]) | changed))}

    monkeypatch.setattr(box.model._box, "answer", other)
    with pytest.raises(ArtifactError, match=problem) as error:
        RemoteModel(ADDRESS, "two")
    assert "\x1b" not in str(error.value)


def test_bytes_that_are_no_tensor_are_refused(box: type[Loopback], monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(*_: object) -> np.ndarray:
        return deserialize_bytes_tensor(b"\xff\xff\xff\xff")

    deserialize_bytes_tensor = pytest.importorskip("tritonclient.utils").deserialize_bytes_tensor
    assert not box.asked
    monkeypatch.setattr("backend_stub.Answer.as_numpy", torn)
    with pytest.raises(ArtifactError, match="the tensor 'facts' cannot be read"):
        RemoteModel(ADDRESS, "two")


def test_what_a_box_says_cannot_drive_the_terminal_nor_fill_the_log(
    box: type[Loopback], away: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    remote = RemoteModel(ADDRESS, "two", said.append)
    away("\x1b[31m" + "gone " * 1000)
    assert remote.predict(FRAMES[0]) is None
    away("InputError: \x1b[2J" + "no " * 10000)
    assert remote.predict(FRAMES[0]) is None
    trouble = remote.box.trouble
    away("")
    answer, count = box.model._box.answer, iter(range(9))

    def other(*arguments: object) -> dict[str, np.ndarray]:
        return answer(*arguments) | {"details": texts(json.dumps({"problem": f"\x1b[2J{next(count)}" + "x" * 10000}))}

    monkeypatch.setattr(box.model._box, "answer", other)
    for _ in range(5):
        assert remote.predict(FRAMES[0]) is not None
    assert len(said) == 3  # away, back, and a problem, whose words change with each frame
    assert all("\x1b" not in line and len(line) < 1100 for line in (*said, trouble))


def test_a_box_that_answers_without_facts_is_waited_for_as_one_of_another_version(
    box: type[Loopback], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    remote = RemoteModel(ADDRESS, "two", said.append)
    answer = box.model._box.answer

    def without_facts(*arguments: object) -> dict[str, np.ndarray]:
        return {name: array for name, array in answer(*arguments).items() if name != wire.FACTS}

    with monkeypatch.context() as patch:
        patch.setattr(box.model._box, "answer", without_facts)
        assert remote.predict(FRAMES[0]) is None
    assert "install the same version on both" in said[0]
    assert remote.predict(FRAMES[0]) is not None


@pytest.mark.parametrize(
    "address", ["triton://", "triton://host", "triton://host:8001/", "triton://host:x/m", "triton://a:secret@h/m"]
)
def test_a_wrong_address_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(InputError, match="The address of a box is wrong; expected triton://HOST:PORT/MODEL") as error:
        RemoteModel(address, "two")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "connected"),
    [("triton://host/m", "host:8001"), ("triton://[::1]:9/m", "[::1]:9"), ("TRITON://host:7/m/", "host:7")],
)
def test_the_port_of_grpc_is_the_default(
    box: type[Loopback], monkeypatch: pytest.MonkeyPatch, address: str, connected: str
) -> None:
    monkeypatch.setattr(box, "infer", lambda *_, **__: pytest.fail("not asked"))
    with pytest.raises(pytest.fail.Exception):
        RemoteModel(address, "two")
    assert box.asked == [connected]


def test_without_tritonclient_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    with pytest.raises(EnvironmentLacksError, match=r'try: pip install "fsvit-edge\[triton\]"'):
        RemoteModel(ADDRESS, "two")


def test_the_name_of_a_bank_may_have_its_suffix_and_no_folder() -> None:
    assert [bank_on_box(Path(name)) for name in ("two", "two.safetensors", "a.b")] == ["two", "two", "a.b"]
    with pytest.raises(InputError, match="is the name of a bank in the box's own folder, without a path; got x/two"):
        bank_on_box(Path("x/two"))
