"""A bundle becomes engines: what is written, compared and refused, and what a failure leaves behind."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_builder import FakeTensorRT, install

from fsvit_edge.calib.calibration import Calibration
from fsvit_edge.calib.convert_fp16 import Overflow
from fsvit_edge.export import build as build_module
from fsvit_edge.export import job as job_module
from fsvit_edge.export import measure
from fsvit_edge.export.build import BuildResult, build_engines
from fsvit_edge.export.job import BuildOptions, choose_backend
from fsvit_edge.export.measure import PrecisionScores, check_drop, demo_pictures
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.files import EngineRecord, find_engines, load_engine
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import (
    AccuracyGateError,
    ArtifactError,
    EnvironmentLacksError,
    FsvitEdgeError,
    InputError,
)
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.pictures import write_image

TIMES = ("built_at", "build_s", "latency_ms", "fp32_latency_ms")
RTX = BuildOptions(engine="tensorrt-rtx", precision="fp16")
CPU = BuildOptions(engine="onnxruntime", precision="fp32")
FAST = replace(CPU, verify=False)
ORIN = Gpu("Orin", (8, 7), 16, 64 * 2**30, "12.6")
ADA = Gpu("RTX 4090", (8, 9), 128, 24 * 2**30, "13.0")
H100 = Gpu("NVIDIA H100", (9, 0), 132, 80 * 2**30, "13.0")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def rtx(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuildResult, list[str]]:
    """One FP16 build by TensorRT-RTX, and the lines it reported."""
    said: list[str] = []
    path = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("rtx") / "bundle")
    return build_engines(Path(path), RTX, say=said.append), said


def records(folder: Path) -> dict[str, EngineRecord]:
    """Graph -> record of every undamaged engine."""
    found = {}
    for path, record in find_engines(folder)[0]:
        load_engine(path, record)
        assert record.graph not in found
        found[record.graph] = record
    return found


def strays(folder: Path) -> list[str]:
    """Files that belong neither to the bundle nor to an engine with a sidecar."""
    known = {path.name for path, _ in find_engines(folder)[0]}
    known |= {f"{name}.json" for name in known} | {path.name for path in DEFAULT_BUNDLE.iterdir()}
    return sorted(path.name for path in folder.iterdir() if path.name not in known)


def pictures(folder: Path, count: int) -> Path:
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        write_image(folder / f"{number}.png", small.repeat(16, axis=0).repeat(16, axis=1))
    return folder


# ---------------------------------------------------------------------------------------------------- TensorRT-RTX


def test_rtx_engines_are_written_with_sidecars_that_describe_them(rtx: tuple[BuildResult, list[str]]) -> None:
    result, said = rtx
    manifest = Bundle.load(result.bundle).manifest
    found = records(result.bundle)
    assert found.keys() == {"encoder", "head"}
    assert strays(result.bundle) == []
    for name, record in found.items():
        assert result.engines[name].record == record
        assert (record.backend, record.precision, record.targets) == ("tensorrt-rtx", "fp16", ("sm86", "sm89", "sm120"))
        assert record.onnx_sha256 == manifest.graphs[name].sha256
        assert record.preprocessing == manifest.preprocessing
        assert (record.int8_gemms, record.latency_ms, record.calibration) == (0, None, None)
        assert result.engines[name].path.name.startswith(f"{name}.rtx{record.backend_version}.sm86-sm89-sm120.fp16.")
    assert json.loads(json.dumps(result.to_dict()))["engines"]["head"]["record"]["limits"]["ways"] == 10
    assert found["encoder"].profile == {}
    assert found["head"].limits == {"supports": 50, "ways": 10, "kept_tokens": 145}
    assert not result.runs_here
    assert said[0].startswith("Building FP16 with TensorRT-RTX")
    assert [line.partition(":")[0] for line in said[1:]] == [
        "Memory of the encoder",
        "Memory of the head with 5 supports at once",
    ]


def test_engines_for_other_machines_are_emulated_and_the_result_says_so(rtx: tuple[BuildResult, list[str]]) -> None:
    result, _ = rtx
    assert result.agreement is not None
    assert (result.agreement.computed_by, result.agreement.pairs) == ("ONNX Runtime on the CPU", 36)
    assert 0 < result.agreement.outputs["encoder.tokens"]["max_error"] < 0.01
    assert result.agreement.label_agreement > 0.98
    verification = result.engines["encoder"].record.verification
    assert verification["outputs"].keys() == {"tokens", "norms", "class_token", "class_query", "image_keys"}
    assert result.advice[0].startswith("These engines are for other machines (sm86, sm89, sm120); for this one")


@pytest.mark.slow(reason="builds with TensorRT-RTX once more, 5 s")
def test_a_second_build_gives_the_same_sidecar_apart_from_times(
    rtx: tuple[BuildResult, list[str]], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "demo_pictures", demo_pictures)
    again = build_engines(Path(shutil.copytree(tiny_bundle, tmp_path / "bundle")), RTX)
    for name, one in rtx[0].engines.items():
        # TensorRT-RTX numbers the temporaries in a plan differently each time, so the plan's sha256 differs.
        left_out = (*TIMES, "file", "sha256")
        first, second = (
            {key: value for key, value in vars(record).items() if key not in left_out}
            for record in (one.record, again.engines[name].record)
        )
        assert first == second


def test_an_engine_that_is_up_to_date_is_not_built_again(bundle: Path) -> None:
    first = build_engines(bundle, CPU)
    second = build_engines(bundle, CPU)
    assert (first.up_to_date, second.up_to_date) == (False, True)
    assert {name: one.record for name, one in first.engines.items()} == {
        name: one.record for name, one in second.engines.items()
    }
    forced = build_engines(bundle, replace(CPU, force=True))
    assert not forced.up_to_date
    assert [one.record.sha256 for one in forced.engines.values()] == [
        one.record.sha256 for one in first.engines.values()
    ]


@pytest.mark.slow(reason="builds three times, 3 s")
def test_an_engine_that_is_damaged_or_unverified_is_built_again(bundle: Path) -> None:
    assert not build_engines(bundle, FAST).up_to_date
    assert build_engines(bundle, FAST).up_to_date
    path = next(bundle.glob("head.*.ort*.onnx"))
    path.write_bytes(path.read_bytes()[:-1])
    assert not build_engines(bundle, FAST).up_to_date
    assert not build_engines(bundle, CPU).up_to_date
    assert build_engines(bundle, FAST).up_to_date


@pytest.mark.parametrize(
    ("backend", "times", "int8_products", "advice"),
    [
        ("tensorrt-rtx", {"int8": 5.0, "fp16": 4.0}, 24, "INT8 takes 5.0 ms, FP16 4.0 ms; use --precision fp16."),
        ("tensorrt-rtx", {"int8": 4.0, "fp16": 4.0}, 24, "INT8 takes 4.0 ms, FP16 4.0 ms; use --precision fp16."),
        ("tensorrt-rtx", {"int8": 3.0, "fp16": 4.0}, 24, ""),
        ("tensorrt-rtx", {"int8": 3.0}, 24, "INT8 is often no faster than FP16 on a GPU; compare: build with --fp16"),
        ("tensorrt-rtx", {"int8": 3.0}, 0, "No matrix multiplication runs in INT8; use --precision fp16."),
        (
            "onnxruntime",
            {"int8": 5.0, "fp32": 4.0},
            24,
            "INT8 takes 5.0 ms, FP32 4.0 ms; use --precision fp32, as `run`",
        ),
        ("onnxruntime", {"int8": 3.0, "fp32": 4.0}, 24, ""),
        ("onnxruntime", {"int8": 3.0, "fp32": 4.0}, 0, "No matrix multiplication runs in INT8; use --precision fp32."),
    ],
)
def test_the_advice_is_against_int8_that_is_not_faster(
    rtx: tuple[BuildResult, list[str]], backend: str, times: dict[str, float], int8_products: int, advice: str
) -> None:
    result = rtx[0]
    encoder = result.engines["encoder"]
    engines = {"encoder": replace(encoder, record=replace(encoder.record, int8_gemms=int8_products))}
    found = {"backend": choose_backend(backend, None, False), "precision": "int8", "agreement": None}
    result = replace(result, **found, runs_here=True, engines=engines, latency_ms=times)
    assert [line[: len(advice)] for line in result.advice] == ([advice] if advice else [])


# ----------------------------------------------------------------------------------------------------- ONNX Runtime


def test_engines_of_onnx_runtime_run_here_and_are_timed_beside_fp32(bundle: Path) -> None:
    result = build_engines(bundle, CPU)
    assert result.runs_here
    found = result.agreement
    assert found is not None
    assert (found.computed_by, found.presence_flips, found.label_agreement) == ("the engine", 0, 1.0)
    for name, one in result.engines.items():
        assert one.record.latency_ms is not None
        assert one.record.fp32_latency_ms is not None
        with OnnxRuntimeEngine(load_engine(one.path, one.record), "cpu") as engine:
            assert (engine.inputs, engine.outputs) == (one.record.inputs, one.record.outputs), name
    assert result.latency_ms.keys() == {"fp32"}
    assert strays(bundle) == []


def test_int8_for_the_cpu_counts_the_products_that_onnx_runtime_really_runs(
    bundle: Path, calibrate: Callable[[bytes], Calibration]
) -> None:
    loaded = Bundle.load(bundle)
    made = calibrate(loaded.graphs["encoder"])
    made = replace(made, image_size=loaded.manifest.image_size, preprocessing=loaded.manifest.preprocessing)
    made.save(bundle / "calibration.json")
    result = build_engines(bundle, BuildOptions(engine="onnxruntime"))
    encoder = result.engines["encoder"].record
    assert (result.precision, encoder.precision) == ("int8", "int8")
    # Query, key and value may be a product each.
    assert encoder.gemms == encoder.int8_gemms >= 4 * loaded.manifest.num_layers
    assert encoder.calibration is not None
    assert encoder.calibration["sha256"] == made.sha256
    assert result.latency_ms.keys() == {"fp32", "int8"}
    head = result.engines["head"].record
    assert head.latency_ms == head.fp32_latency_ms, "the head stays FP32, so a difference would be noise"


# ------------------------------------------------------------------------------------------------------- calibration


@pytest.mark.slow(reason="calibrates and builds, 4 s")
def test_a_source_is_calibrated_on_and_its_pictures_verify_the_engines(bundle: Path, tmp_path: Path) -> None:
    source = pictures(tmp_path / "album", 5)
    steps: list[str] = []
    options = replace(RTX, precision="int8", calib=str(source), targets=("sm86",))
    result = build_engines(bundle, options, steps.append)
    assert any(step.startswith("calibrate: picture") for step in steps)
    encoder = result.engines["encoder"].record
    assert encoder.calibration is not None
    assert encoder.calibration["pictures"] == 5
    assert result.agreement is not None
    assert (result.agreement.pictures, result.agreement.source) == (5, str(source))
    assert "used only 5 pictures;" in result.notes[0]
    assert result.engines["encoder"].record.int8_gemms == 4 * Bundle.load(bundle).manifest.num_layers
    assert any("compare with --fp16" in line for line in result.advice)


def test_a_calibration_of_another_model_is_refused(bundle: Path, calibrate: Callable[[bytes], Calibration]) -> None:
    made = calibrate(Bundle.load(bundle).graphs["encoder"])
    made.save(bundle / "other.json")
    with pytest.raises(ArtifactError, match="for images of 400 px, the bundle has 48 px"):
        build_engines(bundle, replace(RTX, precision="int8", calib=str(bundle / "other.json")))


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (replace(RTX, calib="x.json"), "--calib has no effect here: only --int8 uses a calibration"),
        (replace(RTX, quantize=("*qkv*",)), "--quantize has no effect here"),
        (replace(CPU, keep_fp32=("Softmax",)), "--keep-fp32 has no effect here: everything is FP32"),
        (replace(CPU, targets=("sm86",)), "--target has no effect here: it is for tensorrt-rtx, not for onnxruntime"),
        (replace(RTX, timing_cache=Path("x")), "--timing-cache has no effect here: it is for tensorrt, not for"),
        (replace(CPU, workspace_mib=9), "--workspace has no effect here: it is for TensorRT"),
        (replace(CPU, max_ways=3), "--max-ways has no effect here: ONNX Runtime has no limit"),
        (replace(CPU, max_shots=3), "--max-shots has no effect here"),
        (replace(CPU, precision="fp16"), "On a CPU, ONNX Runtime emulates FP16 in FP32, which is slower"),
        (replace(CPU, precision="fp8"), "Precision 'fp8' is unknown; choose one of: fp32, fp16, int8"),
        (replace(CPU, engine="openvino"), "--engine openvino is unknown; choose one of: auto, tensorrt, tensorrt-rtx"),
        (replace(RTX, max_drop=1.0), "name the data set with --data DIR"),
        (replace(RTX, precision="int8"), r"has none: name pictures.* fsvit-edge calib SOURCE --bundle"),
        (replace(RTX, keep_fp32=("Nonsense",)), "--keep-fp32 'Nonsense' matches no node"),
    ],
)
def test_options_that_have_no_effect_or_make_no_sense_are_refused(
    bundle: Path, options: BuildOptions, text: str
) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match=text):
        build_engines(bundle, options, said.append, said.append)
    assert records(bundle) == {}


def _no_scikit_image(_: int) -> None:
    raise EnvironmentLacksError("The demo needs scikit-image")


@pytest.mark.parametrize(
    ("broken", "value", "kind", "text"),
    [
        (
            "fsvit_edge.export.measure.demo_frame",
            _no_scikit_image,
            EnvironmentLacksError,
            r'"fsvit-edge\[demo\]", give your own with --calib SOURCE, or',
        ),
        (
            "os.access",  # the tests may run as root
            lambda *_: False,
            FsvitEdgeError,
            r"Engines cannot be written to .*: no permission in .*XDG_CACHE_HOME",
        ),
        (
            "fsvit_edge.export.job.free_memory",
            lambda: 10_000_000,
            FsvitEdgeError,
            r"encoder needs about \d+ MB of memory, but only 10 MB are free",
        ),
    ],
)
def test_a_machine_that_lacks_something_is_told_before_the_build(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, broken: str, value: Any, kind: type[FsvitEdgeError], text: str
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(broken, value)
    with pytest.raises(kind, match=text):
        build_engines(bundle, CPU, steps.append)
    assert "build the encoder" not in steps


# --------------------------------------------------------------------------------------------- accuracy and failures


@pytest.mark.slow(reason="builds with TensorRT-RTX, 3 s")
def test_an_engine_that_overflows_is_not_written(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, altered: Callable[..., type[OnnxRuntimeEngine]]
) -> None:
    overflowing = altered("tokens", lambda tokens: np.full_like(tokens, np.inf))

    def open_on_cpu(graphs: dict[str, bytes], stack: Any) -> Any:
        engines = measure.open_on_cpu(graphs, stack)
        if "enroll" in graphs:  # the reference
            return engines
        return {**engines, "encoder": stack.enter_context(overflowing(graphs["encoder"], "cpu"))}

    monkeypatch.setattr(build_module, "open_on_cpu", open_on_cpu)
    with pytest.raises(AccuracyGateError, match=r"overflows in the engine: not finite in encoder\.tokens; nothing was"):
        build_engines(bundle, RTX)
    assert records(bundle) == {}


@pytest.mark.slow(reason="builds with TensorRT-RTX, 3 s")
def test_overflow_in_fp16_is_found_where_fp16_is_emulated(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = (Overflow("block.2", "node_add_2", 70_000.0),)
    monkeypatch.setattr("fsvit_edge.export.measure.find_overflows", lambda *_: found)
    with pytest.raises(
        AccuracyGateError, match=r"'block\.2' of the encoder overflows in FP16: it reaches 7e\+04; .* 'node_"
    ):
        build_engines(bundle, RTX)
    assert records(bundle) == {}


def test_a_data_set_scores_both_precisions_on_the_same_episodes(
    bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "EPISODES", 6)
    result = build_engines(bundle, replace(FAST, data=data, max_drop=0.0))
    fp32, own = result.scores
    assert fp32 == own
    assert fp32.miou is not None


# ------------------------------------------------------------------------------------------------ which backend builds


@pytest.mark.parametrize(
    ("installed", "gpu", "targets", "chosen", "reason"),
    [
        (("tensorrt", "tensorrt-rtx"), ORIN, False, "tensorrt", "it is installed and there is a GPU, Orin"),
        (("tensorrt", "tensorrt-rtx"), ORIN, True, "tensorrt-rtx", "it is installed and there is a GPU"),
        (("tensorrt", "tensorrt-rtx"), None, False, "tensorrt-rtx", "builds for GPUs elsewhere; here no"),
        (("tensorrt",), None, False, "onnxruntime", "TensorRT is installed, but no"),
        (("tensorrt-rtx",), ADA, False, "tensorrt-rtx", "there is a GPU, RTX 4090"),
        (("tensorrt-rtx",), H100, False, "onnxruntime", r"does not support the NVIDIA H100 \(sm90\)"),
        (("tensorrt-rtx",), None, False, "tensorrt-rtx", "builds for GPUs elsewhere"),
        ((), ADA, False, "onnxruntime", "neither TensorRT nor TensorRT-RTX is installed"),
        ((), None, False, "onnxruntime", "neither"),
    ],
)
def test_auto_chooses_among_the_installed_backends(
    monkeypatch: pytest.MonkeyPatch,
    installed: tuple[str, ...],
    gpu: Gpu | None,
    targets: bool,
    chosen: str,
    reason: str,
) -> None:
    install(monkeypatch, "10.3.0")
    monkeypatch.setattr(job_module, "installed_backends", lambda: installed)
    backend = choose_backend("auto", gpu, targets)
    assert backend.name == chosen
    assert re.search(reason, backend.reason)
    assert backend.default_precision == ("int8" if chosen == "onnxruntime" else "fp16")


def test_tensorrt_without_a_gpu_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3.0")
    monkeypatch.setattr("fsvit_edge.runtime.gpu._LIBRARY", "no-driver.so.1")
    with pytest.raises(EnvironmentLacksError, match="builds on the GPU that will run the engine, but no NVIDIA driver"):
        build_engines(bundle, BuildOptions(engine="tensorrt"))


# -------------------------------------------------------------------------------------- TensorRT, with a fake GPU


@pytest.fixture
def orin(fake: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """TensorRT and a GPU; the bundle's FP32 graphs compute in place of the engines."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: cls("Linux", "aarch64", "Orin", ORIN, "36.4.3")))

    def open_candidate(job: Any, engines: dict[str, Any], stack: Any) -> Any:
        return {name: stack.enter_context(OnnxRuntimeEngine(job.bundle.graphs[name], "cpu")) for name in engines}

    monkeypatch.setattr(build_module, "open_candidate", open_candidate)
    monkeypatch.setattr(measure, "open_candidate", open_candidate)
    installed = "fsvit_edge.runtime.engines.fitting.installed_version"
    monkeypatch.setattr(installed, lambda _: fake.__version__)
    return fake


def test_tensorrt_on_a_gpu_is_chosen_built_timed_and_described(bundle: Path, orin: FakeTensorRT) -> None:
    result = build_engines(bundle, BuildOptions(workspace_mib=64))
    assert (result.backend.name, result.precision, result.runs_here) == ("tensorrt", "fp16", True)
    record = result.engines["encoder"].record
    assert record.file.startswith(f"encoder.Orin.sm87.trt{orin.__version__}.fp16.")
    assert record.machine.gpu is not None
    assert (record.machine.gpu.name, record.machine.l4t) == ("Orin", "36.4.3")
    assert (record.targets, record.int8_gemms, record.gemms) == ((), 1, 2)
    assert {spec.dtype for spec in record.outputs} == {"float16"}
    assert record.latency_ms is not None
    assert result.latency_ms.keys() == {"fp16"}
    assert all(builder.config.pools == {"workspace": 64 * 2**20} for builder in orin.builders)
    assert build_engines(bundle, BuildOptions(workspace_mib=64)).up_to_date


def test_int8_on_a_gpu_is_timed_next_to_existing_fp16_engines(
    bundle: Path, orin: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build_engines(bundle, BuildOptions(verify=False))
    monkeypatch.setattr(measure, "time_side_by_side", lambda engines, _: [2.0, 3.0][: len(engines)])
    options = BuildOptions(precision="int8", calib=str(pictures(tmp_path / "album", 3)), verify=False)
    result = build_engines(bundle, options)
    assert result.latency_ms == {"fp16": 4.0, "int8": 6.0}
    assert "INT8 takes 6.0 ms, FP16 4.0 ms; use --precision fp16." in result.advice
    assert orin.builders


def test_a_plan_for_more_classes_is_built_anew_and_a_failed_build_leaves_it(bundle: Path, orin: FakeTensorRT) -> None:
    assert not build_engines(bundle, BuildOptions(verify=False)).up_to_date
    assert build_engines(bundle, BuildOptions(verify=False)).up_to_date
    assert not build_engines(bundle, BuildOptions(verify=False, max_ways=20)).up_to_date
    before = records(bundle)
    assert before["head"].limits == {"supports": 100, "ways": 20, "kept_tokens": 145}
    orin.build_errors = ["CUDA out of memory"]
    with pytest.raises(FsvitEdgeError, match="failed to build the encoder: CUDA out of memory; close other programs"):
        build_engines(bundle, BuildOptions(verify=False, force=True))
    assert records(bundle) == before


@pytest.mark.usefixtures("orin")
def test_losing_more_than_allowed_writes_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lost = (PrecisionScores("fp32", 90.0, 60.0), PrecisionScores("fp16", 90.0, 58.5))
    monkeypatch.setattr(build_module, "score", lambda *_: lost)
    options = BuildOptions(verify=False, data=tmp_path)
    with pytest.raises(
        AccuracyGateError, match=r"The mIoU is 60\.0 % in FP32 and 58\.5 % in FP16: 1\.5 points lost, 1 "
    ):
        build_engines(bundle, replace(options, max_drop=1.0))
    assert records(bundle) == {}
    with pytest.raises(AccuracyGateError):  # NaN
        check_drop((PrecisionScores("fp32", 90.0, None), PrecisionScores("int8", float("nan"), None)), 100.0)
    assert build_engines(bundle, replace(options, max_drop=1.6)).scores == lost
    assert records(bundle).keys() == {"encoder", "head"}
