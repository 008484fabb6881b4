"""A run's bank is followed: newer ones answer between two frames, and what is wrong with one changes no answer."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bank_server import (
    BANK,
    CAT,
    COFFEE,
    SIGNATURE,
    BankServer,
    bank_of,
    foreign_bank,
    saved,
    serving_banks,
    sha_of,
    status,
    torn,
    torn_without_length,
)
from blank import until

from fsvit_edge.fewshot.bank_signature import make_key, read_trusted_key, sign_bank
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.live import bank_follower
from fsvit_edge.live.bank_follower import BankFollower
from fsvit_edge.live.bank_origin import open_origin
from fsvit_edge.live.health import BankStatus
from fsvit_edge.live.shared_model import LiveModel
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.choose import choose_engines
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError

POLL_S = 0.03
Load = Callable[[Path], FewShotModel]


class Unclosed(FewShotModel):
    """A model on engines that all tests share: opening others takes a second."""

    def close(self) -> None:
        """Leave them open."""


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    bundle = Bundle.load(DEFAULT_BUNDLE)
    engines, choice = choose_engines(bundle, threads=1)
    yield lambda _: Unclosed(bundle.manifest, engines, choice)
    for engine in engines.values():
        engine.close()


@pytest.fixture
def server() -> Iterator[BankServer]:
    with serving_banks() as started:
        yield started


class Fleet:
    """A publisher with a key, and the devices that trust it."""

    def __init__(self, load: Load, server: BankServer, folder: Path) -> None:
        self.load, self.server, self.folder = load, server, folder
        self.loaded = load(folder)
        self.key = folder / "fleet.key"
        self.public = make_key(self.key)

    def bank(self, *names: str, verdict: object = None) -> bytes:
        return bank_of(self.loaded, self.folder, *names, verdict=verdict)  # type: ignore[arg-type]

    def signature(self, data: bytes, key: Path | None = None) -> bytes:
        path = self.folder / "signed.safetensors"
        path.write_bytes(data)
        sign_bank(path, key or self.key)
        return Path(f"{path}.sig").read_bytes()

    def publish(self, data: bytes) -> bytes:
        self.server.files[SIGNATURE] = self.signature(data)
        self.server.files[BANK] = data
        return data

    def follower(self, signed: bool = True) -> BankFollower:
        origin = open_origin(self.server.address, is_signed=True)
        return BankFollower(origin, read_trusted_key(self.public) if signed else None, POLL_S)


@pytest.fixture
def fleet(load: Load, server: BankServer, tmp_path: Path) -> Fleet:
    pytest.importorskip("cryptography", reason="needs the extra sign")
    return Fleet(load, server, tmp_path)


@contextmanager
def running(fleet: Fleet, follower: BankFollower) -> Iterator[LiveModel]:
    """A device that runs: a loop without frames, which follows its bank."""
    stop = threading.Event()
    with follower.open_model(fleet.load) as model:
        live = LiveModel(model, bank_origin=follower.status.origin)

        def loop() -> None:
            while not stop.wait(0.001):
                live.run_requests()

        looping = threading.Thread(target=loop)
        looping.start()
        try:
            with follower.following(live):
                yield live
        finally:
            stop.set()
            looping.join()
            live.close()


class Told:
    """What a person is told, who is asked as often as the run tells."""

    def __init__(self, follower: BankFollower) -> None:
        self._follower = follower
        self._before: BankStatus | None = None
        self.lines: list[str] = []

    def look(self) -> list[str]:
        status = self._follower.status
        self.lines += status.news(self._before)
        self._before = status
        return self.lines


def polls(server: BankServer, count: int = 3) -> None:
    """Wait until the server was asked so often again."""
    before = sum(path == BANK for path, _ in server.gets)
    until(lambda: sum(path == BANK for path, _ in server.gets) >= before + count)


# ------------------------------------------------------------------------------------------------------------ the swap


def test_a_newer_bank_answers_and_an_old_one_is_fetched_once(fleet: Fleet) -> None:
    old = fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    with running(fleet, follower) as live:
        told = Told(follower)
        assert (live.classes, follower.status.sha256, told.look()) == (("cat",), sha_of(old), [])
        before_s = follower.status.since_s
        polls(fleet.server)
        new = fleet.publish(fleet.bank("cat", "dog"))
        until(lambda: follower.status.sha256 == sha_of(new))
        assert live.classes == ("cat", "dog")
        assert told.look() == [f"Bank {follower.status.origin}: {sha_of(new):.12} answers now."]
        assert before_s < follower.status.since_s <= time.time()
        assert (follower.status.is_copy, follower.status.trouble, follower.status.last_refusal) == (False, "", "")
        polls(fleet.server)
    fetched = [path for path, etag in fleet.server.gets if path == SIGNATURE]
    assert len(fetched) == 2  # one for each bank: no other answer than 304 in between


def test_a_bank_is_taken_over_where_each_step_of_its_trial_waits_for_longer_than_people_would(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsvit_edge.live.shared_model._TIMEOUT_S", 0.02)
    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    with follower.open_model(fleet.load) as model:
        live = LiveModel(model)
        with follower.following(live):
            fleet.publish(fleet.bank("dog", verdict="yes"))
            due_s = time.monotonic() + 60
            while live.classes != ("dog",) and time.monotonic() < due_s:
                time.sleep(0.1)
                live.run_requests()
        live.close()
    assert (live.classes, follower.status.last_refusal) == (("dog",), "")


def test_a_frame_is_answered_by_one_bank_or_the_other(fleet: Fleet) -> None:
    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    seen: set[tuple[str, ...]] = set()
    with follower.open_model(fleet.load) as model:
        live = LiveModel(model)
        with follower.following(live):
            fleet.publish(fleet.bank("dog", "cow"))
            until(lambda: follower.status.trouble == "" and bool(fleet.server.gets))
            started_s = time.monotonic()
            while ("dog", "cow") not in seen:
                live.run_requests()
                prediction = live.predict(CAT)
                assert len(prediction.scores) == len(prediction.classes)
                seen.add(prediction.classes)
                assert time.monotonic() - started_s < 60
        live.close()
    assert seen == {("cat",), ("dog", "cow")}


def test_an_unsigned_bank_is_followed_where_no_key_is_pinned(fleet: Fleet) -> None:
    fleet.server.files[BANK] = fleet.bank("cat")
    follower = fleet.follower(signed=False)
    with running(fleet, follower) as live:
        fleet.server.files[BANK] = fleet.bank("dog")
        until(lambda: live.classes == ("dog",))
    assert all(path == BANK for path, _ in fleet.server.gets)


def test_a_file_is_followed(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    path.write_bytes(fleet.bank("cat"))
    follower = BankFollower(open_origin(str(path), is_signed=False), None, POLL_S)
    with running(fleet, follower) as live:
        time.sleep(3 * POLL_S)
        assert live.revision == 0
        path.write_bytes(fleet.bank("dog"))
        until(lambda: live.classes == ("dog",))
        path.unlink()
        until(lambda: "cannot be read (No such file or directory)" in follower.status.trouble)
        assert live.classes == ("dog",)


def test_new_classes_are_held_to_the_empty_scene_of_the_bank_before_they_answer(fleet: Fleet) -> None:
    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    fleet.loaded.bank = fleet.loaded.network.empty_bank(fleet.loaded.choice.precision)
    fleet.loaded.learn_scene([COFFEE])
    support = fleet.loaded.cache_support("cat", CAT)
    fleet.loaded.bank.add("cat", [support])  # not scored on the scene
    assert fleet.loaded.bank.unscored_frames
    with running(fleet, follower) as live:
        new = fleet.publish(saved(fleet.loaded.bank, fleet.folder))
        until(lambda: follower.status.sha256 == sha_of(new))
        assert live.read(lambda model: (len(model.bank.scene), model.bank.unscored_frames)) == (1, ())


# ---------------------------------------------------------------------------------------------------------- its faults


Break = Callable[[Fleet], bytes]


def wrong_signature(fleet: Fleet) -> bytes:
    data = fleet.bank("dog")
    make_key(fleet.folder / "other.key")
    fleet.server.files[SIGNATURE] = fleet.signature(data, fleet.folder / "other.key")
    fleet.server.files[BANK] = data
    return data


def old_signature(fleet: Fleet) -> bytes:
    """The bank is published before its signature."""
    data = fleet.server.files[BANK] = fleet.bank("dog")
    return data


def no_signature(fleet: Fleet) -> bytes:
    fleet.server.files.pop(SIGNATURE, None)
    data = fleet.server.files[BANK] = fleet.bank("dog")
    return data


@pytest.mark.parametrize(
    ("publish", "trouble"),
    [
        (wrong_signature, "The signature beside the new bank {sha} is not that of the trusted key"),
        (old_signature, "The signature beside the new bank {sha} is not that of the trusted key"),
        (no_signature, "The new bank {sha} has no signature (the server answers 404 Not Found)"),
    ],
)
def test_a_bank_without_the_right_signature_waits_for_it_and_is_fetched_once(
    fleet: Fleet, publish: Break, trouble: str
) -> None:
    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    with running(fleet, follower) as live:
        told = Told(follower)
        told.look()
        new = publish(fleet)
        until(lambda: follower.status.trouble != "")
        text = trouble.format(sha=sha_of(new)[:12])
        line = f"{text}; the last good bank answers, and this is tried again every {POLL_S:g} s."
        polls(fleet.server, 4)
        assert told.look() == [f"Bank {follower.status.origin}: {line}"]  # once, not at each poll
        assert (live.classes, follower.status.last_refusal) == (("cat",), f"{text}.")
        assert follower.status.last_refusal_s is not None
        asked_before = len(fleet.server.gets)
        fleet.server.files[SIGNATURE] = fleet.signature(new)
        until(lambda: live.classes == ("dog",))
        until(lambda: follower.status.trouble == "")
        assert told.look()[1:] == [f"Bank {follower.status.origin}: {sha_of(new):.12} answers now."]
        assert follower.status.last_refusal == f"{text}."  # stays, for who looks later
        etags = [etag for path, etag in fleet.server.gets[asked_before:] if path == BANK]
        assert all(etags)  # the bank itself was not fetched again


def test_health_has_the_reason_of_now_though_it_is_told_once(fleet: Fleet) -> None:
    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    with running(fleet, follower):
        told = Told(follower)
        told.look()
        data = no_signature(fleet)
        until(lambda: "has no signature" in follower.status.trouble)
        missing = follower.status
        wrong_signature(fleet)
        until(lambda: "is not that of the trusted key" in follower.status.trouble)
        wrong = follower.status
        assert "is not that of the trusted key" in wrong.last_refusal
        assert wrong.trouble_since_s == missing.trouble_since_s
        assert (wrong.last_refusal_s or 0) > (missing.last_refusal_s or 0) > 0
        polls(fleet.server)
        assert follower.status.last_refusal_s == wrong.last_refusal_s  # the same reason again
        fleet.server.files.pop(SIGNATURE)
        until(lambda: "has no signature" in follower.status.last_refusal)
        assert len(told.look()) == 1
        fleet.server.files[SIGNATURE] = fleet.signature(data)
        until(lambda: follower.status.trouble_since_s is None)
        assert told.look()[1:] == [f"Bank {follower.status.origin}: {sha_of(data):.12} answers now."]


@pytest.mark.parametrize("has_copy", [True, False])
def test_a_start_says_whether_there_is_a_copy_that_cannot_be_used_either(
    fleet: Fleet, has_copy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.publish(fleet.bank("cat"))
    if has_copy:
        fleet.follower().open_model(fleet.load).close()

    def refuse(*_: object) -> None:
        raise bank_follower.BankRefusedError("it was made in int8")

    monkeypatch.setattr(bank_follower, "try_bank", refuse)
    told = "nor can a copy from before: " if has_copy else "and there is no copy of an earlier one: "
    with pytest.raises(FsvitEdgeError, match=f"cannot be used, {told}.* is refused: it was made in int8"):
        fleet.follower().open_model(fleet.load)


def foreign(fleet: Fleet) -> bytes:
    return fleet.publish(foreign_bank(fleet.loaded, fleet.folder))


def damaged(fleet: Fleet) -> bytes:
    """What a publisher damaged before it was signed."""
    good = fleet.bank("dog")
    data = good[:-1] + bytes([good[-1] ^ 1])
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(fleet.key.read_bytes(), None)
    fleet.server.files[SIGNATURE] = key.sign(data)  # type: ignore[union-attr, call-arg, arg-type]
    fleet.server.files[BANK] = data
    return data


def contradicted(fleet: Fleet) -> bytes:
    return fleet.publish(fleet.bank("cat", "dog", verdict="no"))


@pytest.mark.parametrize(
    ("publish", "reason"),
    [
        (foreign, "s3cret/bank.safetensors was made with a different encoder: 000000000000"),
        (damaged, "s3cret/bank.safetensors is damaged"),
        (contradicted, "its answers here contradict 1 of its 1 verdicts (7); see: fsvit-edge bank check"),
    ],
)
@pytest.mark.parametrize("has_etags", [True, False], ids=["etags", "no etags"])
def test_a_bank_that_cannot_be_used_is_refused_once_and_the_next_one_answers(
    fleet: Fleet, publish: Break, reason: str, has_etags: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.server.has_etags = has_etags
    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    with running(fleet, follower) as live:
        told, tried = Told(follower), []
        told.look()
        try_bank = bank_follower.try_bank
        monkeypatch.setattr(bank_follower, "try_bank", lambda *how: (tried.append(1), try_bank(*how))[1])
        new = publish(fleet)
        until(lambda: follower.status.trouble != "")
        polls(fleet.server, 4)
        (line,) = told.look()
        assert line.startswith(f"Bank {follower.status.origin}: The new bank {sha_of(new):.12} is refused: ")
        assert reason in line
        assert line.endswith("; the last good bank answers.")
        assert "fsvit-edge-" not in line  # no name of a temporary file
        assert (live.classes, live.revision, tried) == (("cat",), 0, [1])
        good = fleet.publish(fleet.bank("cow", verdict="yes"))
        until(lambda: follower.status.sha256 == sha_of(good))
        assert live.classes == ("cow",)
        assert told.look()[1:] == [f"Bank {follower.status.origin}: {sha_of(good):.12} answers now."]
        assert reason in follower.status.last_refusal


def test_a_bank_that_is_taken_back_is_no_longer_trouble(fleet: Fleet) -> None:
    old = fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    with running(fleet, follower) as live:
        told = Told(follower)
        contradicted(fleet)
        until(lambda: follower.status.trouble != "")
        told.look()
        fleet.publish(old)
        until(lambda: follower.status.trouble == "")
        assert told.look()[1:] == [f"Bank {follower.status.origin}: It is working again."]
        assert (live.classes, live.revision) == (("cat",), 0)


@pytest.mark.parametrize(
    ("act", "trouble"),
    [(torn, "broke off after"), (status(503), "503"), (status(307, Location="http://x/"), "redirects (307")],
    ids=["torn", "503", "redirect"],
)
def test_a_server_that_fails_is_told_once_and_once_when_it_works(fleet: Fleet, act: Callable, trouble: str) -> None:  # type: ignore[type-arg]
    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    with running(fleet, follower) as live:
        told = Told(follower)
        told.look()
        fleet.publish(fleet.bank("dog"))
        fleet.server.acts[BANK] = act
        until(lambda: follower.status.trouble != "")
        told.look()
        polls(fleet.server, 4)
        fleet.server.acts[BANK] = status(500)  # another trouble of the same kind
        polls(fleet.server, 4)
        (line,) = told.look()
        assert trouble in line
        assert "500" in follower.status.trouble
        assert live.classes == ("cat",)
        asked_s = follower.status.asked_s
        fleet.server.acts.clear()
        until(lambda: live.classes == ("dog",))
        until(lambda: follower.status.trouble == "")
        assert told.look()[1:] == [f"Bank {follower.status.origin}: {follower.status.sha256:.12} answers now."]
        assert asked_s is not None
        assert (follower.status.asked_s or 0) > asked_s
        fleet.server.acts[BANK] = act
        until(lambda: follower.status.trouble != "")
        told.look()
        fleet.server.acts.clear()
        until(lambda: follower.status.trouble == "")
        assert told.look()[3:] == [f"Bank {follower.status.origin}: It is working again."]


def test_half_a_bank_of_unknown_length_is_refused_and_the_whole_one_answers(fleet: Fleet) -> None:
    fleet.server.files[BANK] = fleet.bank("cat")
    follower = fleet.follower(signed=False)
    with running(fleet, follower) as live:
        fleet.server.acts[BANK] = torn_without_length
        fleet.server.files[BANK] = fleet.bank("dog")
        until(lambda: "is damaged or not a safetensors file" in follower.status.trouble)
        assert live.classes == ("cat",)
        fleet.server.acts.clear()
        until(lambda: live.classes == ("dog",))


def test_a_bank_that_cannot_be_kept_is_tried_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    with running(fleet, follower) as live:

        def fail(*_: object) -> None:
            raise FsvitEdgeError("The disk is full.")

        keep = follower._copies.keep
        monkeypatch.setattr(follower._copies, "keep", fail)
        fleet.publish(fleet.bank("dog"))
        until(lambda: follower.status.trouble.startswith("The disk is full; the last good bank answers, and"))
        assert (live.classes, follower.status.last_refusal) == (("cat",), "")
        monkeypatch.setattr(follower._copies, "keep", keep)
        until(lambda: live.classes == ("dog",))


def test_even_a_fault_of_ours_ends_neither_the_run_nor_the_polls(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    with running(fleet, follower) as live:
        with monkeypatch.context() as patch:
            patch.setattr(bank_follower, "try_bank", lambda *_: [][1])
            fleet.publish(fleet.bank("dog"))
            until(lambda: follower.status.trouble.startswith("IndexError: list index out of range; the last"))
            assert live.classes == ("cat",)
        until(lambda: live.classes == ("dog",))


# ------------------------------------------------------------------------------------------------------------- a start


def test_without_the_server_the_last_accepted_copy_answers(fleet: Fleet) -> None:
    fleet.publish(fleet.bank("cat"))
    with running(fleet, fleet.follower()) as live:
        last = fleet.publish(fleet.bank("dog"))
        until(lambda: live.classes == ("dog",))
    fleet.server.acts[BANK] = status(500)
    follower = fleet.follower()
    with running(fleet, follower) as live:
        assert live.classes == ("dog",)
        assert (follower.status.sha256, follower.status.is_copy) == (sha_of(last), True)
        assert follower.status.trouble.startswith("The server answers 500 Internal Server Error; the last good bank")
        assert Told(follower).look() != []
        fleet.server.acts.clear()
        until(lambda: follower.status.trouble == "")
        assert (follower.status.is_copy, live.revision) == (False, 0)


def test_at_a_start_a_bank_that_is_known_is_not_fetched(fleet: Fleet) -> None:
    fleet.publish(fleet.bank("cat"))
    fleet.follower().open_model(fleet.load).close()
    fleet.server.gets.clear()
    follower = fleet.follower()
    follower.open_model(fleet.load).close()
    (get,) = fleet.server.gets
    assert get[1] != ""
    assert not follower.status.is_copy


def copies(cache: Path) -> list[Path]:
    return sorted((cache / "fsvit-edge" / "banks").glob("*/*.safetensors"), key=lambda path: path.stat().st_mtime)


def test_a_copy_that_was_exchanged_or_damaged_on_the_disk_is_not_used(fleet: Fleet, own_cache: Path) -> None:
    for name in ("cat", "dog"):
        fleet.publish(fleet.bank(name))
        fleet.follower().open_model(fleet.load).close()
    assert len(copies(own_cache)) == 2
    fleet.server.acts[BANK] = status(500)
    forged = fleet.bank("cow")
    last = copies(own_cache)[-1]
    # An attacker who may write here may write the list as well, but cannot sign.
    listed = last.parent / "accepted.json"
    content = json.loads(listed.read_text())
    content["copies"][0][0] = sha_of(forged)
    listed.write_text(json.dumps(content))
    last.rename(last.with_name(f"{sha_of(forged)}.safetensors"))
    Path(f"{last}.sig").rename(last.with_name(f"{sha_of(forged)}.safetensors.sig"))
    last.with_name(f"{sha_of(forged)}.safetensors").write_bytes(forged)
    with fleet.follower().open_model(fleet.load) as model:
        assert model.classes == ("cat",)  # the former one
    with fleet.follower(signed=False).open_model(fleet.load) as model:
        assert model.classes == ("cow",)  # the control: without a key it would have been used
    copies(own_cache)[0].write_bytes(b"damaged")
    with pytest.raises(FsvitEdgeError, match="cannot be used, and there is no copy of an earlier one: The server ans"):
        fleet.follower().open_model(fleet.load)


def test_a_copy_that_was_accepted_unsigned_is_not_used_once_a_key_is_pinned(fleet: Fleet) -> None:
    fleet.server.files[BANK] = fleet.bank("cat")
    fleet.follower(signed=False).open_model(fleet.load).close()
    fleet.server.acts[BANK] = status(500)
    with pytest.raises(FsvitEdgeError, match="there is no copy of an earlier one"):
        fleet.follower().open_model(fleet.load)


@pytest.mark.parametrize("publish", [foreign, damaged, contradicted, wrong_signature, no_signature])
def test_a_start_with_a_bank_that_cannot_be_used_takes_the_copy_before_it(fleet: Fleet, publish: Break) -> None:
    old = fleet.publish(fleet.bank("cat"))
    fleet.follower().open_model(fleet.load).close()
    new = publish(fleet)
    follower = fleet.follower()
    with follower.open_model(fleet.load) as model:
        assert model.classes == ("cat",)
    assert (follower.status.sha256, follower.status.is_copy) == (sha_of(old), True)
    assert sha_of(new)[:12] in follower.status.last_refusal
    with running(fleet, follower):
        polls(fleet.server)
        assert sha_of(new)[:12] in follower.status.trouble  # it is not forgotten when the server answers 304


@pytest.mark.parametrize("publish", [foreign, damaged, contradicted, wrong_signature, no_signature])
def test_without_a_copy_a_bank_that_cannot_be_used_ends_the_start(fleet: Fleet, publish: Break) -> None:
    new = publish(fleet)
    with pytest.raises(FsvitEdgeError, match=f"and there is no copy of an earlier one: .*{sha_of(new)[:12]}") as failed:
        fleet.follower().open_model(fleet.load)
    assert failed.value.exit_code == 1  # a service tries that again: the next bank may be right


def test_a_new_bundle_takes_the_bank_that_was_made_for_it_and_refuses_the_copies(fleet: Fleet) -> None:
    fleet.publish(fleet.bank("cat"))
    fleet.follower().open_model(fleet.load).close()

    def other(path: Path) -> FewShotModel:
        model = fleet.load(path)
        from dataclasses import replace

        model.bank.identity = replace(model.bank.identity, encoder_sha256="0" * 64)
        return model

    with pytest.raises(FsvitEdgeError, match=r"nor can a copy from before: .* was made with a different encoder"):
        fleet.follower().open_model(other)
    foreign(fleet)
    follower = fleet.follower()
    with follower.open_model(other) as model:
        assert model.classes == ()
    assert not follower.status.is_copy


def test_what_is_wrong_with_the_bundle_is_not_laid_on_the_bank(fleet: Fleet) -> None:
    fleet.publish(fleet.bank("cat"))

    def fail(_: Path) -> FewShotModel:
        raise ArtifactError("The bundle is damaged.")

    with pytest.raises(ArtifactError, match=r"The bundle is damaged\."):
        fleet.follower().open_model(fail)


def test_only_the_last_two_banks_are_kept(fleet: Fleet, own_cache: Path) -> None:
    for names in (("a",), ("b",), ("c",), ("b",)):
        fleet.publish(fleet.bank(*names))
        fleet.follower().open_model(fleet.load).close()
    kept = {path.name for path in copies(own_cache)}
    assert kept == {f"{sha_of(fleet.bank(name))}.safetensors" for name in ("b", "c")}
    assert all(Path(f"{path}.sig").exists() for path in copies(own_cache))


def in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    return "/file/fsvit-edge/banks cannot be made (Not a directory); name a folder with: export XDG_CACHE_HOME=/path."


def without_a_home(_: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    return "be read: there is no home folder; name a folder with: export XDG_CACHE_HOME=/path."


@pytest.mark.parametrize("spoil", [in_a_file, without_a_home])
def test_without_a_cache_a_bank_is_followed_and_that_no_copy_is_kept_is_said(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path, pytest.MonkeyPatch], str]
) -> None:
    """As on a device whose disk is read-only."""
    assert fleet.follower().notes == ()
    said = spoil(tmp_path, monkeypatch)
    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    (note,) = follower.notes
    assert note.startswith("No copy of the bank is kept for a start at which it cannot be read: ")
    assert note.endswith(said)
    with running(fleet, follower) as live:
        assert live.classes == ("cat",)
        fleet.publish(fleet.bank("cat", "dog"))
        until(lambda: live.classes == ("cat", "dog"))


def test_copies_on_a_disk_that_became_read_only_are_used(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.publish(fleet.bank("cat"))
    fleet.follower().open_model(fleet.load)
    monkeypatch.setattr("os.access", lambda *_: False)
    fleet.server.files.clear()
    follower = fleet.follower()
    assert "there is no permission in" in follower.notes[0]
    assert follower.open_model(fleet.load).classes == ("cat",)


def test_a_stop_does_not_wait_for_a_server_that_hangs(fleet: Fleet) -> None:
    from bank_server import hang

    fleet.publish(fleet.bank("cat"))
    follower = fleet.follower()
    with running(fleet, follower):
        fleet.server.acts[BANK] = hang
        polls(fleet.server, 1)
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 20  # the server hangs for 30 s
    until(lambda: "bank" not in [thread.name for thread in threading.enumerate()])
    assert follower.status.trouble == ""  # not the server's fault
