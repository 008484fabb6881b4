"""`run` and `label` with a box: what they write is what they write without, and what a box cannot do is refused."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from backend_stub import Loopback
from box_answers import ADDRESS, HERE, gray
from sample_files import colors, write_video

from fsvit_edge.cli.main import main
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.label.job import LabelOptions, LabelResult, label
from fsvit_edge.label.labeler import LabelerOptions
from fsvit_edge.label.pictures import STATE_NAME
from fsvit_edge.live.run import RunOptions, run_source
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.pictures import write_image

FRAMES = 24


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video in which things come and go."""
    frames = [colors(1, 120, 160) if index in range(4, 14) else gray(90) for index in range(FRAMES)]
    write_video(tmp_path / "clip.mp4", frames, 8.0)
    return tmp_path / "clip.mp4"


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for index in range(6):
        write_image(tmp_path / "album" / f"{index}.png", colors(index, 60 + index, 80))
    (tmp_path / "album" / "broken.png").write_bytes(b"no")
    return tmp_path / "album"


def away_at(box: type[Loopback], monkeypatch: pytest.MonkeyPatch, calls: range) -> None:
    """Let the box be away when it is asked the n-th time, from 0."""
    asked: Iterator[int] = count()
    monkeypatch.setattr(box, "away", staticmethod(lambda: "it was killed" if next(asked) in calls else ""))


def lines(file: Path) -> list[dict[str, Any]]:
    """What was written, without what differs between two runs of the same."""
    times = ("age_ms", "latency_ms", "monotonic_s", "wall_time_s")
    read = [json.loads(line) for line in file.read_text().splitlines()]
    return [
        {name: value for name, value in one.items() if name not in times} for one in read if one["event"] != "state"
    ]


@pytest.mark.parametrize("steady", [False, True])
def test_a_run_with_a_box_writes_what_a_run_here_writes_and_loses_no_frame(
    box: type[Loopback], monkeypatch: pytest.MonkeyPatch, clip: Path, banks: Path, tmp_path: Path, steady: bool
) -> None:
    options = RunOptions(bank=banks / "two.safetensors", threads=1, steady=steady, **HERE)
    run_source(str(clip), [str(tmp_path / "here.jsonl")], options, say=lambda _: None)
    away_at(box, monkeypatch, range(3, 9))
    said: list[str] = []
    remote = RunOptions(bank=Path("two"), engine=ADDRESS, steady=steady)
    result = run_source(str(clip), [str(tmp_path / "box.jsonl")], remote, say=said.append)
    assert lines(tmp_path / "box.jsonl") == lines(tmp_path / "here.jsonl")
    frames = [one for one in lines(tmp_path / "box.jsonl") if one["event"] == "frame"]
    assert [one["sequence"] for one in frames] == list(range(FRAMES))
    assert {one["present"] for frame in frames for one in frame["classes"]} == {True, False}
    assert [line.partition(",")[0] for line in said] == [
        f"The box {ADDRESS} does not answer",
        f"The box {ADDRESS} answers again.",
    ]
    health = result.to_dict()
    assert (result.exit_code, health["model"], health["engine"], health["frames"]) == (0, "cst-nano", "triton", FRAMES)
    assert "network" in health["latency_ms"]


@pytest.mark.parametrize("is_away", [True, False])
def test_health_json_lines_and_statistics_tell_that_the_box_is_away(
    box: type[Loopback], monkeypatch: pytest.MonkeyPatch, clip: Path, tmp_path: Path, is_away: bool
) -> None:
    asked: Iterator[int] = count()
    healths: list[dict[str, Any]] = []

    def away() -> str:
        if (tmp_path / "health.json").is_file():
            healths.append(json.loads((tmp_path / "health.json").read_bytes()))
        return "it was killed" if is_away and next(asked) in range(5, 12) else ""

    monkeypatch.setattr("fsvit_edge.remote.client._PAUSE_S", 0.15)
    monkeypatch.setattr(box, "away", staticmethod(away))
    said: list[str] = []
    options = RunOptions(bank=Path("two"), engine=ADDRESS, stats_s=0.1, health_file=tmp_path / "health.json")
    run_source(str(clip), [str(tmp_path / "box.jsonl")], options, say=said.append)
    records = [json.loads(line) for line in (tmp_path / "box.jsonl").read_text().splitlines()]
    states = [(one["state"], one["box"]) for one in records if one["event"] == "state"]
    told = [(state, of_box["address"], of_box["state"], of_box["trouble"]) for state, of_box in states]
    expected = [("live", ADDRESS, "lost", "it was killed"), ("live", ADDRESS, "live", "")]
    assert told == (expected if is_away else [])
    assert all(len(of_box["bank_sha256"]) == 64 for _, of_box in states)
    seen = [(one["box"]["state"], one["not_live"]) for one in healths]
    assert (("lost", [ADDRESS]) in seen) == is_away
    assert set(map(str, seen)) <= {str(("lost", [ADDRESS])), str(("live", []))}
    assert any(line.endswith(" MB, box lost") for line in said) == is_away
    last = json.loads((tmp_path / "health.json").read_bytes())
    assert (last["box"]["state"], last["not_live"]) == ("live", [])


def label_with(engine: dict[str, Any], bank: Path, album: Path, output: Path, **options: Any) -> LabelResult:
    of_labeler = {name: options.pop(name) for name in ("classes", "min_score") if name in options}
    labeler = LabelerOptions(bank, **engine, **of_labeler)
    return label(LabelOptions(labeler, (str(album),), output, "coco"), **options)


def written(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and STATE_NAME not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("choice", [{}, {"classes": ("cat",), "min_score": 0.985}])
def test_label_with_a_box_writes_the_same_bytes_and_waits_while_it_is_away(
    box: type[Loopback],
    monkeypatch: pytest.MonkeyPatch,
    album: Path,
    banks: Path,
    tmp_path: Path,
    choice: dict[str, Any],
) -> None:
    here = label_with({**HERE, "threads": 1}, banks / "two.safetensors", album, tmp_path / "here", **choice)
    away_at(box, monkeypatch, range(3, 6))
    said: list[str] = []
    there = label_with({"engine": ADDRESS}, Path("two"), album, tmp_path / "box", say=said.append, **choice)
    assert written(tmp_path / "box") == written(tmp_path / "here")
    assert len(written(tmp_path / "box")) == 3  # labels, facts, errors
    assert (there.labeled, there.failed, there.parts_of) == (6, 1, here.parts_of)
    assert said[-1] == f"The box {ADDRESS} answers again."


def test_a_bank_that_is_replaced_in_the_middle_ends_a_labeling(
    box: type[Loopback], album: Path, banks: Path, tmp_path: Path
) -> None:
    assert not box.asked

    def replace_bank(_: object) -> None:
        (banks / "two.safetensors").write_bytes(other)

    smaller = SupportBank.load(banks / "two.safetensors")
    smaller.remove("cat")
    smaller.save(banks / "other.safetensors")
    other = (banks / "other.safetensors").read_bytes()
    with pytest.raises(ArtifactError, match=r"The bank or the model of triton://.* was replaced"):
        label_with({"engine": ADDRESS}, Path("two"), album, tmp_path / "box", on_progress=replace_bank)
    assert written(tmp_path / "box") == {}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Run a command that ends with code 2; return its sentence."""

    def run(line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fsvit-edge", *shlex.split(line)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer sets its own
        with pytest.raises(SystemExit) as end:
            main()
        out, errors = capfd.readouterr()
        assert (end.value.code, out, errors.count("\n")) == (2, "", 1)
        return errors

    return run


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("run clip.mp4 --bundle x", "--bundle does not go with --engine triton://...: the box decides it for all"),
        ("run clip.mp4 --precision int8", "--precision does not go with --engine triton://..."),
        ("run clip.mp4 --threads 2", "--threads does not go with --engine triton://..."),
        ("run clip.mp4 --bank two --poll 5", "Following a bank (--trust, --poll, an address) does not go with"),
        ("run clip.mp4 --review", "--review does not go with --engine triton://...: it changes a bank, and the box's"),
        ("run demo --sink http://127.0.0.1:0", "The page (--sink http://...) does not go with --engine triton://..."),
        ("run clip.mp4 --bank banks/two.safetensors", "--bank is the name of a bank in the box's own folder"),
        ("label album --output o --format coco --bank a/b", "--bank is the name of a bank in the box's own folder"),
        ("label album --output o --format coco --threads 3", "--threads does not go with --engine triton://..."),
        ("bench", "A box (--engine triton://...) answers the frames of run and label; choose an engine here."),
        ("enroll cup cup.png", "A box (--engine triton://...) answers the frames of run and label"),
    ],
)
def test_what_a_box_cannot_do_is_refused_before_it_is_asked(
    refused: Callable[[str], str],
    clip: Path,
    album: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    sentence: str,
) -> None:
    write_image(album.parent / "cup.png", colors(3))
    monkeypatch.chdir(clip.parent)
    assert sentence in refused(f"{line} --engine {ADDRESS}")
    assert not (album.parent / "o").exists()
