import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_records import GPU, MACHINE, VERSIONS, copy_bundle, edit, write_set
from fake_engine import FakeEngine

from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines import choose, fitting, open_graphs
from fsvit_edge.runtime.engines.choose import EngineChoice, choose_engines
from fsvit_edge.runtime.engines.files import EngineRecord, engine_folder, sidecar_of
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.machine import Machine

NO_DRIVER = "no NVIDIA driver (libcuda.so.1) is installed"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.load(copy_bundle(tmp_path / "bundle"))


def pretend(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: machine))
    monkeypatch.setattr(choose, "find_gpu", lambda: machine.gpu)
    reason = "" if machine.gpu else NO_DRIVER
    for module in (choose, fitting):
        monkeypatch.setattr(module, "installed_version", VERSIONS.get)
        monkeypatch.setattr(module, "gpu_missing_reason", lambda: reason)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU."""
    pretend(monkeypatch, replace(MACHINE, gpu=None))


class Opened(list[str]):
    """Which plans were deserialized; those whose names start with a key of `refuse` fail with its error."""

    def __init__(self) -> None:
        self.refuse: dict[str, FsvitEdgeError] = {}
        self.closed: list[str] = []


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """A machine with a GPU whose TensorRT only notes what it is given to deserialize."""
    pretend(monkeypatch, MACHINE)
    opened = Opened()

    class Plan(FakeEngine):
        def __init__(self, plan: bytes, record: EngineRecord, api: object, memory: object) -> None:
            assert (len(plan), api, memory) == (record.size_bytes, "api", "memory")
            opened.append(record.file)
            for start, error in opened.refuse.items():
                if record.file.startswith(start):
                    raise error
            super().__init__(record.inputs, record.outputs, lambda _: {})

        def close(self) -> None:
            opened.closed.append("a plan")

    monkeypatch.setattr(open_graphs, "TensorRtEngine", Plan)
    monkeypatch.setattr(open_graphs, "open_tensorrt", lambda _: "api")
    monkeypatch.setattr(open_graphs, "open_device_memory", lambda: "memory")
    return opened


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """What ONNX Runtime was given, and for which provider; it runs on the CPU."""
    given: list[tuple[Any, str]] = []

    class Listening(OnnxRuntimeEngine):
        def __init__(self, graph: Any, provider: str, threads: int | None) -> None:
            given.append((graph, provider))
            super().__init__(graph, "cpu", threads)

    monkeypatch.setattr(open_graphs, "OnnxRuntimeEngine", Listening)
    return given


def opened_in_fp32(bundle: Bundle) -> list[bytes]:
    compare, outline = bundle.cpu_graphs["compare"], bundle.cpu_graphs["outline"]
    return [bundle.graphs["encoder"], bundle.graphs["enroll"], compare, compare, outline]


def chosen(bundle: Bundle, *arguments: Any) -> EngineChoice:
    engines, choice = choose_engines(bundle, *arguments, threads=1)
    for engine in engines.values():
        engine.close()
    return choice


def refusal(kind: type[FsvitEdgeError], bundle: Bundle, *arguments: Any) -> str:
    with pytest.raises(FsvitEdgeError) as refused:
        choose_engines(bundle, *arguments, threads=1)
    assert type(refused.value) is kind, refused.value
    assert "\n" not in str(refused.value)
    return str(refused.value)


# -------------------------------------------------------------------------------------------------------------- the CPU


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("engine", "precision"), [("auto", "auto"), ("onnxruntime", "auto"), ("auto", "fp32"), ("onnxruntime", "fp32")]
)
def test_the_bundle_itself_runs_if_nothing_is_built(bundle: Bundle, engine: str, precision: str) -> None:
    choice = chosen(bundle, engine, precision)
    assert (choice.engine, choice.precision, choice.notes) == ("onnxruntime", "fp32", ())
    assert choice.description == f"FP32 in ONNX Runtime {VERSIONS['onnxruntime']} on the CPU"


@pytest.mark.usefixtures("on_cpu")
def test_the_fastest_set_measured_here_runs(bundle: Bundle) -> None:
    write_set(bundle.path, precision="int8", latency_ms=5.0, fp32_latency_ms=10.0)
    write_set(bundle.path, precision="fp32", latency_ms=7.0, fp32_latency_ms=10.0)
    for engine in ("auto", "onnxruntime"):
        choice = chosen(bundle, engine)
        assert (choice.engine, choice.precision, choice.notes) == ("onnxruntime", "int8", ())
    assert choice.description == f"INT8 in ONNX Runtime {VERSIONS['onnxruntime']}, built 2026-11-25"
    # Ratios within a run count: in a run on a busy machine both were slow.
    write_set(bundle.path, precision="fp32", latency_ms=12.0, fp32_latency_ms=30.0)
    assert chosen(bundle).precision == "fp32"
    assert "built 2026-11-25" in chosen(bundle).description


NOT_MEASURED = "were not measured on this processor"


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"latency_ms": 10.0, "fp32_latency_ms": 10.0},
            "The INT8 engines for ONNX Runtime are no faster here than the FP32 graphs (20.0 ms against 20.0 ms when "
            "they were built), so they run only with --precision int8.",
        ),
        ({"latency_ms": 31.0, "fp32_latency_ms": 10.0}, "(62.0 ms against 20.0 ms when they were built)"),
        ({"latency_ms": None}, f"{NOT_MEASURED}, so they run only with --precision int8; measure them"),
        ({"fp32_latency_ms": None}, NOT_MEASURED),
        ({"machine": replace(MACHINE, cpu="Slow CPU")}, NOT_MEASURED),
    ],
)
def test_a_set_not_known_to_be_faster_runs_only_if_its_precision_is_named(
    bundle: Bundle, changes: dict[str, Any], note: str
) -> None:
    write_set(bundle.path, **changes)
    choice = chosen(bundle)
    assert choice.precision == "fp32"
    (told,) = choice.notes
    assert note in told
    named = chosen(bundle, "auto", "int8")
    assert (named.engine, named.precision) == ("onnxruntime", "int8")
    assert named.notes == (told,)


@pytest.mark.usefixtures("on_cpu")
def test_the_bundle_runs_in_fp32_if_the_fp32_set_is_slower(bundle: Bundle) -> None:
    write_set(bundle.path, precision="fp32", latency_ms=11.0, fp32_latency_ms=10.0)
    choice = chosen(bundle, "onnxruntime", "fp32")
    assert choice.description.endswith("on the CPU")
    assert "no faster here" in choice.notes[0]


@pytest.mark.usefixtures("on_cpu")
def test_a_set_of_both_graphs_by_onnx_runtime_runs(bundle: Bundle) -> None:
    write_set(bundle.path)
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    answers = []
    for precision in ("fp32", "int8"):  # the very same graphs here
        with FewShotModel.load(bundle.path, "onnxruntime", precision, threads=1) as model:
            assert model.choice.precision == precision == model.bank.identity.precision
            model.enroll("thing", [picture])
            answers.append(model.predict(picture).scores)
    assert np.array_equal(*answers)


def alter_encoder(bundle: Bundle) -> None:
    path = bundle.path / "int8_encoder.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def no_encoder(bundle: Bundle) -> None:
    (bundle.path / "int8_encoder.onnx").unlink()


@pytest.fixture
def with_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whose processor has VNNI."""
    pretend(monkeypatch, replace(MACHINE, gpu=None))
    monkeypatch.setattr(choose, "has_vnni_here", lambda: True)


@pytest.mark.usefixtures("with_vnni")
def test_the_bundles_int8_encoder_runs_on_a_processor_with_vnni(bundle: Bundle) -> None:
    for engine, precision in (("auto", "auto"), ("onnxruntime", "auto"), ("auto", "int8"), ("onnxruntime", "int8")):
        choice = chosen(bundle, engine, precision)
        assert (choice.engine, choice.precision, choice.notes) == ("onnxruntime", "int8", ())
        assert choice.description == f"INT8 encoder in ONNX Runtime {VERSIONS['onnxruntime']} on the CPU"
    assert chosen(bundle, "auto", "fp32").precision == "fp32"
    older = replace(bundle, manifest=replace(bundle.manifest, int8_encoder=None))
    assert chosen(older).precision == "fp32"


@pytest.mark.usefixtures("on_cpu")
def test_the_bundles_int8_encoder_never_runs_on_another_processor(bundle: Bundle) -> None:
    assert chosen(bundle).precision == "fp32"
    assert "No INT8 engine for ONNX Runtime has been built" in refusal(ArtifactError, bundle, "auto", "int8")


@pytest.mark.usefixtures("with_vnni")
def test_engines_that_were_measured_here_come_before_the_bundles_int8_encoder(bundle: Bundle) -> None:
    write_set(bundle.path, latency_ms=10.0, fp32_latency_ms=10.0)
    choice = chosen(bundle)
    assert choice.precision == "fp32"  # INT8 is no faster here
    assert "no faster here" in choice.notes[0]
    write_set(bundle.path, latency_ms=5.0, fp32_latency_ms=10.0)
    assert "built 2026-11-25" in chosen(bundle).description


@pytest.mark.usefixtures("with_vnni")
@pytest.mark.parametrize(
    ("spoil", "reason"), [(alter_encoder, "was altered or damaged"), (no_encoder, "cannot be read")]
)
def test_a_damaged_int8_encoder_is_never_parsed_and_always_reported(
    bundle: Bundle, parsed: list[tuple[Any, str]], spoil: Callable[[Bundle], object], reason: str
) -> None:
    spoil(bundle)
    choice = chosen(bundle)
    assert choice.precision == "fp32"
    (note,) = choice.notes
    assert f"int8_encoder.onnx {reason}" in note
    assert [given for given, _ in parsed] == opened_in_fp32(bundle)
    parsed.clear()
    assert reason in refusal(ArtifactError, bundle, "auto", "int8")
    assert parsed == []


@pytest.mark.usefixtures("with_vnni")
def test_a_bank_opens_in_its_own_precision_and_names_no_engine_that_is_missing(bundle: Bundle, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for precision in ("fp32", "int8"):
        bank = tmp_path / f"{precision}.safetensors"
        with FewShotModel.load(bundle.path, precision=precision, threads=1) as model:
            model.enroll("thing", [picture])
            model.save_bank(bank)
        with FewShotModel.load(bundle.path, threads=1, bank=bank) as model:
            assert model.choice.precision == precision
            model.load_bank(bank)
            assert model.classes == ("thing",)
    for unusable in (tmp_path / "none.safetensors", bundle.path / "head.onnx"):
        with FewShotModel.load(bundle.path, threads=1, bank=unusable) as model:
            assert model.choice.precision == "int8"


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("made_in", ["int8", "fp16", "fp64"])
def test_a_bank_of_a_precision_that_nothing_has_leaves_the_choice(bundle: Bundle, made_in: str) -> None:
    engines, choice = choose_engines(bundle, threads=1, made_in=made_in)
    for engine in engines.values():
        engine.close()
    assert (choice.precision, choice.notes) == ("fp32", ())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


SPOILT: list[Any] = [
    (truncate, "is truncated or altered"),
    (alter, "was altered or damaged: sha256"),
    (Path.unlink, "cannot be read: No such file"),
    (lambda path: edit(sidecar_of(path), graph="enroll"), "has graph 'enroll'"),
    (
        lambda path: sidecar_of(path).unlink(),
        "have no {graph}; build it with: fsvit-edge build-engine {bundle} --engine",
    ),
    (lambda path: edit(sidecar_of(path), onnx_sha256="ab" * 32), "was built from a different"),
    (lambda path: edit(sidecar_of(path), backend_version="1"), "and runs in no other version"),
]


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("spoil", "reason"), SPOILT)
@pytest.mark.parametrize("graph", ["encoder", "head"])
def test_a_damaged_or_unfit_graph_is_never_parsed_and_always_reported(
    bundle: Bundle, parsed: list[tuple[Any, str]], spoil: Callable[[Path], Any], reason: str, graph: str
) -> None:
    spoil(write_set(bundle.path)[graph])
    choice = chosen(bundle)
    assert choice.precision == "fp32"
    assert any(reason.format(graph=graph, bundle=bundle.path) in note for note in choice.notes)
    assert [given for given, _ in parsed] == opened_in_fp32(bundle)
    parsed.clear()
    assert reason.format(graph=graph, bundle=bundle.path) in refusal(ArtifactError, bundle, "auto", "int8")
    assert parsed == []


@pytest.mark.usefixtures("on_cpu")
def test_a_graph_that_differs_from_its_sidecar_is_refused(bundle: Bundle) -> None:
    paths = write_set(bundle.path)
    write_set(bundle.path, precision="fp32", latency_ms=9.0)
    head = (bundle.path / "head.onnx").read_bytes()
    paths["encoder"].write_bytes(head)
    edit(sidecar_of(paths["encoder"]), sha256=hashlib.sha256(head).hexdigest(), size_bytes=len(head))
    choice = chosen(bundle)
    assert choice.precision == "fp32"  # the next best
    assert "differ from its sidecar" in choice.notes[0]


@pytest.mark.usefixtures("on_cpu")
def test_plans_do_not_run_without_a_gpu(bundle: Bundle) -> None:
    write_set(bundle.path, "tensorrt", "fp16")
    choice = chosen(bundle)
    assert (choice.engine, choice.notes) == ("onnxruntime", ())  # said by `doctor`, not by every command
    for engine in ("tensorrt", "tensorrt-rtx"):
        text = refusal(EnvironmentLacksError, bundle, engine)
        assert text == f"--engine {engine} needs a GPU, but {NO_DRIVER}; without a GPU, use --engine onnxruntime."
    text = refusal(EnvironmentLacksError, bundle, "auto", "fp16")
    assert text.startswith("--precision fp16 needs a GPU, but no NVIDIA driver (libcuda.so.1) is installed; use --prec")
    text = refusal(ArtifactError, bundle, "auto", "int8")
    command = f"fsvit-edge build-engine {bundle.path} --engine onnxruntime --precision int8"
    assert text.endswith(f"built from cst-nano; build one with: {command}.")


# -------------------------------------------------------------------------------------------------------------- the GPU


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_that_fits_runs(bundle: Bundle, on_gpu: Opened, backend: str) -> None:
    write_set(bundle.path, backend, "fp16")
    for engine in ("auto", backend):
        on_gpu.clear()
        choice = chosen(bundle, engine)
        assert (choice.engine, choice.precision, choice.notes) == (backend, "fp16", ())
        assert [name.split(".")[0] for name in on_gpu] == ["encoder", "head"]
    assert chosen(bundle, "onnxruntime").engine == "onnxruntime"


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ({"fp32": 9.0, "fp16": 3.0, "int8": 2.0}, "int8"),
        ({"fp32": 9.0, "fp16": 3.0, "int8": 4.0}, "fp16"),
        ({"fp32": 9.0, "fp16": None, "int8": None}, "fp32"),
        ({"fp32": None, "fp16": None, "int8": None}, "fp16"),
        ({"fp32": None, "int8": None}, "fp32"),
    ],
)
def test_the_plan_that_measured_fastest_runs_and_int8_is_not_assumed_faster(
    bundle: Bundle, on_gpu: Opened, times: dict[str, float | None], best: str
) -> None:
    for precision, latency in times.items():
        write_set(bundle.path, "tensorrt", precision, latency_ms=latency)
    assert chosen(bundle).precision == best
    assert len(on_gpu) == 2
    for precision in times:
        assert chosen(bundle, "auto", precision).precision == precision


@pytest.mark.parametrize(("spoil", "reason"), SPOILT)
@pytest.mark.parametrize("graph", ["encoder", "head"])
def test_a_damaged_or_unfit_plan_is_never_deserialized(
    bundle: Bundle, on_gpu: Opened, spoil: Callable[[Path], Any], reason: str, graph: str
) -> None:
    paths = write_set(bundle.path, "tensorrt", "fp16")
    assert chosen(bundle).engine == "tensorrt"
    assert len(on_gpu) == 2  # the control: the recorder records
    on_gpu.clear()
    spoil(paths[graph])
    choice = chosen(bundle)
    assert choice.engine == "onnxruntime"
    assert any(reason.format(graph=graph, bundle=bundle.path) in note for note in choice.notes)
    assert reason.format(graph=graph, bundle=bundle.path) in refusal(ArtifactError, bundle, "tensorrt")
    assert on_gpu == []


def test_plans_for_another_gpu_are_refused_if_named_and_passed_over_by_auto(
    bundle: Bundle, on_gpu: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(bundle.path, "tensorrt", "fp16")
    write_set(bundle.path, "tensorrt-rtx", "fp16", targets=("sm89",))
    pretend(monkeypatch, replace(MACHINE, gpu=replace(GPU, name="NVIDIA L40")))
    choice = chosen(bundle)
    assert (choice.engine, choice.notes) == ("tensorrt-rtx", ())
    assert "was built for NVIDIA L4 and fits no other GPU, but this is NVIDIA L40" in refusal(
        ArtifactError, bundle, "tensorrt"
    )
    assert all(".rtx" in name for name in on_gpu)


@pytest.mark.parametrize(
    "error", [EnvironmentLacksError("No pycuda."), ArtifactError("Refused."), FsvitEdgeError("Full.")]
)
@pytest.mark.parametrize("start", ["encoder", "head"])
def test_a_plan_that_fails_to_open_is_reported_and_closed(
    bundle: Bundle, on_gpu: Opened, error: FsvitEdgeError, start: str
) -> None:
    write_set(bundle.path, "tensorrt", "fp16")
    on_gpu.refuse[start] = error
    choice = chosen(bundle)
    assert (choice.engine, choice.notes) == ("onnxruntime", (str(error),))
    assert refusal(type(error), bundle, "tensorrt") == str(error)
    assert len(on_gpu.closed) == (0 if start == "encoder" else 2)


def test_the_next_best_plan_runs_if_the_best_fails_to_open(bundle: Bundle, on_gpu: Opened) -> None:
    write_set(bundle.path, "tensorrt", "int8", latency_ms=1.0)
    write_set(bundle.path, "tensorrt", "fp16", latency_ms=2.0)
    on_gpu.refuse["encoder.NVIDIA-L4.sm89.trt10.13.0.int8"] = FsvitEdgeError("The GPU's memory is full.")
    choice = chosen(bundle)
    assert (choice.precision, choice.notes) == ("fp16", ("The GPU's memory is full.",))


def test_the_error_for_a_named_engine_has_the_command_that_builds_it(bundle: Bundle, on_gpu: Opened) -> None:
    command = f"build one with: fsvit-edge build-engine {bundle.path} --engine tensorrt"
    text = refusal(ArtifactError, bundle, "tensorrt")
    assert text == f"No engine for TensorRT has been built from cst-nano; {command}."
    text = refusal(ArtifactError, bundle, "tensorrt", "int8")
    assert text == f"No INT8 engine for TensorRT has been built from cst-nano; {command} --precision int8."
    text = refusal(ArtifactError, bundle, "auto", "fp16")
    assert text.endswith(f"build one with: fsvit-edge build-engine {bundle.path} --precision fp16.")
    assert on_gpu == []


def test_the_error_for_a_missing_package_is_that_of_tensorrt(
    bundle: Bundle, on_gpu: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(bundle.path, "tensorrt", "fp16")
    monkeypatch.setattr(choose, "installed_version", lambda _: None)

    def missing(backend: str) -> None:
        raise EnvironmentLacksError(f"{backend} is not installed.")

    monkeypatch.setattr(choose, "open_tensorrt", missing)
    assert refusal(EnvironmentLacksError, bundle, "tensorrt") == "tensorrt is not installed."
    assert on_gpu == []


def test_onnx_runtime_on_cuda_comes_after_plans_and_before_the_cpu(
    bundle: Bundle, on_gpu: Opened, parsed: list[tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: installed)
    write_set(bundle.path)  # INT8 for the CPU
    choice = chosen(bundle)
    assert (choice.engine, choice.precision) == ("onnxruntime-cuda", "fp32")
    assert choice.description.endswith("on CUDA")
    assert [provider for _, provider in parsed] == ["cuda"] * 3
    assert chosen(bundle, "auto", "int8").engine == "onnxruntime"
    write_set(bundle.path, "tensorrt", "fp16")
    parsed.clear()
    assert chosen(bundle).engine == "tensorrt"
    assert [provider for _, provider in parsed] == ["cpu"]  # enrollment
    assert chosen(bundle, "onnxruntime-cuda").engine == "onnxruntime-cuda"
    assert len(on_gpu) == 2


# ---------------------------------------------------------------------------------------------------------- the options


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("engine", "precision", "reason"),
    [
        (
            "gpu",
            "auto",
            "is unknown; choose one of: auto, onnxruntime, onnxruntime-cuda, openvino, tensorrt, tensorrt-rtx.",
        ),
        ("cpu", "auto", "Engine 'cpu' is now called 'onnxruntime'."),
        ("cuda", "fp16", "Engine 'cuda' is now called 'onnxruntime-cuda'."),
        ("auto", "fp64", "Precision 'fp64' is unknown; choose one of: auto, fp32, bf16, fp16, int8."),
        ("onnxruntime", "fp16", "emulates FP16 in FP32, which is slower; use --precision fp32 or int8."),
        ("onnxruntime-cuda", "int8", "the bundle's own FP32 graphs; for INT8 on a GPU, build an engine with: "),
    ],
)
def test_unknown_or_contradictory_options_are_refused(bundle: Bundle, engine: str, precision: str, reason: str) -> None:
    assert reason in refusal(InputError, bundle, engine, precision)


@pytest.mark.usefixtures("on_cpu")
def test_without_a_home_folder_the_bundled_model_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with FewShotModel.load(threads=1) as model:
        assert model.choice.engine == "onnxruntime"


@pytest.mark.usefixtures("on_cpu")
def test_engines_of_the_bundled_model_are_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shipped = Bundle.load(DEFAULT_BUNDLE)
    write_set(engine_folder(shipped.path, shipped.manifest))
    assert chosen(shipped).precision == "int8"
    shutil.rmtree(tmp_path / "fsvit-edge")
    assert chosen(shipped).precision == "fp32"
