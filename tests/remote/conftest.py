"""A folder of banks, the model that made them, and a box that answers by them in this process."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from backend_stub import BACKEND, Backend, Loopback, open_model
from box_answers import HERE, NAME, gray
from sample_files import colors, rectangle

from fsvit_edge import FewShotModel
from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.zones import Zone
from fsvit_edge.remote.box import FORMAT_VERSION, Settings
from fsvit_edge.remote.repository import write_model


@pytest.fixture(scope="session")
def loaded() -> Iterator[FewShotModel]:
    with FewShotModel.load(threads=1, **HERE) as model:
        yield model


@pytest.fixture(scope="session")
def bank(loaded: FewShotModel) -> SupportBank:
    """Two classes, one with a negative, a picture of the empty scene, and a zone."""
    loaded.enroll("cat", [colors(1, 120, 160), colors(4, 120, 160)], [rectangle(120, 160)[..., 0]] * 2)
    loaded.enroll("Größe 猫", [colors(2, 90, 60)])
    loaded.learn_scene([gray(90)])
    loaded.reject("cat", gray(200))
    loaded.bank.zones = (Zone("left", ((0, 0), (0.5, 0), (0.5, 1), (0, 1))),)
    return loaded.bank


@pytest.fixture
def here(loaded: FewShotModel, bank: SupportBank) -> FewShotModel:
    """The model that answers here, as it was loaded, with a copy of the bank."""
    loaded.bank, loaded.exclusive, loaded.first_look = bank.copy(), False, None
    loaded.set_level_for_all(None)
    return loaded


@pytest.fixture
def banks(tmp_path: Path, bank: SupportBank) -> Path:
    """Banks: "two", one that is damaged, and one that another encoder made."""
    folder = tmp_path / "banks"
    bank.save(folder / "two.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "two.safetensors").read_bytes()[:-1])
    foreign = SupportBank(replace(bank.identity, encoder_sha256="ab" * 32))
    foreign.add("cat", bank.supports("cat"))
    foreign.save(folder / "foreign.safetensors")
    return folder


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    made = Backend()
    monkeypatch.setitem(sys.modules, BACKEND, made)
    # Of the tests' own process, it would be whoever started them.
    monkeypatch.setattr("fsvit_edge.remote.model.end_with_server", lambda: None)
    return made


@pytest.fixture(scope="session")
def engines_of_box() -> Iterator[FewShotModel]:
    """What the box of every test computes with: to open engines takes a second."""
    with FewShotModel.load(threads=1, **HERE) as opened:
        yield opened


@pytest.fixture
def model(
    tmp_path: Path, banks: Path, backend: Backend, engines_of_box: FewShotModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The model of a repository, as the backend opens it."""
    assert backend.logged == []
    monkeypatch.setattr("fsvit_edge.remote.box.FewShotModel", SimpleNamespace(load=lambda *_: engines_of_box))
    monkeypatch.setattr(engines_of_box, "close", lambda: None)
    settings = Settings(FORMAT_VERSION, None, str(banks), threads=1, **HERE)
    opened = open_model(write_model(tmp_path / "repository", NAME, settings))
    yield opened
    opened.finalize()


@pytest.fixture
def box(model: Any, monkeypatch: pytest.MonkeyPatch) -> type[Loopback]:
    """A box that a device reaches at `ADDRESS`."""
    grpc = pytest.importorskip("tritonclient.grpc", reason='needs tritonclient: pip install "fsvit-edge[triton]"')
    monkeypatch.setattr(grpc, "InferenceServerClient", Loopback)
    monkeypatch.setattr(Loopback, "model", model)
    monkeypatch.setattr(Loopback, "away", staticmethod(lambda: ""))
    monkeypatch.setattr(Loopback, "asked", [])
    monkeypatch.setattr("fsvit_edge.remote.client._PAUSE_S", 0.001)
    monkeypatch.setattr("fsvit_edge.remote.client._PATIENCE_S", 0.0)
    return Loopback
