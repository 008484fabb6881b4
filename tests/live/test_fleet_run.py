"""A complete run whose bank is followed: what it answers, says and reports, and which options it refuses."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bank_server import BANK, SIGNATURE, BankServer, bank_of, serving_banks, sha_of, status

from fsvit_edge.fewshot.bank_signature import make_key, sign_bank
from fsvit_edge.fewshot.prediction import Prediction
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live.frame import Frame
from fsvit_edge.live.health import BankStatus
from fsvit_edge.live.run import RunOptions, run_source
from fsvit_edge.live.statistics import RunStatistics
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError


@pytest.fixture(scope="module")
def loaded() -> Iterator[FewShotModel]:
    with FewShotModel.load(threads=1) as model:
        yield model


@pytest.fixture
def server() -> Iterator[BankServer]:
    with serving_banks() as started:
        yield started


class Ended(Exception):  # noqa: N818 - no error
    """Ends a run that would go on."""


def test_a_run_takes_over_a_newer_bank_says_so_once_and_reports_it(
    loaded: FewShotModel, server: BankServer, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="needs the extra sign")
    public = make_key(tmp_path / "fleet.key")

    def publish(*names: str) -> bytes:
        path = tmp_path / "signed.safetensors"
        path.write_bytes(bank_of(loaded, tmp_path, *names))
        sign_bank(path, tmp_path / "fleet.key")
        server.files[SIGNATURE], server.files[BANK] = Path(f"{path}.sig").read_bytes(), path.read_bytes()
        return path.read_bytes()

    old = publish("cat")
    said: list[str] = []
    seen: list[tuple[str, ...]] = []
    new = b""

    def on_frame(frame: Frame, prediction: Prediction, statistics: RunStatistics) -> None:  # noqa: ARG001 - the contract
        nonlocal new
        if prediction.classes not in seen:
            seen.append(prediction.classes)
        if statistics.frames == 3:
            new = publish("dog", "cow")
        elif seen[-1] == ("dog", "cow") and BANK not in server.acts:
            server.acts[BANK] = status(500)
        elif any("500" in line for line in said) or statistics.frames > 1500:
            raise Ended

    health = tmp_path / "health.json"
    options = RunOptions(
        bank=server.address,
        trust=public,
        poll_s=0.05,
        threads=1,
        max_frames=1600,
        health_file=health,
    )
    with pytest.raises(Ended):
        run_source("demo", [str(tmp_path / "out.jsonl")], options, say=said.append, on_frame=on_frame)
    assert seen == [("cat",), ("dog", "cow")]
    name = f"Bank http://127.0.0.1:{server.server_port}{BANK}"
    told = [line for line in said if line.startswith("Bank ")]
    again = "the last good bank answers, and this is tried again every 0.05 s."
    assert told == [
        f"{name}: {sha_of(old):.12} answers.",
        f"{name}: {sha_of(new):.12} answers now.",
        f"{name}: The server answers 500 Internal Server Error; {again}",
    ]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    banks = [one for one in lines if one["event"] == "bank"]
    assert [one["sha256"] for one in banks] == [sha_of(old), sha_of(new)]
    for frame in (one for one in lines if one["event"] == "frame"):
        is_new = frame["wall_time_s"] > banks[1]["wall_time_s"]
        assert not is_new or [one["name"] for one in frame["classes"]] == ["dog", "cow"]
    reported: dict[str, Any] = json.loads(health.read_text())["bank"]
    assert reported["sha256"] == sha_of(new)
    assert (reported["origin"], reported["is_copy"]) == (name.removeprefix("Bank "), False)
    assert reported["since_s"] > 1e9
    assert reported["asked_s"] > 1e9
    assert (reported["last_refusal"], reported["last_refusal_s"]) == ("", None)


@pytest.mark.parametrize(("poll_s", "seen"), [(None, [("cat",)]), (0.05, [("cat",), ("dog",)])])
def test_a_bank_in_a_file_is_read_once_unless_it_is_followed(
    loaded: FewShotModel, tmp_path: Path, poll_s: float | None, seen: list[tuple[str, ...]]
) -> None:
    path = tmp_path / "bank.safetensors"
    path.write_bytes(bank_of(loaded, tmp_path, "cat"))
    newer = bank_of(loaded, tmp_path, "dog")
    found: list[tuple[str, ...]] = []

    def on_frame(frame: Frame, prediction: Prediction, statistics: RunStatistics) -> None:  # noqa: ARG001 - the contract
        if prediction.classes not in found:
            found.append(prediction.classes)
        if statistics.frames == 2:
            path.write_bytes(newer)
        if len(found) == 2 or statistics.frames == (10 if poll_s is None else 1500):
            raise Ended

    options = RunOptions(bank=path, poll_s=poll_s, threads=1, max_frames=1600)
    with pytest.raises(Ended):
        run_source("demo", [str(tmp_path / "out.jsonl")], options, say=lambda _: None, on_frame=on_frame)
    assert found == seen


def test_a_run_without_server_and_copy_ends_with_a_sentence_and_a_code_that_a_service_tries_again(
    server: BankServer, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="needs the extra sign")
    options = RunOptions(bank=server.address, trust=make_key(tmp_path / "fleet.key"))
    with pytest.raises(FsvitEdgeError, match="there is no copy of an earlier one: The server answers 404") as failed:
        run_source("demo", [str(tmp_path / "out.jsonl")], options, say=lambda _: None)
    assert failed.value.exit_code == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"trust": "x"}, "--trust and --poll are for a bank that others change; give it with --bank"),
        ({"poll_s": 5.0}, "--trust and --poll are for a bank that others change; give it with --bank"),
        (
            {"bank": "b.safetensors", "poll_s": 0.0},
            "--poll must be 0.05 to 604800 seconds, a week; got 0",
        ),
        ({"bank": "b.safetensors", "poll_s": math.nan}, "--poll must be 0.05 to .* got nan"),
        (
            {"bank": "b.safetensors", "poll_s": 1e10},
            "--poll must be .* to 604800 seconds, a week; got 1e",
        ),  # no thread can
        ({"bank": "https://host/b", "review": True}, "--review writes into the bank, which here comes from elsewhere"),
        ({"bank": "b.safetensors", "poll_s": 1.0, "review": True}, "--review writes into the bank"),
    ],
)
def test_options_that_contradict_a_bank_that_is_followed_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        RunOptions(**options)


def test_options_do_not_show_the_address() -> None:
    assert "s3cret" not in repr(RunOptions(bank="https://me:s3cret@host/bank.safetensors"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bank": "http://host/b"}, "A bank from http:// could be exchanged on the way"),
        ({"bank": "s3://host/b"}, "Invalid address s3://host/b of a bank"),
        ({"bank": "https://host/b", "trust": "x"}, "--trust takes the public key"),
        ({"bank": "bank.txt", "poll_s": 1.0}, r"A bank must be a \.safetensors file, got bank\.txt"),
    ],
)
def test_a_bank_that_cannot_be_followed_is_refused_before_anything_is_opened(
    options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="needs the extra sign")
    with pytest.raises(InputError, match=problem):
        run_source("demo", [str(tmp_path / "out.jsonl")], RunOptions(**options), say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_two_changes_between_two_looks_are_both_told() -> None:
    before = BankStatus("origin", "a" * 64)
    assert replace(before, sha256="b" * 64, trouble="Gone.", trouble_since_s=5.0).news(before) == [
        "Bank origin: bbbbbbbbbbbb answers now.",
        "Bank origin: Gone.",
    ]
    gone = replace(before, trouble="Gone.", trouble_since_s=5.0)
    assert replace(gone, trouble="Away.").news(gone) == []
    assert replace(gone, trouble="Away.", trouble_since_s=9.0).news(gone) == ["Bank origin: Away."]
    assert before.news(before) == []
    assert before.news(None) == []
    assert replace(before, trouble="Gone.", trouble_since_s=5.0).news(None) == ["Bank origin: Gone."]
    assert before.news(replace(before, trouble="Gone.", trouble_since_s=5.0)) == ["Bank origin: It is working again."]
    assert before.news(replace(before, sha256="b" * 64, trouble="Gone.", trouble_since_s=5.0)) == [
        "Bank origin: aaaaaaaaaaaa answers now."
    ]
