import hashlib
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from choosing import NO_DRIVER, SPOILT, alter, chosen, pretend, refusal
from engine_records import MACHINE, VERSIONS, edit, write_set
from onnx_bytes import field

from fsvit_edge.fewshot.bank import SupportBank
from fsvit_edge.fewshot.predictor import FewShotModel
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines import choose
from fsvit_edge.runtime.engines.choose import choose_engines
from fsvit_edge.runtime.engines.files import engine_folder, sidecar_of
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, InputError


def opened_in_fp32(bundle: Bundle) -> list[bytes]:
    compare, outline = bundle.cpu_graphs["compare"], bundle.cpu_graphs["outline"]
    return [bundle.graphs["encoder"], bundle.graphs["enroll"], compare, compare, outline]


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
@pytest.mark.parametrize(("spoil", "reason"), [(alter, "was altered or damaged"), (Path.unlink, "cannot be read")])
def test_a_damaged_int8_encoder_is_never_parsed_and_always_reported(
    bundle: Bundle, parsed: list[tuple[Any, str]], spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(bundle.path / "int8_encoder.onnx")
    choice = chosen(bundle)
    assert choice.precision == "fp32"
    (note,) = choice.notes
    assert f"int8_encoder.onnx {reason}" in note
    assert [given for given, _ in parsed] == opened_in_fp32(bundle)
    parsed.clear()
    refused = refusal(ArtifactError, bundle, "auto", "int8")
    assert reason in refused
    assert refused.endswith(f"in INT8: fsvit-edge build-engine {bundle.path} --engine onnxruntime --precision int8.")
    assert "export" not in refused  # which makes none
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
    reasons = {"int8": "No INT8 engine for ONNX Runtime has been built", "fp16": "--precision fp16 needs a GPU"}
    assert choice.lacks.keys() == {made_in} & reasons.keys()
    assert all(reason.startswith(reasons[precision]) for precision, reason in choice.lacks.items())


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
def test_an_engine_whose_values_are_in_another_file_is_refused(bundle: Bundle) -> None:
    path = write_set(bundle.path)["encoder"]
    assert chosen(bundle).precision == "int8"  # the control
    data = path.read_bytes() + field(7, field(5, field(13, field(1, "location"))))
    path.write_bytes(data)
    edit(sidecar_of(path), sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    choice = chosen(bundle)
    assert choice.precision == "fp32"
    assert "keeps values in another file, which its sha256 does not cover; rebuild it" in choice.notes[0]


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


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("auto", "was made in bf16, which does not run here (--engine openvino needs the package openvino, which "),
        ("fp32", "was made in bf16, but the engines here compute in fp32; use it with --engine auto --precision bf16"),
    ],
)
@pytest.mark.usefixtures("on_cpu")
def test_a_bank_whose_precision_does_not_run_here_is_refused_with_the_reason(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, said: str
) -> None:
    """The advice to use that precision would fail for the same reason."""
    bank = tmp_path / "bank.safetensors"
    monkeypatch.setitem(sys.modules, "openvino", None)
    with FewShotModel.load(bundle.path, precision=precision, threads=1) as model:
        SupportBank(replace(model.bank.identity, precision="bf16"), model.bank.head).save(bank)
    with (
        FewShotModel.load(bundle.path, precision=precision, threads=1, bank=bank) as model,
        pytest.raises(ArtifactError, match=re.escape(said)),
    ):
        model.load_bank(bank)
