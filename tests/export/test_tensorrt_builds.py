"""TensorRT plans, built with fakes of several versions: what TensorRT is asked, and what becomes of its answers."""

import fcntl
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from fake_builder import LAYERS, FakeTensorRT

from fsvit_edge.export.built_graph import BuiltGraph, LayerReport
from fsvit_edge.export.job import choose_targets
from fsvit_edge.export.tensorrt import PlanRequest, build_plan, keep_timings, report_layers
from fsvit_edge.runtime.engines.base import TensorSpec
from fsvit_edge.runtime.engines.tensorrt_api import open_tensorrt
from fsvit_edge.runtime.errors import ArtifactError, EnvironmentLacksError, FsvitEdgeError, InputError
from fsvit_edge.runtime.gpu import Gpu
from fsvit_edge.runtime.messages import Progress, Say

ORIN = Gpu("Orin", (8, 7), 16, 64 * 2**30, "12.6")
H100 = Gpu("NVIDIA H100", (9, 0), 132, 80 * 2**30, "13.0")
NAMES = {"image": ("batch", 8, 8, 3), "tokens": ("batch", 4)}


def build(
    progress: Progress = lambda _: None,
    say: Say = lambda _: None,
    graph: bytes = b"graph",
    batch: Any = (1, 1, 1),
    **options: Any,
) -> BuiltGraph:
    api = open_tensorrt("tensorrt")
    return build_plan(api, graph, PlanRequest("encoder", {"batch": batch}, NAMES, ORIN, **options), progress, say)


def timings(fake: FakeTensorRT, own_cache: Path) -> Path:
    return own_cache / "fsvit-edge" / "timings" / f"orin.sm87.trt{fake.__version__}.cache"


def test_a_plan_is_built_with_its_shapes_types_and_layers(fake: FakeTensorRT) -> None:
    plan = build(workspace_mib=64)
    assert plan.data.startswith(b"plan of " + fake.__version__.encode())
    assert plan.inputs == (TensorSpec("image", (1, 8, 8, 3), "uint8"),)
    assert plan.outputs == (TensorSpec("tokens", (1, 4), "float16"),)
    assert plan.profile == {}
    assert plan.layers == LayerReport(layers=3, attention=1, int8_gemms=1, fp16_gemms=1)
    config = fake.builders[0].config
    assert (config.profiling_verbosity, config.pools) == ("detailed", {"workspace": 64 * 2**20})
    assert config.profiles == []


def test_a_dynamic_size_becomes_a_profile_and_keeps_its_name(fake: FakeTensorRT) -> None:
    plan = build(batch=(1, 2, 6))
    assert plan.profile == {"image": {"min": [1, 8, 8, 3], "opt": [2, 8, 8, 3], "max": [6, 8, 8, 3]}}
    assert plan.inputs[0].shape == ("batch", 8, 8, 3)
    assert plan.outputs[0].shape == ("batch", 4)
    (profile,) = fake.builders[0].config.profiles
    assert profile.shapes == {"image": ((1, 8, 8, 3), (2, 8, 8, 3), (6, 8, 8, 3))}


def test_a_profile_that_is_refused_is_an_error(fake: FakeTensorRT) -> None:
    fake.accepts_profile = False
    with pytest.raises(FsvitEdgeError, match="the encoder has no valid range of shapes"):
        build(batch=(1, 2, 6))


@pytest.mark.usefixtures("fake")
def test_a_graph_that_is_cut_short_is_refused_before_the_build() -> None:
    with pytest.raises(ArtifactError, match="cannot read the encoder graph"):
        build(graph=b"gra")


def test_a_build_that_fails_says_why_and_keeps_the_timings_as_they_were(fake: FakeTensorRT, own_cache: Path) -> None:
    build()
    before = timings(fake, own_cache).read_bytes()
    fake.build_errors = ["[memory.cpp] CUDA out of memory"]
    with pytest.raises(FsvitEdgeError, match="out of memory; close other programs on the GPU, or give --workspace"):
        build()
    assert timings(fake, own_cache).read_bytes() == before


def test_phases_are_reported_during_the_build(fake: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsvit_edge.export.tensorrt.REPORT_EVERY_S", 0.0)
    fake.at_step = lambda _: time.sleep(0.2)
    steps: list[str] = []
    build(steps.append)
    assert "encoder: timing graph nodes" in steps


def test_ctrl_c_ends_the_build(fake: FakeTensorRT) -> None:
    fake.steps = 1000

    def interrupt(step: int) -> None:
        if step == 0:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    fake.at_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        build()
    assert fake.was_cancelled


def test_an_error_in_the_progress_ends_the_build_too(fake: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsvit_edge.export.tensorrt.REPORT_EVERY_S", 0.0)
    fake.steps, fake.at_step = 1000, lambda _: time.sleep(0.01)

    def fail(_: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        build(fail)
    assert fake.was_cancelled


def test_the_compilers_output_goes_to_stderr(fake: FakeTensorRT, capfd: pytest.CaptureFixture[str]) -> None:
    fake.at_step = lambda step: os.write(1, f"noise {step}\n".encode())
    build()
    print("result", flush=True)
    assert capfd.readouterr() == ("result\n", "noise 0\nnoise 1\nnoise 2\n")


def test_timings_are_saved_per_version_and_gpu_and_used_by_the_next_build(fake: FakeTensorRT, own_cache: Path) -> None:
    build()
    assert timings(fake, own_cache).read_bytes() == b"+"
    build()
    assert timings(fake, own_cache).read_bytes() == b"++"


def test_timings_of_another_gpu_are_not_used(fake: FakeTensorRT, own_cache: Path, tmp_path: Path) -> None:
    named, steps, said = tmp_path / "mine.cache", list[str](), list[str]()
    named.write_bytes(b"of another GPU")
    build(steps.append, said.append, timing_cache=named)
    assert named.read_bytes() == b"+"
    note = "Note: the timing cache was made by another TensorRT or GPU; this build starts with an empty one."
    assert said == [note]
    assert note not in steps  # the next step would replace it
    assert not timings(fake, own_cache).exists()


@pytest.mark.usefixtures("fake")
def test_a_cache_folder_that_cannot_be_written_only_loses_the_timings(own_cache: Path) -> None:
    shutil.rmtree(own_cache, ignore_errors=True)
    own_cache.write_text("a file where the folder should be")
    said: list[str] = []
    assert build(say=said.append).data.startswith(b"plan")
    assert len(said) == 1
    assert "cannot be used" in said[0]
    assert said[0].endswith("; this build does without it.")


@pytest.mark.usefixtures("fake")
def test_a_timing_cache_that_was_named_must_be_usable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be used: .*; name another file with --timing-cache"):
        build(timing_cache=tmp_path / "file" / "x.cache")
    with pytest.raises(InputError, match="cannot be used"):
        build(timing_cache=tmp_path)


@pytest.mark.usefixtures("fake")
def test_a_second_build_on_the_gpu_waits_and_reports_it(tmp_path: Path) -> None:
    named = tmp_path / "mine.cache"
    lock = (tmp_path / "mine.cache.lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    steps: list[str] = []

    def tell(step: str) -> None:
        steps.append(step)
        if "wait" in step:
            lock.close()

    with keep_timings(named, True, tell, steps.append):
        pass
    assert steps == ["waiting for another build on this GPU"]


@pytest.mark.usefixtures("fake")
def test_tensorrt_refuses_targets() -> None:
    api = open_tensorrt("tensorrt")
    assert choose_targets(api, (), "fp16", ORIN) == ()
    with pytest.raises(InputError, match="TensorRT builds for the GPU that it runs on; leave out --target"):
        choose_targets(api, ("sm86",), "fp16", ORIN)


@pytest.mark.parametrize(
    ("wanted", "gpu", "targets"),
    [
        ((), None, ("sm86", "sm89", "sm120")),
        ((), Gpu("RTX 4090", (8, 9), 128, 24 * 2**30, "13.0"), ("sm89",)),
        (("sm120", "sm86", "sm86"), None, ("sm86", "sm120")),
        (("sm75",), H100, ("sm75",)),
    ],
)
def test_rtx_builds_for_the_named_gpus_or_this_one_or_the_usual_ones(
    wanted: tuple[str, ...], gpu: Gpu | None, targets: tuple[str, ...]
) -> None:
    assert choose_targets(open_tensorrt("tensorrt-rtx"), wanted, "fp16", gpu) == targets


def test_rtx_refuses_a_gpu_that_it_does_not_support() -> None:
    with pytest.raises(EnvironmentLacksError, match=r"does not support the NVIDIA H100 \(sm90\)"):
        choose_targets(open_tensorrt("tensorrt-rtx"), (), "fp16", H100)


def test_layers_are_counted_by_what_they_multiply() -> None:
    assert report_layers("") == LayerReport()
    assert report_layers(LAYERS.replace("Datatype: Int8", "Format/Datatype: Float")) == LayerReport(3, 1, 0, 1, 1)
    assert report_layers("noise\n" + LAYERS + LAYERS).gemms == 4
