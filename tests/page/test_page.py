"""The page's API and its guards, over real sockets; the browser is in test_page_in_browser.py."""

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import Health, Percentiles, SinkStatus
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.live.sources.base import SourceStatus
from fsvit_edge.page import access, frame_hub
from fsvit_edge.page.access import is_loopback
from fsvit_edge.page.enrollment import Confusion, find_confusions
from fsvit_edge.page.sink import PageSink
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, read_manifest
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError
from fsvit_edge.runtime.overlay import draw
from fsvit_edge.runtime.prediction import Prediction
from fsvit_edge.runtime.predictor import FewShotModel

HEIGHT, WIDTH = 96, 128
STATIC = Path(access.__file__).parent / "static"
SHIPPED_LEVEL = read_manifest(DEFAULT_BUNDLE).presence_level
TOKEN = "a-token-for-tests"
NEW = "new"  # stands for a frame that is frozen then


def picture(shade: int = 90) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), shade, np.uint8)
    image[30:70, 40:90] = (200, 40, 20)
    return image


def health(state: str = "live") -> Health:
    status = SourceStatus(state, 0.0, captured=9, dropped=2)  # type: ignore[arg-type]
    sinks = (SinkStatus('out "1".mp4', 7, 1), SinkStatus("b\\c", 0, 0, "full"))
    age = Percentiles(10.0, 20.0, 30.0)
    return Health(
        *(1.0, 2.0, "boot", 3.0, "cam", status, "m", "e", "p", ("cup",), 7, 12.5, age, {"head": age}, 100.0, sinks)
    )


class Served(NamedTuple):
    page: PageSink
    model: LiveModel
    client: httpx.Client
    bank: Path


@pytest.fixture(scope="module")
def loaded() -> Iterator[FewShotModel]:
    with FewShotModel.load(threads=1) as model:
        yield model


@pytest.fixture
def served(loaded: FewShotModel, tmp_path: Path) -> Iterator[Served]:
    """A page beside a loop that judges nothing but does what is asked."""
    for name in loaded.classes:
        loaded.remove(name)
    model = LiveModel(loaded)
    bank = tmp_path / "bank.safetensors"
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(0.002):
            model.run_requests()

    looping = threading.Thread(target=loop)
    looping.start()
    with (
        PageSink("http://127.0.0.1:0", model, bank) as page,
        httpx.Client(base_url=page.address, timeout=10, trust_env=False) as client,
    ):
        show(Served(page, model, client, bank), picture())
        yield Served(page, model, client, bank)
        stop.set()
        looping.join()
        model.close()


def show(served: Served, image: np.ndarray) -> None:
    prediction = served.model._model.predict(image)
    served.page.write(Frame(image, 5, "cam", 0.0, time.monotonic(), 1.0), prediction)
    served.page.report(health())


def freeze(served: Served) -> str:
    frozen = served.client.post("/api/frames")
    assert frozen.status_code == 201
    assert (frozen.json()["width"], frozen.json()["height"]) == (WIDTH, HEIGHT)
    return str(frozen.json()["id"])


def enroll(served: Served, name: str = "cup", **how: Any) -> httpx.Response:
    return served.client.post("/api/classes", json={"name": name, "frame_id": freeze(served), **how})


def png(mask: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", mask)[1].tobytes()).decode()


def test_the_page_and_its_files_are_served_with_their_guards(served: Served) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg"}
    for file in STATIC.iterdir():
        kind = kinds[file.suffix]
        answer = served.client.get("/" if file.name == "index.html" else f"/{file.name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers
        assert kind == "image/svg" or "http" not in answer.text  # nothing is fetched from elsewhere


def test_enrollment_by_a_box_says_at_once_how_good_it_is(served: Served) -> None:
    answer = enroll(served, box_xyxy=[40, 30, 90, 70])
    assert answer.status_code == 201
    report = answer.json()
    assert (report["name"], report["shots"]) == ("cup", 1)
    assert 0.25 <= report["mask_cover"] * HEIGHT * WIDTH / (50 * 40) < 1.01  # the thing in the box
    assert report["kept_tokens"] > 0
    assert 0 <= report["score"] <= 1
    assert 0 <= report["found_share"] <= 1
    assert 0 <= report["iou"] <= report["found_share"]
    assert report["area_ratio"] >= 0
    state = served.client.get("/api/state").json()
    assert [(one["name"], one["supports"]) for one in state["classes"]] == [("cup", [{"has_mask": True}])]
    assert {one["level"] for one in state["classes"]} <= {
        None,
        SHIPPED_LEVEL,
    }  # none before the first frame with the class
    assert state["bank"] == {"file": str(served.bank), "is_saved": False}
    assert state["frame"]["size_hw"] == [HEIGHT, WIDTH]
    assert enroll(served, box_xyxy=[40, 30, 90, 70]).json()["shots"] == 2


def test_enrollment_by_a_mask_takes_just_that_mask(served: Served) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, : WIDTH // 2] = 255
    assert enroll(served, mask_png=png(mask)).json()["mask_cover"] == pytest.approx(0.5)
    seen = served.client.get("/api/supports.png", params={"name": "cup", "index": 0, "seen": 1})
    plain = served.client.get("/api/supports.png", params={"name": "cup", "index": 0})
    bright, dim = (cv2.imdecode(np.frombuffer(one.content, np.uint8), 1).astype(int) for one in (plain, seen))
    half = bright.shape[1] // 2
    assert np.array_equal(bright[:, : half - 1], dim[:, : half - 1])
    assert dim[:, half + 1 :].mean() < 0.4 * bright[:, half + 1 :].mean()


def test_enrollment_by_name_alone_and_its_warnings(served: Served) -> None:
    report = enroll(served).json()
    assert (report["found_share"], report["iou"], report["area_ratio"]) == (None, None, None)
    assert [support.has_mask for support in served.model.supports["cup"]] == [False]
    tiny = np.zeros((HEIGHT, WIDTH), np.uint8)
    tiny[4, 6] = 255
    refused = enroll(served, "speck", mask_png=png(tiny))
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("Picture 1 of 'speck' shows the thing too small or too thin")
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


def test_pictures_are_shown_while_the_model_is_busy(served: Served) -> None:
    enroll(served)
    go_on = threading.Event()
    busy = threading.Thread(target=served.model.read, args=(lambda _: go_on.wait(10),))
    busy.start()
    shown = {"name": "cup", "index": 0, "seen": 1}
    with ThreadPoolExecutor(20) as browsers:
        answers = list(browsers.map(lambda _: served.client.get("/api/supports.png", params=shown), range(20)))
    go_on.set()
    busy.join()
    assert {answer.status_code for answer in answers} == {200}


def test_a_picture_that_is_not_there_is_refused(served: Served) -> None:
    enroll(served)
    for name, index in [("cup", "1"), ("cup", "-1"), ("mug", "0"), ("", "0"), ("cup", "")]:
        gone = served.client.get("/api/supports.png", params={"name": name, "index": index})
        assert gone.status_code == 400
        assert "picture" in gone.json()["error"] or "index" in gone.json()["error"]


def test_classes_are_renamed_and_removed_and_pictures_forgotten(served: Served) -> None:
    enroll(served, "a/b?c")
    enroll(served, "a/b?c", box_xyxy=[40, 30, 90, 70])
    assert served.client.delete("/api/supports", params={"name": "a/b?c", "index": 0}).status_code == 204
    assert [support.has_mask for support in served.model.supports["a/b?c"]] == [True]
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


def test_the_stream_gives_the_newest_frames_to_each_watcher(served: Served) -> None:
    with served.client.stream("GET", "/api/stream.mjpg") as stream:
        received = b""
        parts = stream.iter_raw()
        for shade in range(100, 200, 10):
            show(served, picture(shade))
            received += next(parts)
        assert received.count(b"--frame\r\nContent-Type: image/jpeg") >= 2
        start = received.index(b"\xff\xd8")
        jpeg = received[start : received.index(b"\r\n--frame", start)]
        assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1).shape == (HEIGHT, WIDTH, 3)


def test_the_stream_shows_what_a_recording_shows(served: Served) -> None:
    image = np.full((360, 640, 3), 90, np.uint8)
    label_map = np.zeros((360, 640), np.uint8)
    label_map[100:300, 200:400] = 1
    scores = np.array([0.9, 0.8], np.float32)  # one has pixels, the other is listed
    answer = Prediction(("cup", "mug"), scores, np.full_like(scores, 0.5), label_map, None, {})
    expected = draw(image, answer).astype(int)
    frame = Frame(image, 6, "cam", 0.0, time.monotonic(), 1.0)
    served.page.write(frame, answer)
    with served.client.stream("GET", "/api/stream.mjpg") as stream:
        parts = stream.iter_raw()
        for _ in range(2):  # what was there before the watcher came, then what comes while it watches
            received = b""
            while b"\xff\xd9" not in received:
                received += next(parts)
            jpeg = received[received.index(b"\xff\xd8") :]
            shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
            assert np.abs(shown - expected).mean() < 2 < np.abs(image - expected).mean()
            assert np.abs(shown - expected)[:100].mean() < 2 < np.abs(image - expected)[:100].mean()  # the names
            served.page.write(frame, answer)


def test_nothing_is_encoded_while_nobody_watches(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_hub, "_jpeg", lambda _: pytest.fail("encoded for nobody"))
    show(served, picture())


def test_too_many_watchers_are_refused(served: Served) -> None:
    watching = [served.client.stream("GET", "/api/stream.mjpg") for _ in range(8)]
    for one in watching:
        assert one.__enter__().status_code == 200
    refused = served.client.get("/api/stream.mjpg")
    assert (refused.status_code, refused.json()) == (503, {"error": "8 watch already; close another page."})
    for one in watching:
        one.__exit__(None, None, None)


def test_old_frozen_frames_go(served: Served) -> None:
    first = freeze(served)
    assert served.client.get(f"/api/frames/{first}.jpg").status_code == 200
    for _ in range(4):
        freeze(served)
    gone = served.client.get(f"/api/frames/{first}.jpg")
    assert (gone.status_code, gone.json()) == (400, {"error": "This frame is not kept any more; freeze another one."})


def test_health_and_metrics_are_told(served: Served) -> None:
    assert served.client.get("/health").json()["source"] == "cam"
    text = served.client.get("/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples[("fsvit_edge_frames_total",)] == 7
    assert samples[("fsvit_edge_dropped_frames_total",)] == 2
    assert samples[("fsvit_edge_frame_age_seconds", ("quantile", "0.99"))] == 0.03
    assert samples[("fsvit_edge_source_state", ("state", "live"))] == 1
    assert samples[("fsvit_edge_sink_written_frames_total", ("sink", 'out "1".mp4'))] == 7
    assert samples[("fsvit_edge_sink_failed", ("sink", "b\\c"))] == 1
    served.page.report(health("lost"))
    assert served.client.get("/health").status_code == 503


def test_every_path_of_the_description_answers_as_described(served: Served) -> None:
    enroll(served, "cup")
    described = served.client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    for path, operations in described["paths"].items():
        if path == "/api/stream.mjpg":
            continue
        for method, operation in operations.items():
            url = path.replace("{id}", freeze(served))
            params = {"name": "nothing", "index": 0} if "parameters" in operation and "{id}" not in path else None
            body = operation.get("requestBody", {}).get("content", {})
            answer = served.client.request(method, url, params=params, json={} if "application/json" in body else None)
            known = [int(code) for code in operation["responses"]]
            assert answer.status_code in (*known, 400, 409), (method, path, answer.text)
    assert "/api/classes" in served.client.get("/docs").text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("POST", "/api/classes", b"{", 400, "This is no JSON object."),
        ("POST", "/api/classes", b"[1]", 400, "This is no JSON object."),
        ("POST", "/api/classes", b"[" * 100_000, 400, "This is no JSON object."),
        ("POST", "/api/classes", b"{}", 400, "The field name must be a text."),
        ("POST", "/api/classes", {"name": "x", "frame_id": "gone"}, 400, "This frame is not kept any more"),
        ("POST", "/api/classes", {"name": "", "frame_id": NEW}, 400, "must be 1 to 80 printable characters"),
        ("POST", "/api/classes", {"name": "x\n", "frame_id": NEW}, 400, "must be 1 to 80 printable characters"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "box_xyxy": [1, 2, 3]}, 400, "box_xyxy must be [left"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "box_xyxy": [1, 2, 1e9, 4]}, 400, "box_xyxy must be"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "box_xyxy": [5, 5, 6, 6]}, 400, "less than 4 x 4"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "box_xyxy": [], "mask_png": ""}, 400, "not both"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "mask_png": "%%%"}, 400, "is not base64"),
        ("POST", "/api/classes", {"name": "x", "frame_id": NEW, "mask_png": "AAAA"}, 400, "must be a PNG of the"),
        ("PATCH", "/api/classes", {"name": "x", "new_name": "y"}, 400, "'x' is not enrolled"),
        ("DELETE", "/api/classes?name=x", b"", 400, "'x' is not enrolled"),
        ("DELETE", "/api/supports?name=x&index=-1", b"", 400, "index must be a number"),
        ("PUT", "/api/bank", b"not a bank", 409, "Bank uploaded.safetensors is damaged or not a safetensors file"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_in_one_sentence(
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


def test_a_picture_bomb_is_refused_before_it_is_unfolded(served: Served) -> None:
    bomb = cv2.imencode(".png", np.zeros((9000, 9000), np.uint8))[1].tobytes()
    answer = enroll(served, mask_png=base64.b64encode(bomb).decode())
    assert (answer.status_code, "got 9000 x 9000" in answer.text) == (400, True)


# ------------------------------------------------------------------------------------------------------------ guards


@pytest.fixture
def guarded(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A second page on the same model that asks for a token."""
    monkeypatch.setattr(access, "_WRONG_TOKEN_DELAY_S", 0.0)
    bank = tmp_path / "other.safetensors"
    with (
        PageSink("http://127.0.0.1:0", served.model, bank, TOKEN, ["robot.example"]) as page,
        httpx.Client(base_url=page.address.partition("?")[0], timeout=10, trust_env=False) as client,
    ):
        assert page.address.endswith(f"/?token={TOKEN}")
        yield client


PATHS = ("/", "/page.js", "/api/state", "/api/stream.mjpg", "/metrics", "/health", "/openapi.json", "/docs", "/nowhere")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"headers": {"Authorization": "Bearer wrong"}},
        {"cookies": {"fsvit_edge_token": "wrong"}},
        {"params": {"token": ""}},
    ],
)
def test_without_the_token_nothing_is_told(guarded: httpx.Client, path: str, how: dict[str, Any]) -> None:
    answer = httpx.get(guarded.base_url.join(path), trust_env=False, timeout=10, **how)
    assert (answer.status_code, answer.json()) == (
        401,
        {"error": "A token is needed; open the address that the run has printed."},
    )


def test_a_token_opens_by_header_by_address_and_then_by_cookie(guarded: httpx.Client) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/health", headers=bearer).status_code == 503
    assert guarded.get("/api/state").status_code == 401
    first = guarded.get("/", params={"token": TOKEN})
    assert (first.status_code, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert guarded.get("/api/state").status_code == 200  # the client keeps the cookie


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8080", 200),
        ("[::1]:8080", 200),
        ("192.168.1.9", 200),  # an address is nobody's but ours, however it was reached
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("", 421),
    ],
)
def test_another_name_is_not_ours(served: Served, host: str, status: int) -> None:
    assert served.client.get("/api/state", headers={"Host": host}).status_code == status


def test_a_name_can_be_allowed(guarded: httpx.Client) -> None:
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
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/frames"), ("DELETE", "/api/classes"), ("PUT", "/api/bank")]
)
def test_another_sites_page_changes_nothing(served: Served, headers: dict[str, str], method: str, path: str) -> None:
    answer = served.client.request(method, path, headers=headers)
    assert answer.status_code == 403
    own = {"Origin": str(served.client.base_url).rstrip("/")}
    assert served.client.post("/api/frames", headers=own).status_code == 201


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_of_another_site_is_no_json(served: Served, kind: str) -> None:
    answer = served.client.post("/api/classes", content=b"{}", headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]) == (400, "Send JSON, with Content-Type: application/json.")


@pytest.mark.parametrize(
    "path",
    [
        *("/../api.py", "/static/index.html", "/page.js/../../api.py", "/%2e%2e/api.py", "/index.html", "//etc/passwd"),
        *("/api/frames/../../../etc/passwd.jpg", "/api/frames/%2fetc%2fpasswd.jpg", "/page.css%00.py"),
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file(served: Served, path: str) -> None:
    with socket.create_connection(("127.0.0.1", served.page._server.port), timeout=5) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    assert 400 <= int(answer.split()[1]) < 500
    assert b"import " not in answer
    assert b"root:" not in answer


def test_too_much_is_refused_whether_it_is_announced_or_not(served: Served) -> None:
    headers = {"Content-Type": "application/json"}
    announced = served.client.post("/api/classes", content=b" " * 4_000_001, headers=headers)
    assert announced.status_code == 413

    def dripping() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 100_000

    with contextlib.suppress(httpx.WriteError):  # the server hangs up on who goes on sending
        assert served.client.post("/api/classes", content=dripping(), headers=headers).status_code == 413
    with socket.create_connection(("127.0.0.1", served.page._server.port), timeout=5) as raw:
        raw.sendall(b"GET /" + b"x" * 200_000)
        assert raw.recv(4096).split()[1] == b"400"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(served: Served, method: str) -> None:
    assert served.client.request(method, "/api/state").status_code == 405


# ------------------------------------------------------------------------------------------------------ opening it


@pytest.mark.parametrize(
    "uri",
    ["http://", "http://127.0.0.1:99999", "http://127.0.0.1/path", "http://u:p@127.0.0.1", "http://127.0.0.1?x=1"],
)
def test_an_address_with_more_than_host_and_port_is_refused(loaded: FewShotModel, uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The page's sink is http://ADDRESS:PORT"):
        PageSink(uri, LiveModel(loaded), tmp_path / "bank.safetensors")


@pytest.mark.parametrize("token", ["", "short", "has blanks in it", "semi;colon=", "x" * 200])
def test_a_token_that_protects_nothing_is_refused(loaded: FewShotModel, token: str, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "127.0.0.1"):
        with pytest.raises(InputError, match="--token must be 8 to 128 letters"):
            PageSink(f"http://{host}:0", LiveModel(loaded), tmp_path / "bank.safetensors", token)


def test_a_page_that_others_can_reach_makes_a_token(loaded: FewShotModel, tmp_path: Path) -> None:
    tokens = set()
    for _ in range(2):
        with PageSink("http://0.0.0.0:0", LiveModel(loaded), tmp_path / "bank.safetensors") as page:
            address, _, token = page.address.partition("?token=")
            assert httpx.get(f"{address}api/state".replace("0.0.0.0", "127.0.0.1"), trust_env=False).status_code == 401
            tokens.add(token)
    assert len(tokens) == 2
    assert min(map(len, tokens)) >= 20
    with PageSink("http://127.0.0.1:0", LiveModel(loaded), tmp_path / "bank.safetensors") as page:
        assert "token" not in page.address


def test_a_port_that_is_taken_is_told(loaded: FewShotModel, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            FsvitEdgeError, match=rf"cannot be served at 127\.0\.0\.1:{port}: Address already in use; name"
        ):
            PageSink(f"http://127.0.0.1:{port}", LiveModel(loaded), tmp_path / "bank.safetensors")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.1", False), ("robot.local", False)],
)  # fmt: skip
def test_what_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
