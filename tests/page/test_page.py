"""The page's HTTP API and access control, over real sockets; test_page_in_browser.py has the browser."""

import asyncio
import base64
import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served_page import HEIGHT, WIDTH, Served, client_of, enroll, freeze, health, picture, png, show

from fsvit_edge.fewshot.overlay import draw
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live import shared_model
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.page import access, frame_hub
from fsvit_edge.page.access import is_loopback
from fsvit_edge.page.enrollment import Confusion, find_confusions
from fsvit_edge.page.sink import PageSink
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, read_manifest
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError

STATIC = Path(access.__file__).parent / "static"
BUNDLED_LEVEL = read_manifest(DEFAULT_BUNDLE).presence_level
TOKEN = "a-token-for-tests"
BOX = [40, 30, 90, 70]
NEW = "new"  # replaced with the id of a frozen frame
# The start of a PNG that would need 81 MB: it is refused before it is decoded, or it would be called damaged.
BOMB = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(8) + 2 * (9000).to_bytes(4, "big")).decode()
OTHER_METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")


Open = Callable[..., PageSink]


def decoded(answer: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(answer, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def raw_request(served: Served, request: bytes) -> bytes:
    """Send what no client sends; return the whole answer."""
    with socket.create_connection(("127.0.0.1", served.client.base_url.port), timeout=60) as raw:
        raw.sendall(request)
        return b"".join(iter(lambda: raw.recv(65536), b""))


def test_the_page_and_its_files_are_served_with_security_headers(served: Served) -> None:
    scripts = ("text/javascript", "application/javascript")
    kinds = {".html": "text/html", ".css": "text/css", ".js": scripts, ".svg": "image/svg"}
    for file in STATIC.iterdir():
        kind = kinds[file.suffix]
        answer = served.client.get("/" if file.name == "index.html" else f"/{file.name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers
        assert kind == "image/svg" or "http" not in answer.text  # nothing is loaded from the internet


def test_enrollment_by_a_box_reports_how_well_it_works(served: Served) -> None:
    answer = enroll(served, box_xyxy=BOX)
    assert answer.status_code == 201
    report = answer.json()
    assert (report["name"], report["shots"]) == ("cup", 1)
    assert 0.25 <= report["mask_cover"] * HEIGHT * WIDTH / (50 * 40) < 1.01  # the object in the box
    assert report["kept_tokens"] > 0
    assert 0 <= report["score"] <= 1
    assert 0 <= report["iou"] <= report["found_share"] <= 1
    assert report["area_ratio"] >= 0
    state = served.client.get("/api/state").json()
    assert [(one["name"], one["supports"][0]["has_mask"]) for one in state["classes"]] == [("cup", True)]
    assert [one["key"] for one in state["classes"][0]["supports"]] == [report["key"]]
    assert {one["level"] for one in state["classes"]} <= {None, BUNDLED_LEVEL}  # none before a frame with the class
    saving = {"is_there": False, "is_saved": False, "is_followed": False}
    assert state["bank"] == {"file": str(served.bank), **saving}
    assert state["frame"]["size_hw"] == [HEIGHT, WIDTH]
    assert enroll(served, box_xyxy=BOX).json()["shots"] == 2


def test_enrollment_by_a_mask_uses_exactly_that_mask(served: Served) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, : WIDTH // 2] = 255
    assert enroll(served, mask_png=png(mask)).json()["mask_cover"] == pytest.approx(0.5)
    path = "/api/supports.png?name=cup&index=0"
    bright, dim = (decoded(served.client.get(path + masked).content) for masked in ("", "&masked=1"))
    half = bright.shape[1] // 2
    assert np.array_equal(bright[:, : half - 1], dim[:, : half - 1])
    assert dim[:, half + 1 :].mean() < 0.4 * bright[:, half + 1 :].mean()


def test_enrollment_by_name_only_and_its_warnings(served: Served) -> None:
    report = enroll(served).json()
    assert (report["found_share"], report["iou"], report["area_ratio"]) == (None, None, None)
    assert [support.has_mask for support in served.model.enrolled.supports["cup"]] == [False]
    tiny = np.zeros((HEIGHT, WIDTH), np.uint8)
    tiny[4, 6] = 255
    refused = enroll(served, "speck", mask_png=png(tiny))
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("Picture 1 of 'speck': the object is too small or too thin")
    assert served.model.classes == ("cup",)


def test_a_class_that_looks_the_same_is_named() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[:4], labels[4:6], labels[6:8] = 1, 2, 3
    scores = np.array([0.91, 0.9, 0.3, 0.8], np.float32)  # the third is absent, the fourth has no pixels
    before = Prediction(("cup", "bowl", "pen", "mug"), scores, np.full_like(scores, 0.5), labels, None, {})
    mask = np.zeros((10, 10), np.bool_)
    mask[:5] = True
    assert find_confusions(before, "mug", mask) == (Confusion("cup", 0.91, 0.8),)
    assert find_confusions(before, "cup", mask) == ()
    assert find_confusions(before, "mug", np.zeros_like(mask)) == ()
    assert Confusion("cup", 0.91, 0.8).warning == (
        "cup also matches this object (score 0.91); add pictures that tell the two apart."
    )
    assert "(score 0.9962)" in Confusion("cup", 0.9962, 0.8).warning  # not 1.00


def test_support_pictures_are_served_while_the_model_is_busy(served: Served) -> None:
    enroll(served)
    go_on = threading.Event()
    busy = threading.Thread(target=served.model.read, args=(lambda _: go_on.wait(60),))
    busy.start()
    shown = {"name": "cup", "index": 0, "masked": 1}
    with ThreadPoolExecutor(20) as browsers:
        answers = list(browsers.map(lambda _: served.client.get("/api/supports.png", params=shown), range(20)))
    go_on.set()
    busy.join()
    assert {answer.status_code for answer in answers} == {200}


def test_classes_are_renamed_and_removed_and_supports_removed(served: Served) -> None:
    enroll(served, "a/b?c")
    enroll(served, "a/b?c", box_xyxy=BOX)
    assert served.client.delete("/api/supports", params={"name": "a/b?c", "index": 0}).status_code == 204
    assert [support.has_mask for support in served.model.enrolled.supports["a/b?c"]] == [True]
    gone = served.client.get("/api/supports.png", params={"name": "a/b?c", "index": 1})
    error = "Class 'a/b?c' has 1 pictures, so there is no picture 1."
    assert (gone.status_code, gone.json()) == (400, {"error": error})
    renamed = served.client.patch("/api/classes", json={"name": "a/b?c", "new_name": "猫"})
    assert renamed.status_code == 204
    assert served.client.delete("/api/classes", params={"name": "猫"}).status_code == 204
    assert served.model.classes == ()


def test_the_bank_is_saved_downloaded_and_loaded(served: Served) -> None:
    enroll(served, "cup")
    assert served.client.post("/api/bank/save").json() == {"file": str(served.bank)}
    assert served.client.get("/api/state").json()["bank"]["is_saved"]
    data = served.client.get("/api/bank").content
    assert data == served.bank.read_bytes()
    enroll(served, "extra")
    assert served.client.put("/api/bank", content=data).json() == {"classes": ["cup"]}
    damaged = served.client.put("/api/bank", content=data[:-9] + b"damaged!!")
    assert damaged.status_code == 409
    assert damaged.json()["error"].startswith("Bank uploaded.safetensors is damaged")
    assert served.model.classes == ("cup",)


def test_a_change_that_finishes_after_its_time_is_not_shown_as_saved(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_saved() -> bool:
        return bool(served.client.get("/api/state").json()["bank"]["is_saved"])

    may_end, remove = threading.Event(), FewShotModel.remove

    def slow(model: FewShotModel, name: str) -> None:
        assert may_end.wait(60)
        remove(model, name)

    enroll(served, "cup")
    served.client.post("/api/bank/save")
    monkeypatch.setattr(FewShotModel, "remove", slow)
    with monkeypatch.context() as patch:
        patch.setattr(shared_model, "_TIMEOUT_S", 1.0)
        answer = served.client.delete("/api/classes", params={"name": "cup"})
    assert (answer.status_code, "but still may" in answer.json()["error"]) == (503, True)
    assert is_saved()  # the control
    may_end.set()
    served.model.read(lambda _: None)
    assert (served.model.classes, is_saved()) == ((), False)


def test_the_stream_sends_the_newest_frames_as_a_recording_shows_them(served: Served) -> None:
    label_map = np.zeros((360, 640), np.uint8)
    label_map[100:300, 200:400] = 1
    scores = np.array([0.9, 0.8], np.float32)  # one has pixels, the other is listed
    answer = Prediction(("cup", "mug"), scores, np.full_like(scores, 0.5), label_map, None, {})

    def put(shade: int) -> np.ndarray:
        image = np.full((360, 640, 3), shade, np.uint8)
        served.page.write(Frame(image, 6, "cam", 0.0, time.monotonic(), 1.0), answer)
        return image

    image = put(90)
    with served.client.stream("GET", "/api/stream.mjpg") as stream:
        parts = stream.iter_raw()
        for next_shade in (140, 200):  # the frame from before the viewer connected, then a new one
            received = b""
            while not received.endswith(b"\r\n--frame\r\n"):
                received += next(parts)
            assert b"Content-Type: image/jpeg\r\n" in received
            shown, expected = decoded(received[received.index(b"\xff\xd8") :]), draw(image, answer).astype(int)
            assert np.abs(shown - expected).mean() < 2 < np.abs(image - expected).mean()
            assert np.abs(shown - expected)[:100].mean() < 2 < np.abs(image - expected)[:100].mean()  # the names
            image = put(next_shade)


def test_nothing_is_encoded_while_nobody_watches(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_hub, "encode_jpeg", lambda _: pytest.fail("encoded without a viewer"))
    show(served, picture())


def test_too_many_viewers_are_refused(served: Served) -> None:
    with contextlib.ExitStack() as watching:
        for _ in range(8):
            stream = watching.enter_context(served.client.stream("GET", "/api/stream.mjpg"))
            assert stream.status_code == 200
        refused = served.client.get("/api/stream.mjpg")
    assert (refused.status_code, refused.json()) == (503, {"error": "Viewer limit (8) reached; close another page."})


def test_only_the_latest_four_frozen_frames_are_kept(served: Served) -> None:
    first = freeze(served)
    size = served.client.post("/api/frames").json()
    assert (size["width"], size["height"]) == (WIDTH, HEIGHT)
    assert served.client.get(f"/api/frames/{first}.jpg").status_code == 200
    for _ in range(4):
        freeze(served)
    gone = served.client.get(f"/api/frames/{first}.jpg")
    assert (gone.status_code, gone.json()) == (400, {"error": "This frame is no longer available; freeze another one."})


def test_frames_near_a_frozen_one_are_kept_while_somebody_watches(served: Served) -> None:
    nothing = Prediction((), np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros((9, 9), np.uint8), None, {})

    def put(count: int) -> None:
        for shade in range(count):
            image = np.full((9, 9, 3), shade, np.uint8)
            served.page.write(Frame(image, shade, "cam", 0.0, time.monotonic(), 1.0), nothing)

    def step(frame_id: str, by: int) -> httpx.Response:
        return served.client.post("/api/frames", params={"beside": frame_id, "step": by})

    put(20)
    alone = served.client.post("/api/frames").json()
    assert (alone["earlier"], alone["later"]) == (0, 0)
    with served.client.stream("GET", "/api/stream.mjpg"):
        put(20)
        newest = served.client.post("/api/frames").json()
        assert (newest["earlier"], newest["later"]) == (11, 0)
        put(20)  # the moment stays what it was
    before = step(newest["id"], -3).json()
    assert (before["earlier"], before["later"]) == (8, 3)
    assert [int(served.page._hub.frozen(one["id"]).mean()) for one in (newest, before)] == [19, 16]
    assert step(before["id"], 3).json()["later"] == 0
    for refused in (step(before["id"], 4), step(before["id"], -9)):
        assert refused.json() == {"error": "There are 8 frames before this one, and 3 after it."}
    for refused in (step("gone", -1), step(alone["id"], 0)):
        assert "no longer available" in refused.json()["error"]


@pytest.mark.parametrize(("height", "kept"), [(100, 12), (1500, 7), (8000, 1)])
def test_frames_that_are_kept_take_no_more_than_32_mb(height: int, kept: int) -> None:
    channel = frame_hub._Channel()
    channel.viewers.add(asyncio.Event())
    image = np.zeros((height, 1000, 3), np.uint8)
    for _ in range(15):
        channel.put(Frame(image, 0, "cam", 0.0, 0.0, 1.0), SimpleNamespace())  # type: ignore[arg-type]
    assert len(channel.recent()) == kept
    channel.viewers.clear()
    channel.put(Frame(image, 0, "cam", 0.0, 0.0, 1.0), SimpleNamespace())  # type: ignore[arg-type]
    assert len(channel.recent()) == 1  # the control: nobody watches


def test_health_and_metrics(served: Served) -> None:
    assert served.client.get("/health").json()["source"] == "cam"
    text = served.client.get("/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples[("fsvit_edge_frames_total",)] == 7
    assert samples[("fsvit_edge_dropped_frames_total",)] == 2
    assert (samples[("fsvit_edge_scene_frames",)], samples[("fsvit_edge_false_alarm_bound",)]) == (0, 1)
    assert samples[("fsvit_edge_frame_age_seconds", ("quantile", "0.99"))] == 0.03
    assert samples[("fsvit_edge_source_state", ("state", "live"))] == 1
    assert samples[("fsvit_edge_sink_written_frames_total", ("sink", 'out "1".mp4'))] == 7
    assert samples[("fsvit_edge_sink_failed", ("sink", "b\\c"))] == 1
    served.page.report(health("lost"))
    assert served.client.get("/health").status_code == 503


def test_every_documented_path_answers_as_documented(served: Served) -> None:
    enroll(served, "cup")
    described = served.client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    for path, operations in described["paths"].items():
        if path in (
            "/api/stream.mjpg",
            "/api/scene",
        ):  # without end; and waits for frames, see test_scene_and_negatives.py
            continue
        for method, operation in operations.items():
            url = path.replace("{id}", freeze(served))
            params = {"name": "nothing", "index": 0} if "parameters" in operation and "{id}" not in path else None
            body = operation.get("requestBody", {}).get("content", {})
            answer = served.client.request(method, url, params=params, json={} if "application/json" in body else None)
            documented = [int(code) for code in operation["responses"] if code != "default"]
            assert answer.status_code in (*documented, 400, 409), (method, path, answer.text)
            assert operation["description"].endswith("."), path
    assert "HTTP API" in served.client.get("/docs").text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("POST", "/api/classes", b"{", 400, "Body must be a JSON object."),
        ("POST", "/api/classes", b"[1]", 400, "Body must be a JSON object."),
        ("POST", "/api/classes", b"[" * 100_000, 400, "Body must be a JSON object."),
        ("POST", "/api/classes", b"{}", 400, "Field name is required."),
        ("POST", "/api/classes", {"name": "x", "frame_id": "gone"}, 400, "This frame is no longer available"),
        ("POST", "/api/classes", {"name": "", "frame_id": NEW}, 400, "must be 1 to 80 printable characters"),
        ("POST", "/api/classes", {"name": "x\n", "frame_id": NEW}, 400, "must be 1 to 80 printable characters"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "box_xyxy": [1, 2, 3]}, 400, "box_xyxy[3] is required"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "box_xyxy": [1, 2, 1e9, 4]}, 400, "[2] must be less"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "box_xyxy": [5, 5, 6, 6]}, 400, "less than 4 x 4"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "box_xyxy": BOX, "mask_png": ""}, 400, "not both"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "mask_png": "%%%"}, 400, "is not valid base64"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "mask_png": "AAAA"}, 400, "must be a PNG of the"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "mask_png": BOMB}, 400, "got 9000 x 9000"),
        ("PATCH", "/api/classes", {"name": "x", "new_name": "y"}, 400, "'x' is not enrolled"),
        ("DELETE", "/api/classes?name=x", b"", 400, "'x' is not enrolled"),
        ("DELETE", "/api/supports?name=x&index=-1", b"", 400, "Parameter index must be greater than or equal to 0."),
        ("GET", "/api/supports.png?name=x&index=-1", b"", 400, "Parameter index must be greater than or equal to 0."),
        ("GET", "/api/supports.png?name=x&index=", b"", 400, "Parameter index must be a valid integer"),
        ("GET", "/api/supports.png?name=x&index=0", b"", 400, "Class 'x' has 0 pictures, so there is no picture 0."),
        ("GET", "/api/supports.png?name=&index=0", b"", 400, "Class '' has 0 pictures, so there is no picture 0."),
        ("PUT", "/api/bank", b"not a bank", 409, "Bank uploaded.safetensors is damaged or not a safetensors file"),
        *((method, "/api/state", b"", 405, "Method Not Allowed") for method in OTHER_METHODS),
    ],
)  # fmt: skip
def test_unusable_input_gets_one_sentence(
    served: Served, method: str, path: str, body: Any, status: int, reason: str
) -> None:
    if isinstance(body, dict) and body.get("frame_id") == NEW:
        body["frame_id"] = freeze(served)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    answer = served.client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status
    assert reason in answer.json()["error"]
    assert served.model.classes == ()


# ---------------------------------------------------------------------------------------------------- access control


@pytest.fixture
def guarded(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A second page on the same model that requires a token."""
    monkeypatch.setattr(access, "WRONG_TOKEN_DELAY_S", 0.0)
    bank = tmp_path / "other.safetensors"
    with (
        PageSink("http://127.0.0.1:0", served.model, bank, TOKEN, ["robot.example"]) as page,
        client_of(page.address.partition("?")[0]) as client,
    ):
        assert page.address.endswith(f"/?token={TOKEN}")
        yield client


PATHS = ("/", "/page.js", "/api/state", "/api/stream.mjpg", "/metrics", "/health", "/openapi.json", "/docs", "/nowhere")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"headers": {"Authorization": "Bearer wrong"}},
        {"headers": {"Cookie": "fsvit_edge_token=wrong"}},
        {"params": {"token": ""}},
    ],
)
def test_without_the_token_everything_is_refused(guarded: httpx.Client, how: dict[str, Any]) -> None:
    for path in PATHS:
        answer = guarded.get(path, **how)
        error = "Access token required; open the address that the run printed."
        assert (answer.status_code, answer.json()) == (401, {"error": error}), path


def test_a_token_is_accepted_in_the_header_the_address_and_then_the_cookie(guarded: httpx.Client) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/health", headers=bearer).status_code == 503
    assert guarded.get("/api/state").status_code == 401
    first = guarded.get("/", params={"token": TOKEN, "at": 7})
    assert (first.status_code, first.headers["location"]) == (303, "/?at=7")
    assert "; HttpOnly; Path=/; SameSite=lax" in first.headers["set-cookie"]
    assert guarded.get("/api/state").status_code == 200  # the client keeps the cookie


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8080", 200),
        ("[::1]:8080", 200),
        ("192.168.1.9", 200),  # an address cannot be rebound to another machine
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("", 421),
    ],
)
def test_unknown_host_names_are_refused(served: Served, host: str, status: int) -> None:
    assert served.client.get("/api/state", headers={"Host": host}).status_code == status


def test_a_host_name_can_be_allowed(guarded: httpx.Client) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "robot.example"}
    assert guarded.get("/api/state", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_requests_from_another_site_are_refused(served: Served, headers: dict[str, str]) -> None:
    for method, path in (("POST", "/api/frames"), ("DELETE", "/api/classes"), ("PUT", "/api/bank")):
        assert served.client.request(method, path, headers=headers).status_code == 403
    own = {"Origin": str(served.client.base_url).rstrip("/")}
    assert served.client.post("/api/frames", headers=own).status_code == 201


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_only_json_is_accepted_so_forms_on_other_sites_are_refused(served: Served, kind: str) -> None:
    answer = served.client.post("/api/classes", content=b"{}", headers={"Content-Type": kind})
    error = "Send JSON, with the header Content-Type: application/json."
    assert (answer.status_code, answer.json()) == (400, {"error": error})


@pytest.mark.parametrize(
    "path",
    [
        *("/../app.py", "/static/index.html", "/page.js/../../app.py", "/%2e%2e/app.py", "//etc/passwd"),
        *("/api/frames/../../../etc/passwd.jpg", "/api/frames/%2fetc%2fpasswd.jpg", "/page.css%00.py"),
    ],
)  # fmt: skip
def test_no_path_leads_to_other_files(served: Served, path: str) -> None:
    answer = raw_request(served, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert 400 <= int(answer.split()[1]) < 500
    assert b"import " not in answer
    assert b"root:" not in answer


def test_large_bodies_are_refused_with_and_without_content_length(served: Served) -> None:
    headers = {"Content-Type": "application/json"}
    announced = served.client.post("/api/classes", content=b" " * 4_000_001, headers=headers)
    assert announced.status_code == 413

    def dripping() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 100_000

    with contextlib.suppress(httpx.WriteError):  # the server disconnects a client that keeps sending
        assert served.client.post("/api/classes", content=dripping(), headers=headers).status_code == 413
    with socket.create_connection(("127.0.0.1", served.client.base_url.port), timeout=60) as raw:
        raw.sendall(b"GET /" + b"x" * 200_000)
        assert raw.recv(4096).split()[1] == b"400"


# ------------------------------------------------------------------------------------------------------ opening it


@pytest.fixture
def opened(loaded: FewShotModel, tmp_path: Path) -> Open:
    return functools.partial(PageSink, model=LiveModel(loaded), bank_path=tmp_path / "bank.safetensors")


@pytest.mark.parametrize(
    "uri",
    ["http://", "http://127.0.0.1:99999", "http://127.0.0.1/path", "http://u:p@127.0.0.1", "http://127.0.0.1?x=1"],
)
def test_an_address_with_more_than_host_and_port_is_refused(opened: Open, uri: str) -> None:
    with pytest.raises(InputError, match="Unsupported page address; give only http://ADDRESS:PORT"):
        opened(uri)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize("token", ["", "short", "has blanks in it", "semi;colon=", "x" * 200])
def test_a_weak_token_is_refused(opened: Open, host: str, token: str) -> None:
    with pytest.raises(InputError, match="--token must be 8 to 128 letters"):
        opened(f"http://{host}:0", token=token)


def test_a_page_that_others_can_reach_gets_a_random_token(opened: Open) -> None:
    tokens = set()
    for _ in range(2):
        with opened("http://0.0.0.0:0") as page:
            address, _, token = page.address.partition("?token=")
            assert "0.0.0.0" not in address
            assert httpx.get(f"{address}api/state", trust_env=False).status_code == 401
            tokens.add(token)
    assert len(tokens) == 2
    assert min(map(len, tokens)) >= 20
    with opened("http://127.0.0.1:0") as page:
        assert "token" not in page.address


def test_a_port_in_use_is_reported(opened: Open) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FsvitEdgeError, match=f"cannot be served at {host}: Address already in use; choose"):
            opened(f"http://{host}")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.1", False), ("robot.local", False)],
)  # fmt: skip
def test_loopback_addresses(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
