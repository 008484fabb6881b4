"""The model file of the Python backend, with a stub of the backend: tensors in, tensors out."""

import json
import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from backend_stub import Backend, Request, Tensor, open_model
from PIL import Image
from sample_files import colors

from fsvit_edge import FewShotModel
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.first_look import FirstLook
from fsvit_edge.remote import model as model_module
from fsvit_edge.remote import wire
from fsvit_edge.remote.box import FORMAT_VERSION, Settings
from fsvit_edge.remote.repository import write_model
from fsvit_edge.runtime.errors import EnvironmentLacksError
from fsvit_edge.runtime.pictures import decode_image, encode_jpeg

ALL = list(wire.OUTPUTS)


def respond(model: Any, wanted: list[str] = ALL, **tensors: Any) -> Any:
    texts = {name: value for name, value in tensors.items() if isinstance(value, (str, bytes))}
    arrays = {name: value for name, value in tensors.items() if isinstance(value, np.ndarray)}
    packed = {
        name: wire.text_tensor(text if isinstance(text, bytes) else text.encode()) for name, text in texts.items()
    }
    (response,) = model.execute([Request({**arrays, **packed}, wanted)])
    return response


def ask(model: Any, **tensors: Any) -> dict[str, np.ndarray]:
    response = respond(model, **tensors)
    assert response.error is None, response.error.message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors}


def refusal(model: Any, **tensors: Any) -> str:
    response = respond(model, **tensors)
    assert response.output_tensors == []
    text: str = response.error.message()
    return text


def labels_of(answer: dict[str, np.ndarray]) -> np.ndarray:
    return np.array(Image.open(BytesIO(answer["label_png"][0])))


def equals(answer: dict[str, np.ndarray], expected: Any) -> bool:
    arrays = ("scores", "raw_scores", "levels", "present", "contested")
    return all(np.array_equal(answer[name], getattr(expected, name)) for name in arrays) and np.array_equal(
        labels_of(answer), expected.label_map
    )


def test_a_frame_and_a_picture_file_are_answered_as_here(model: Any, here: FewShotModel) -> None:
    frame = colors(3, 121, 163)
    answer = ask(model, frame=frame, bank="two")
    assert equals(answer, here.predict(frame))
    assert [name.decode() for name in answer["names"]] == ["cat", "Größe 猫"]
    assert answer["present"].any()
    jpeg = encode_jpeg(frame)
    answer_of_file = ask(model, jpeg=jpeg, bank="two")
    assert equals(answer_of_file, here.predict(decode_image(jpeg, "it")))
    assert not equals(answer_of_file, here.predict(frame))  # the check sees the loss of a JPEG
    for name, (data_type, shape) in wire.OUTPUTS.items():
        kinds = {"TYPE_STRING": np.object_, "TYPE_FP32": np.float32, "TYPE_BOOL": np.bool_}
        assert answer[name].dtype == kinds[data_type]
        assert answer[name].shape in (shape, (2,))


@pytest.mark.parametrize("size_hw", [(240, 320), (31, 7)])
def test_a_small_picture_of_a_frame_is_answered_at_the_frames_size(
    model: Any, here: FewShotModel, size_hw: tuple[int, int]
) -> None:
    small = colors(3, 256, 256)
    answer = ask(model, frame=small, bank="two", options=json.dumps({"size_hw": size_hw}))
    assert labels_of(answer).shape == size_hw
    assert equals(answer, here.predict(small, size_hw=size_hw))


def test_options_change_answers_as_they_do_here_and_only_for_their_request(model: Any, here: FewShotModel) -> None:
    frame = colors(3, 121, 163)
    plain = here.predict(frame)
    here.set_level_for_all(0.9999)
    assert equals(ask(model, frame=frame, bank="two", options='{"level": 0.9999}'), here.predict(frame))
    here.set_level_for_all(None)
    here.exclusive = True
    assert equals(ask(model, frame=frame, bank="two", options='{"exclusive": true}'), here.predict(frame))
    here.exclusive, here.first_look = False, FirstLook(1)
    first = here.predict(frame)
    assert equals(ask(model, frame=frame, bank="two", options='{"first_look": 1}'), first)
    assert not equals(ask(model, frame=frame, bank="two"), first)
    assert equals(ask(model, frame=frame, bank="two"), plain)


def test_chosen_classes_and_levels_are_those_of_a_labeling(model: Any, here: FewShotModel) -> None:
    frame, options = colors(3, 121, 163), '{"classes": ["cat"], "min_score": 0.97}'
    here.remove("Größe 猫")
    here.set_level("cat", max(here.bank.level("cat"), 0.97))
    answer = ask(model, frame=frame, bank="two", options=options)
    assert equals(answer, here.predict(frame))
    facts = json.loads(answer["facts"][0])
    assert facts["classes"] == ["cat"]
    assert facts["levels"] == [float(here.bank.levels[0])]
    assert (
        ask(model, frame=frame, bank="two", options=options)["facts"][0] == answer["facts"][0]
    )  # kept, not made again
    assert json.loads(ask(model, bank="two")["facts"][0])["classes"] == ["cat", "Größe 猫"]


def test_without_a_picture_only_the_facts_are_told(model: Any, bank: SupportBank) -> None:
    answer = ask(model, bank="two")
    assert list(answer) == ["facts"]
    facts = wire.from_json(wire.Facts, answer, wire.FACTS)
    assert (facts.model, facts.engine, facts.precision) == ("cst-nano", "onnxruntime", "fp32")
    assert (facts.classes, facts.zones, facts.scene_frames) == (bank.classes, bank.zones, 1)
    assert respond(model, ["scores"], frame=colors(3), bank="two").output_tensors[0].name() == "scores"


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"bank": "three"}, "InputError: There is no bank 'three' on the box; it has: cut, foreign, two."),
        ({"bank": "../banks/two"}, "InputError: There is no bank '../banks/two' on the box"),
        (
            {"bank": "./two"},
            "InputError: There is no bank './two' on the box",
        ),  # or each way to write it is read and kept
        ({"bank": "\0"}, "InputError: There is no bank '\\x00' on the box"),
        ({"bank": ""}, "InputError: There is no bank '' on the box"),
        ({"bank": b"\xff"}, "InputError: The tensor 'bank' is not UTF-8 text."),
        ({}, "InputError: The tensor 'bank' is missing"),
        ({"bank": "cut"}, "is damaged or not a safetensors file"),
        ({"bank": "foreign"}, "was made with a different encoder: abababababab... (cst-nano)"),
        ({"bank": "two", "jpeg": b"no"}, "InputError: The picture is damaged or not a "),
        ({"bank": "two", "frame": np.zeros((2, 2), np.uint8)}, "InputError: The frame must be an RGB picture"),
        ({"bank": "two", "frame": colors(1), "jpeg": b"no"}, "InputError: Give 'frame' or 'jpeg', not both."),
        ({"bank": "two", "options": "{"}, "InputError: The tensor 'options' is no JSON"),
        ({"bank": "two", "options": "[]"}, "InputError: The tensor 'options' must hold a JSON object"),
        ({"bank": "two", "options": '{"levels": 1}'}, "unknown field 'levels'"),
        ({"bank": "two", "options": '{"level": "high"}'}, "level is 'high'"),
        ({"bank": "two", "options": f'{{"level": 1{"0" * 400}}}'}, "int too large to convert to float"),
        ({"bank": "two", "frame": colors(1), "options": '{"level": 7}'}, "InputError: "),
        ({"bank": "two", "frame": colors(1), "options": '{"first_look": 0}'}, "InputError: The first look must"),
        ({"bank": "two", "frame": colors(1), "options": '{"size_hw": [9999, 9999]}'}, "InputError: size_hw must be"),
        ({"bank": "two", "frame": colors(1), "options": '{"size_hw": [1, 40000000]}'}, "at most 32,767 pixels a side"),
        (
            {"bank": "two", "frame": np.zeros((40_000, 1, 3), np.uint8)},
            "InputError: The size of the frame must be above 0",
        ),
        ({"bank": "two", "options": '{"classes": ["dog"]}'}, "has no class 'dog'; it has: cat, Größe 猫."),
        ({"bank": "two", "options": '{"min_score": 2}'}, "InputError: --min-score must be between 0 and 1"),
    ],
)
def test_what_cannot_be_answered_gets_one_sentence(model: Any, tensors: dict[str, Any], sentence: str) -> None:
    text = refusal(model, **tensors)
    assert sentence in text
    assert text.startswith(("InputError: ", "ArtifactError: "))
    assert "\n" not in text
    assert ask(model, frame=colors(3), bank="two")  # it goes on


def test_one_request_that_is_refused_takes_no_other_with_it(model: Any) -> None:
    frame = colors(3)
    good = {"frame": frame, "bank": wire.text_tensor(b"two")}
    bad = {"frame": frame, "bank": wire.text_tensor(b"none")}
    responses = model.execute([Request(good, ALL), Request(bad, ALL), Request(good, ALL)])
    assert [response.error is None for response in responses] == [True, False, True]


def test_a_bank_is_read_again_when_it_has_changed(
    model: Any, backend: Backend, banks: Path, here: FewShotModel
) -> None:
    frame, file = colors(3, 121, 163), banks / "two.safetensors"

    def reads() -> int:
        return sum("Read the bank" in line for line in backend.logged)

    ask(model, frame=frame, bank="two")
    ask(model, frame=frame, bank="two")
    assert reads() == 1
    os.utime(file, (1, 1))  # another time, and the same bank
    ask(model, frame=frame, bank="two")
    assert reads() == 1
    here.remove("cat")
    here.save_bank(file)
    answer = ask(model, frame=frame, bank="two")
    assert reads() == 2
    assert equals(answer, here.predict(frame))
    assert [name.decode() for name in answer["names"]] == ["Größe 猫"]


@pytest.mark.parametrize("break_it", ["cut", "foreign", "gone"])
def test_a_bank_that_breaks_leaves_the_one_before_in_its_place_and_says_so(
    model: Any, backend: Backend, banks: Path, here: FewShotModel, break_it: str
) -> None:
    frame, file = colors(3, 121, 163), banks / "two.safetensors"
    whole = file.read_bytes()
    ask(model, frame=frame, bank="two")
    if break_it == "gone":
        file.unlink()
    else:
        file.write_bytes((banks / f"{break_it}.safetensors").read_bytes())
    for _ in range(2):
        answer = ask(model, frame=frame, bank="two")
        assert equals(answer, here.predict(frame))
        assert json.loads(answer["details"][0])["problem"].startswith("The former bank goes on: Bank ")
    assert sum("The former bank goes on" in line for line in backend.logged) == 1  # told once
    file.write_bytes(whole)
    assert json.loads(ask(model, frame=frame, bank="two")["details"][0])["problem"] == ""


@pytest.mark.parametrize("break_it", ["no bank", "too large"])
def test_a_large_file_among_the_banks_is_refused_before_it_is_read(
    model: Any, banks: Path, monkeypatch: pytest.MonkeyPatch, break_it: str
) -> None:
    file = banks / "large.safetensors"
    file.write_bytes((banks / "two.safetensors").read_bytes() if break_it == "too large" else b"no bank")
    with file.open("ab") as end:
        end.truncate(3_000_000_000 if break_it == "too large" else 1_900_000_000)  # takes no room on the disk
    unused = SimpleNamespace(sha256=lambda *_: pytest.fail("it was read"))
    monkeypatch.setattr("fsvit_edge.remote.box.hashlib", unused)
    expected = "has 3,000,000,000 bytes, and a bank at most 2,000,000,000" if break_it == "too large" else "is damaged"
    assert expected in refusal(model, bank="large")


def test_a_pipe_among_the_banks_holds_up_nothing(model: Any, banks: Path) -> None:
    os.mkfifo(banks / "pipe.safetensors")
    assert "pipe.safetensors cannot be read: it is not a regular file" in refusal(model, bank="pipe")


def test_only_so_many_choices_are_kept(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsvit_edge.remote.box._MOST_CHOICES", 2)
    for score in (0.96, 0.97, 0.98, 0.96):
        facts = json.loads(ask(model, bank="two", options=json.dumps({"min_score": score}))["facts"][0])
        assert min(facts["levels"]) == pytest.approx(score)
    assert len(model._box._banks["two"].choices) == 2


@pytest.mark.parametrize(
    ("visible", "kind", "expected"), [("", "GPU", "1"), ("4,6", "GPU", "6"), ("4,6", "CPU", "4,6"), ("", "CPU", "")]
)
def test_an_instance_sees_only_its_own_gpu(
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    visible: str,
    kind: str,
    expected: str,
) -> None:
    seen = []
    monkeypatch.setattr(model_module, "Box", lambda *_: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert backend.logged == []
    open_model(write_model(tmp_path, "m", Settings(FORMAT_VERSION, None, "banks")), kind, "1")
    assert seen == [expected]


def test_a_numpy_that_the_backend_cannot_read_is_refused_when_the_model_is_loaded(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path, "m", Settings(FORMAT_VERSION, None, "banks"))
    zeros = staticmethod(lambda name, tensor: Tensor(name, 0 * tensor.as_numpy()))  # what the real one reads
    monkeypatch.setattr(Tensor, "from_dlpack", zeros)
    with pytest.raises(EnvironmentLacksError, match=r"cannot read arrays of numpy .*: pip install \"numpy<2\""):
        open_model(folder)
    assert backend.logged == []


def test_settings_that_are_missing_or_wrong_are_refused(tmp_path: Path, backend: Backend) -> None:
    assert backend.logged == []
    folder = write_model(tmp_path, "m", replace(Settings(FORMAT_VERSION, None, "banks"), engine="steam"))
    with pytest.raises(Exception, match="Engine 'steam' is unknown"):
        open_model(folder)
    (folder / "fsvit-edge.json").write_text('{"format_version": 1, "banks": 3}')
    with pytest.raises(Exception, match="'bundle' is missing"):
        open_model(folder)
    (folder / "fsvit-edge.json").unlink()
    with pytest.raises(Exception, match="is missing; make the folder again with: fsvit-edge triton"):
        open_model(folder)
