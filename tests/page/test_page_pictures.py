"""Picture files in place of frozen frames, and what is found as files, over real sockets."""

import time
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from served_page import HEIGHT, WIDTH, Served, enroll, freeze, picture, png, serve
from test_page import BOX, decoded, raw_request

from fsvit_edge.fewshot.overlay import draw
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.frame import Frame
from fsvit_edge.page.frame_hub import encode_jpeg
from fsvit_edge.runtime.pictures import read_image

QUARTER_TURN = 6  # EXIF: what phones write that are held upright


def photo(image: np.ndarray, orientation: int = QUARTER_TURN) -> bytes:
    """A JPEG as a phone stores it."""
    exif, encoded = Image.Exif(), BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(image).save(encoded, "JPEG", quality=95, exif=exif)
    return encoded.getvalue()


def test_a_picture_is_enrolled_as_the_command_reads_it(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(photo(picture()))
    kept = served.client.put("/api/frames", content=file.read_bytes())
    assert kept.status_code == 201
    frozen = kept.json()
    assert (frozen["width"], frozen["height"], frozen["earlier"], frozen["later"]) == (HEIGHT, WIDTH, 0, 0)
    image = served.page._hub.frozen(frozen["id"])
    assert np.array_equal(image, read_image(file))
    shown = decoded(served.client.get(f"/api/frames/{frozen['id']}.jpg").content)
    assert np.abs(shown - image).mean() < 3 < np.abs(shown - image[::-1, ::-1]).mean()
    box = [26, 40, 66, 90]  # the object, after the turn
    answer = served.client.post("/api/classes", json={"name": "cup", "frame_id": frozen["id"], "box_xyxy": box})
    assert answer.status_code == 201
    assert [one.has_mask for one in served.model.enrolled.supports["cup"]] == [True]
    near = served.client.post("/api/frames", params={"beside": frozen["id"]})
    assert "no longer available" in near.json()["error"]


def test_a_picture_without_a_camera_is_a_frozen_frame(loaded: FewShotModel, tmp_path: Path) -> None:
    with serve(loaded, tmp_path / "bank.safetensors") as served:
        for path in ("/api/frames/newest/mask.png", "/api/frames/newest/overlay.jpg"):
            answer = served.client.get(path)
            assert (answer.status_code, answer.json()["error"]) == (503, "There is no frame yet; wait for the camera.")
        kept = served.client.put("/api/frames", content=photo(picture())).json()
        assert served.client.get(f"/api/frames/{kept['id']}/mask.png").status_code == 200


@pytest.mark.parametrize(("width", "expected"), [(4096, 4096), (5000, 4096)])
def test_a_picture_is_no_larger_than_a_canvas_of_a_phone(served: Served, width: int, expected: int) -> None:
    data = cv2.imencode(".png", np.zeros((50, width, 3), np.uint8))[1].tobytes()
    assert served.client.put("/api/frames", content=data).json()["width"] == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cup.jpg is damaged or not a PNG, JPEG"),
        (b"GIF87a, or so it says", "cup.jpg is damaged"),
        (photo(picture())[:-100], "cup.jpg is damaged or cut short"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cup.jpg is damaged or not a PNG, JPEG"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_by_its_name(served: Served, content: bytes, reason: str) -> None:
    answer = served.client.put("/api/frames", params={"name": "cup.jpg"}, content=content)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]


@pytest.mark.parametrize("named", [{}, {"name": ""}, {"name": " "}])
def test_a_picture_without_a_name_is_called_the_picture(served: Served, named: dict[str, str]) -> None:
    answer = served.client.put("/api/frames", params=named, content=b"")
    assert answer.json()["error"].startswith("The picture is damaged")


def test_a_picture_of_too_many_pixels_is_refused(served: Served) -> None:
    encoded = BytesIO()
    Image.new("1", (9000, 9000)).save(encoded, "PNG")
    answer = served.client.put("/api/frames", content=encoded.getvalue())
    assert (answer.status_code, "9000x9000 pixels, more than the 40 megapixels" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("method", "length", "status"),
    [("PUT", 64_000_001, b"413"), ("PUT", 5_000_000, b"408"), ("POST", 5_000_000, b"413")],
)
def test_only_a_picture_may_be_as_large_as_a_picture(
    served: Served, monkeypatch: pytest.MonkeyPatch, method: str, length: int, status: bytes
) -> None:
    monkeypatch.setattr("fsvit_edge.page.access._BODY_TIMEOUT_S", 0.2)  # the control is let in, and never sent
    head = f"{method} /api/frames HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    assert raw_request(served, head.encode()).split()[1] == status


def test_one_file_is_loaded_at_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsvit_edge.page.state.UPLOAD_WAIT_S", 0.1)
    with served.page._state.uploading:
        refused = served.client.put("/api/frames", content=photo(picture()))
    assert (refused.status_code, "Another file is being loaded" in refused.json()["error"]) == (503, True)


# -------------------------------------------------------------------------------------------------- what is found there


def mask(served: Served, frame_id: str) -> np.ndarray:
    """The indices of a downloaded mask."""
    with Image.open(BytesIO(served.client.get(f"/api/frames/{frame_id}/mask.png").content)) as image:
        assert image.mode == "P"
        return np.array(image)


@pytest.fixture
def found(served: Served) -> tuple[np.ndarray, Prediction]:
    """What the run found in its newest frame: the first of two classes is absent, although it has pixels."""
    image, labels = picture(), np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:20], labels[30:70, 40:90] = 1, 2
    scores, levels = np.array([0.2, 0.9], np.float32), np.array([0.5, 0.5], np.float32)
    answer = Prediction(("mug", "cup"), scores, levels, labels, None, {})
    served.page.write(Frame(image, 6, "cam", 0.0, time.monotonic(), 1.0), answer)
    return image, answer


def test_the_newest_frame_has_the_answer_of_the_run(served: Served, found: tuple[np.ndarray, Prediction]) -> None:
    image, answer = found
    expected = np.where(answer.label_map == 2, 2, 0)
    assert np.array_equal(mask(served, "newest"), expected)
    assert not np.array_equal(answer.label_map, expected)  # the control: of an absent class, too
    shown = decoded(served.client.get("/api/frames/newest/overlay.jpg").content)
    assert np.abs(shown - draw(image, answer)).mean() < 2 < np.abs(shown - image).mean()


def test_scores_of_a_frozen_frame_are_those_of_the_classes_of_this_moment(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[bool] = []
    predict = FewShotModel.predict

    def counting(self: FewShotModel, *given: Any) -> Prediction:
        predicted.append(True)
        return predict(self, *given)

    monkeypatch.setattr(FewShotModel, "predict", counting)
    frame_id = freeze(served)
    answer, state = served.client.get(f"/api/frames/{frame_id}/answer").json(), served.client.get("/api/state").json()
    assert answer == {"revision": state["revision"], "classes": []}
    assert enroll(served, "cup", box_xyxy=BOX).status_code == 201
    predicted.clear()
    (cup,) = served.client.get(f"/api/frames/{frame_id}/answer").json()["classes"]
    served.client.get(f"/api/frames/{frame_id}/overlay.jpg")
    assert not (mask(served, frame_id) == 0).all()
    assert len(predicted) == 1  # what is said, drawn and downloaded is one answer
    expected = served.model.read(lambda model: model.predict(picture())).results[0]
    assert (cup["name"], cup["present"], cup["score"]) == ("cup", True, round(expected.score, 4))
    assert (cup["level"], cup["area"]) == (round(expected.level, 4), round(expected.area, 4))
    assert len(cup["instances"]) >= 1
    gone = served.client.get("/api/frames/newest/answer")
    assert (gone.status_code, "This frame is no longer available" in gone.json()["error"]) == (400, True)


def test_a_frozen_frame_is_answered_by_the_classes_of_this_moment(
    served: Served, found: tuple[np.ndarray, Prediction]
) -> None:
    image, _ = found
    frame_id = freeze(served)
    assert not mask(served, frame_id).any()  # nothing is enrolled, whatever the run said
    area = np.zeros((HEIGHT, WIDTH), np.uint8)
    area[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    assert enroll(served, "cup", mask_png=png(area)).status_code == 201
    answer = served.model.read(lambda model: model.predict(image))
    assert answer.present.tolist() == [True]
    assert np.array_equal(mask(served, frame_id), answer.label_map)
    shown = served.client.get(f"/api/frames/{frame_id}/overlay.jpg").content
    assert (shown == encode_jpeg(draw(image, answer)), shown == encode_jpeg(image)) == (True, False)


@pytest.mark.parametrize("file", ["mask.png", "overlay.jpg"])
@pytest.mark.parametrize(
    ("path", "error"),
    [("gone/{}", "This frame is no longer available"), ("newest/{}?source=door", "There is no source 'door'")],
)
def test_a_frame_that_is_not_there_is_one_sentence(served: Served, file: str, path: str, error: str) -> None:
    answer = served.client.get(f"/api/frames/{path.format(file)}")
    assert (answer.status_code, error in answer.json()["error"]) == (400, True)
