"""What the tests of several folders need: the shared goldens, a network that is built in a moment, and its bundle."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import pickle
import signal
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from torch import nn

    from fsvit_edge.model.network import FewShotNetwork

BuildOnce = Callable[[str, Callable[[Path], object]], Path]

CACHES = itertools.count()
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
MAX_ENGINES = 24  # the bundled model's for three numbers of threads, and a few others

# torch's idle threads spin, and where cores are shared that makes these tests five times slower. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist starts a worker per core
    # A worker and the commands it starts keep to one core: where others are busy, ONNX Runtime's threads wait for each
    # other by spinning, and a frame on two threads takes 87 ms of processor time instead of 50.
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})

# By default an example that takes 200 ms fails, and so does a start of 1 s: both happen where others are busy.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A shell starts background jobs with SIGINT ignored, and the commands that the tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-packages", action="store_true", help="Fail, rather than skip, tests that need a Debian package."
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip for want of a Debian package into a failure if the package was to be installed."""
    report = yield
    if report.skipped and "apt install" in str(report.longrepr) and item.config.getoption("--require-packages"):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session", autouse=True)
def without_vnni() -> Iterator[None]:
    """Every processor chooses as one without VNNI, in FP32; tests of the bundled INT8 encoder say otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("choose", "trial"):
            patch.setattr(f"fsvit_edge.runtime.engines.{module}.has_vnni_here", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def unhurried() -> Iterator[None]:
    """A run in this process may take its time to stop: one that takes 2 s exits, and on a busy machine so did we."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fsvit_edge.live.loop._STOP_WITHIN_S", 60.0)
        patch.setattr("fsvit_edge.live.supervision._LOOP_GRACE_S", 60.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def opened_once() -> Iterator[None]:
    """A process opens a graph of a bundle once, and each model gets an engine of its own on the same session.

    To open those of the bundled model takes 0.5 s of processor time, and hundreds of tests load it.
    """
    from fsvit_edge.runtime.engines import open_graphs
    from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine

    @functools.lru_cache(MAX_ENGINES)
    def opened(graph: bytes, provider: str, threads: int | None) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(graph, provider, threads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_graphs, "OnnxRuntimeEngine", lambda *arguments: copy.copy(opened(*arguments)))
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory, slow_openvino: tuple[str, str] | None) -> Iterator[Path]:
    """The cache folder of whatever runs outside a test; but for timings of OpenVINO it must stay empty.

    Engines that one test leaves there would run in the next.
    """
    folder = tmp_path_factory.mktemp("shared-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        remember_slow_openvino(folder, slow_openvino)
        # Where OpenVINO is installed, "auto" would time it in each test, and compute in what was faster at that moment.
        # The commands that tests start as processes find a timing by which OpenVINO is slower: see `own_cache`.
        patch.setattr("fsvit_edge.runtime.engines.trial.openvino_version", lambda: None)
        yield folder


@pytest.fixture(scope="session")
def slow_openvino() -> tuple[str, str] | None:
    """The file, and its text, that says that OpenVINO is slower here on the bundled model; None without OpenVINO."""
    from dataclasses import asdict
    from importlib.metadata import PackageNotFoundError, version

    from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
    from fsvit_edge.runtime.engines import trial

    with pytest.MonkeyPatch.context() as patch:
        try:
            installed = version("openvino")
        except PackageNotFoundError:
            return None
        patch.setattr(trial, "openvino_version", lambda: installed)
        conditions = trial.conditions_of(Bundle.load(DEFAULT_BUNDLE))
        assert conditions is not None
        slow = trial.Trial(trial.FORMAT_VERSION, *conditions, 1.0, {"fp32": 2.0}, {}, None)
        return trial.file_of(*conditions).name, json.dumps(asdict(slow))


def remember_slow_openvino(cache: Path, slow_openvino: tuple[str, str] | None) -> None:
    if slow_openvino is not None:
        timing = cache / "fsvit-edge" / "speed" / slow_openvino[0]
        timing.parent.mkdir(parents=True)
        timing.write_text(slow_openvino[1])


@pytest.fixture(autouse=True)
def own_cache(
    shared_cache: Path, slow_openvino: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A cache folder per test; it contains nothing but that OpenVINO, where it is installed, is slower."""
    folder = shared_cache.with_name(f"cache-{next(CACHES)}")
    remember_slow_openvino(folder, slow_openvino)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder
    folder = shared_cache / "fsvit-edge"
    # Not by `rglob`, whose functions of `os` the test may have replaced.
    left = [path for path in (folder.iterdir() if folder.exists() else ()) if path.name != "speed"]
    assert not left, f"A fixture or a test left files in the cache folder that all tests share: {left}"


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """Build a file or folder once per test run, even if several workers of pytest-xdist need it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if WORKER else root

    def build(name: str, make: Callable[[Path], object]) -> Path:
        path = root / name
        with FileLock(f"{path}.lock"):
            if not path.exists():
                unfinished = path.with_name(f"{name}-{WORKER}")
                make(unfinished)
                unfinished.rename(path)
        return path

    return build


@pytest.fixture(scope="session", autouse=True)
def imported_once(build_once: BuildOnce) -> Iterator[None]:
    """The doctor's imports of every package, which take 14 s of processor time, are made once per test run."""
    from fsvit_edge.inspect import packages

    import_all = packages._imports.__wrapped__

    @functools.wraps(import_all)
    def imports() -> object:
        return pickle.loads(
            build_once("imports", lambda path: path.write_bytes(pickle.dumps(import_all()))).read_bytes()
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "_imports", imports)
        yield


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder with the goldens of the published network, which is not part of the project."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "parity").is_dir():
        pytest.skip("comparison with the published network's numbers: there is no shared/ beside the project")
    return folder


@pytest.fixture(scope="session")
def randomize() -> Callable[[nn.Module, int], None]:
    """Fill every parameter by its name: norms around 1, biases not 0, matrices that keep the scale of their input.

    What is initialized with zeros, ones or 1e-5 would hide a parameter that is forgotten or used twice.
    """
    import torch

    def fill(module: nn.Module, seed: int = 0) -> None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                generator = torch.Generator().manual_seed(seed * 2**32 + zlib.crc32(name.encode()))
                values = torch.randn(parameter.shape, generator=generator)
                leaf = name.rpartition(".")[2]
                if leaf in ("pos_embed", "cls_token", "reg_token"):
                    parameter.copy_(0.2 * values)
                elif parameter.ndim > 1:
                    parameter.copy_(values / parameter[0].numel() ** 0.5)
                elif leaf in ("weight", "gamma", "gamma_1", "gamma_2"):
                    parameter.copy_(1 + 0.1 * values)
                else:
                    parameter.copy_(0.05 * values)

    return fill


@pytest.fixture(scope="session")
def tiny_network(randomize: Callable[[nn.Module, int], None]) -> FewShotNetwork:
    """A network of random weights at 48 px, a grid of 6 x 6 tokens; copy it before you change it.

    Pseudo-masks cover a part of the picture, and probabilities lie on both sides of 0.5.
    """
    import torch

    from fsvit_edge.model.config import ModelConfig
    from fsvit_edge.model.network import FewShotNetwork

    network = FewShotNetwork(ModelConfig("tiny", "vit_nano_patch8_64", image_size=48)).eval()
    randomize(network, 0)
    with torch.no_grad():
        query_bias, key_bias, _ = network.encoder.vit.blocks[-1].attn.qkv.bias.chunk(3)
        apart = 0.65 * torch.randn(query_bias.shape, generator=torch.Generator().manual_seed(0))
        query_bias += apart
        key_bias -= 0.5 * apart
        for decoder in (network.head.decoder2_cls, network.head.decoder2_seg):
            decoder[2].weight.mul_(8)
    return network


@pytest.fixture(scope="session")
def tiny_bundle(tiny_network: FewShotNetwork, build_once: BuildOnce) -> Path:
    """The bundle of `tiny_network`, exported without verification; copy it before you change it."""
    from fsvit_edge.export.pipeline import ExportOptions, export_bundle

    return build_once("tiny", lambda path: export_bundle(tiny_network, path, ExportOptions(verify=False)))


@pytest.fixture(scope="session")
def hybrid_network() -> FewShotNetwork:
    """A network at 64 px with a convolutional stem and an objectness decoder, of random weights, with few tokens.

    Objectness lies on both sides of 0. Its head is the one without weights, which is exported in a moment.
    """
    import torch

    from fsvit_edge.model.config import ModelConfig
    from fsvit_edge.model.network import FewShotNetwork

    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        config = ModelConfig("hybrid", "vit_nano_patch16_hybrid_256", 64, head="prototype", objectness=True)
        network = FewShotNetwork(config).eval()
        assert network.objectness is not None
        network.objectness.out.weight.mul_(2)
        network.objectness.out.bias.add_(3.5)
    return network


@pytest.fixture(scope="session")
def hybrid_bundle(hybrid_network: FewShotNetwork, build_once: BuildOnce) -> Path:
    """The bundle of `hybrid_network`, whose encoder tells objectness, not verified; copy it before you change it."""
    from fsvit_edge.export.pipeline import ExportOptions, export_bundle

    return build_once("hybrid", lambda path: export_bundle(hybrid_network, path, ExportOptions(verify=False)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none, with the driver's own reason."""
    if item.get_closest_marker("requires_cuda") is not None:
        from fsvit_edge.runtime.gpu import gpu_missing_reason

        reason = gpu_missing_reason()
        if reason:
            pytest.skip(f"needs an NVIDIA GPU: {reason}")
