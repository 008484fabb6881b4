"""Outputs of a run replace neither each other nor what it reads."""

from pathlib import Path

import pytest

from fsvit_edge.live.collisions import refuse_collisions
from fsvit_edge.runtime.errors import InputError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "b.safetensors": "bank",
        "list.txt": "door = 0",
        "other.json": '{"frames": 1}',
        "cut.json": '{"source_status"',
        "frame_000000.jpg": "picture",
    }.items():
        Path(name).write_text(text)
    Path("link.json").symlink_to("b.safetensors")


@pytest.mark.parametrize(
    ("sinks", "health", "message"),
    [
        (["a.mp4", "x/../a.mp4"], None, "Two sinks would write to x/../a.mp4"),
        (["-", "-"], None, "Two sinks would write to -"),
        (["mqtt://host/a", "mqtt://host/a/"], None, "Two sinks would write to mqtt://host/a"),
        (["pictures/", "pictures"], None, "Two sinks would write to pictures"),
        (["b.safetensors"], None, "The sink b.safetensors is the bank, too"),
        (["masks:a/", "masks:./a"], None, "Two sinks would write to masks:./a"),
        (["masks:a/", "a/"], None, "Two sinks would write to a/"),
        (["./"], None, "would write over the source"),
        (["masks:./"], None, "would write over the source"),
        (["a.jsonl"], "a.jsonl", "The health file a.jsonl is a sink, too"),
        ([], "b.safetensors", "The health file b.safetensors is the bank, too"),
        ([], "link.json", "The health file link.json is the bank, too"),
        ([], "list.txt", "The file list.txt is not the health of a run"),
        ([], "other.json", "The file other.json is not the health of a run"),
        ([], "cut.json", "The file cut.json is not the health of a run"),
    ],
)
def test_an_output_that_would_replace_something_is_refused(sinks: list[str], health: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        refuse_collisions(["frame_000000.jpg"], sinks, Path("b.safetensors"), Path(health) if health else None)


@pytest.mark.parametrize("text", [None, "", '{"uptime_s": 1.0, "source_status": {"state": "live"}}'])
def test_other_outputs_and_an_earlier_health_are_fine(text: str | None) -> None:
    if text is not None:
        Path("health.json").write_text(text)
    sinks = ["-", "a.mp4", "a.jsonl", "a/", "masks:b/", "mqtt://host/a", "mqtt://host/b", "http://127.0.0.1:8080"]
    refuse_collisions(["frame_000000.jpg", "0", "rtsp://h/a"], sinks, Path("b.safetensors"), Path("health.json"))


def test_the_health_may_be_no_file() -> None:
    refuse_collisions(["0"], [], Path("b.safetensors"), Path("/dev/null"))
