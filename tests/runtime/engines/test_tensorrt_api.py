"""The adapter with fakes of several TensorRT versions; tests/export builds with the real RTX."""

import gc
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
from fake_builder import FakeTensorRT, Severity, install

from fsvit_edge.runtime.engines import tensorrt_api
from fsvit_edge.runtime.engines.tensorrt_api import TensorRT, installed_backends, open_tensorrt
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError

VERSIONS = ("10.3.0", "10.16.1.11", "11.4.1")


@pytest.fixture(params=VERSIONS)
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return install(monkeypatch, request.param)


@pytest.fixture
def api(fake: FakeTensorRT) -> TensorRT:
    opened = open_tensorrt("tensorrt")
    assert opened.trt is fake
    return opened


def test_every_version_gets_its_own_flag_for_strong_typing(api: TensorRT, fake: FakeTensorRT) -> None:
    log = api.log()
    builder = api.builder(log)
    assert api.network(builder, log).num_inputs == 1
    # The other version's flag is refused, so the flag above was not right by luck.
    assert builder.create_network(1 << (1 - fake.strongly_typed)) is None


def test_a_refused_network_is_our_error_with_the_reason(api: TensorRT, fake: FakeTensorRT) -> None:
    log = api.log()
    builder = api.builder(log)
    fake.strongly_typed = 1 - fake.strongly_typed
    with pytest.raises(
        FsvitEdgeError, match=r"cannot create a strongly typed network: .*API Usage Error \(unknown flags\)\.$"
    ):
        api.network(builder, log)


def test_an_unreadable_graph_is_named_with_the_parsers_reason(api: TensorRT) -> None:
    log = api.log()
    network = api.network(api.builder(log), log)
    with pytest.raises(ArtifactError, match="cannot read the head graph: Assertion failed: the ONNX model cannot be"):
        api.parse(network, b"not it", log, "head")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("IBuilder::build: Error Code 10: no kernel", r"failed to build the encoder: Error Code 10: no kernel\.$"),
        ("[defaultAllocator] Requested amount: out of memory", "out of memory; close other programs on the GPU, or"),
        ("CUDA initialization failure with error: 35, CUDA driver version is insufficient", "update the NVIDIA driver"),
        ("[checkMacros.cpp::x::250] Error Code 1 (In f at /src/a.cpp:2 (cudaError 35: old))", "cudaError 35: old"),
        ("", "gave no reason"),
    ],
)
def test_a_failed_build_is_our_error_with_the_last_reason_and_what_helps(
    api: TensorRT, fake: FakeTensorRT, error: str, sentence: str
) -> None:
    log = api.log()
    builder = api.builder(log)
    network = api.network(builder, log)
    config = builder.create_builder_config()
    config.progress_monitor = MagicMock()
    fake.build_errors = [error]
    with pytest.raises(FsvitEdgeError, match=sentence):
        api.serialized(builder, network, config, log, "encoder")


def test_a_refused_plan_is_an_artifact_error_with_the_command_that_rebuilds(api: TensorRT) -> None:
    assert api.engine(b"plan of something", api.log(), "x.engine") is not None
    with pytest.raises(
        ArtifactError, match=r"cannot load x\.engine: .*magic tag\); build it here with: fsvit-edge build"
    ):
        api.engine(b"other", api.log(), "x.engine")


def test_the_error_of_a_missing_driver_does_not_hide_the_one_that_matters(api: TensorRT) -> None:
    log = api.log()
    log.logger.log(Severity.ERROR, "IBuilder::build: Error Code 4: shape mismatch")
    log.logger.log(Severity.ERROR, "[a.cpp::catchCudaError::250] Cuda Runtime (cudaError 35: driver is old)")
    assert log.last_error() == "Error Code 4: shape mismatch"


def test_collectors_share_one_logger_and_keep_their_own_severities(api: TensorRT) -> None:
    quiet, verbose = api.log(), api.log(verbose=True)
    assert quiet.logger is verbose.logger
    quiet.logger.log(Severity.VERBOSE, "layers")
    quiet.logger.log(Severity.WARNING, "beware")
    assert {kind: list(texts) for kind, texts in quiet.messages.items()} == {"WARNING": ["beware"]}
    assert {kind: list(texts) for kind, texts in verbose.messages.items()} == {
        "VERBOSE": ["layers"],
        "WARNING": ["beware"],
    }
    del verbose
    gc.collect()
    quiet.logger.log(Severity.ERROR, "broken")
    assert quiet.last_error() == "broken"


def test_a_log_stays_small_unless_it_is_verbose(api: TensorRT) -> None:
    quiet, verbose = api.log(), api.log(verbose=True)
    for number in range(1000):
        quiet.logger.log(Severity.ERROR, f"error {number}")
    assert len(quiet.messages["ERROR"]) < 200
    assert len(verbose.messages["ERROR"]) == 1000
    assert quiet.last_error() == "error 999"


def test_a_version_without_strong_typing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "8.6.2")
    with pytest.raises(EnvironmentLacksError, match=r"TensorRT 8\.6\.2 is installed, but 10\.3 or newer is needed"):
        open_tensorrt("tensorrt")
    install(monkeypatch, "10.2.0")
    with pytest.raises(EnvironmentLacksError, match=r"TensorRT 10\.2\.0 is installed"):
        open_tensorrt("tensorrt")


def test_the_error_for_a_missing_package_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api.importlib.util, "find_spec", lambda _: None)
    assert installed_backends() == ()
    with pytest.raises(EnvironmentLacksError, match=r'pip install "fsvit-edge\[tensorrt\]" \(on JetPack: apt install'):
        open_tensorrt("tensorrt")
    with pytest.raises(EnvironmentLacksError, match=r'pip install "fsvit-edge\[tensorrt-rtx\]"'):
        open_tensorrt("tensorrt-rtx")


def test_rtx_is_found_by_its_bindings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = ModuleType("tensorrt_rtx_bindings")
    bindings.__version__ = "1.7.1"
    bindings.__spec__ = ModuleSpec("tensorrt_rtx_bindings", None, origin="fake")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", bindings)
    real = tensorrt_api.importlib.util.find_spec
    monkeypatch.setattr(
        tensorrt_api.importlib.util, "find_spec", lambda name: None if name == "tensorrt_rtx" else real(name)
    )
    api = open_tensorrt("tensorrt-rtx")
    assert (api.trt, api.is_rtx, api.title) == (bindings, True, "TensorRT-RTX 1.7.1")


@pytest.mark.parametrize(
    "source", ["raise OSError('libnvinfer.so.10: cannot open shared object file')", "raise ImportError('no')", ""]
)
def test_a_package_that_fails_to_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(EnvironmentLacksError, match="tensorrt is installed but cannot be loaded: "):
            open_tensorrt("tensorrt")
    finally:
        sys.modules.pop("tensorrt", None)  # monkeypatch would put it back


def test_a_folder_named_tensorrt_is_not_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    assert "tensorrt" not in installed_backends()
