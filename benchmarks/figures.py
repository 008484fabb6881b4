"""Measure the speed that the documentation states: the published code against this project, on the CPU.

    python benchmarks/figures.py        (or: make figures)

Each comparison alternates between the two in one process and reports the ratio of the medians with its range, because
timings on a shared machine drift. ViT-S/8 at 400 px has random weights, which does not change its speed.
"""

import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from turns import square_masks, take_turns

from fsvit_edge import FewShotModel
from fsvit_edge.export.pipeline import ExportOptions, export_bundle
from fsvit_edge.inspect.benchmark import MASK_COVER, measure
from fsvit_edge.live.loop import run_loop
from fsvit_edge.live.sinks.open import open_sink
from fsvit_edge.live.sources.demo import demo_supports
from fsvit_edge.live.sources.open import open_source
from fsvit_edge.live.statistics import RunStatistics
from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.fast_head import cache_supports
from fsvit_edge.model.network import FewShotNetwork, predict_published
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.machine import Machine

THREADS = 2
REPEATS = 5

WAYS = 5
SIZE = 400

Pictures = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]


def main() -> None:
    """Measure and print everything."""
    torch.set_num_threads(THREADS)
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "onnxruntime", "numpy", "opencv-python-headless")
    )
    print(f"{Machine.here().cpu}, {THREADS} threads, Python {platform.python_version()}, {packages}")
    torch.manual_seed(0)
    network = FewShotNetwork(ModelConfig("vit-s8-random", "vit_small_patch8_224.dino", SIZE))
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(network, Path(folder) / "bundle", ExportOptions(verify=False)).path
        with FewShotModel.load(bundle, "onnxruntime", threads=THREADS) as model:
            frame, *supports = _pictures()
            masks = square_masks(SIZE, WAYS)
            for way in range(WAYS):
                model.enroll(f"class {way}", [supports[way]], [masks[way]])
            _report_head(network, bundle, masks)
            _report_frame(network, model, frame, np.stack(supports), masks)
            _report_support_size(model, supports[0])
            _report_overhead("ViT-S/8 at 400 px", model)
    with FewShotModel.load(engine="onnxruntime", threads=THREADS) as model:
        _report_overhead(f"{model.manifest.name} at {model.manifest.image_size} px", model)
        _report_camera_rate(model)
    _report_help()


def _report_head(network: FewShotNetwork, bundle: Path, masks: Masks) -> None:
    generator = torch.Generator().manual_seed(1)
    channels, dim, tokens = network.encoder.num_channels, network.encoder.slice_dim, network.encoder.grid**2
    query = F.normalize(torch.randn(1, channels, tokens, dim, generator=generator), dim=-1)
    length = 1 + network.config.support_grid**2
    support = F.normalize(torch.randn(WAYS, channels, length, dim, generator=generator), dim=-1)
    mask = torch.from_numpy(masks).float()
    cache = cache_supports(support, mask, network.config.support_grid)
    keep = [row.bool() for row in cache.kept_mask]
    longest = max(int(row.sum()) for row in keep)
    kept, kept_mask = torch.zeros(WAYS, channels, longest, dim), torch.zeros(WAYS, longest)
    for way, row in enumerate(keep):
        kept[way, :, : int(row.sum())] = support[way, :, row]
        kept_mask[way, : int(row.sum())] = 1
    feed = {
        "tokens": query.numpy(),
        "kept": kept.numpy(),
        "kept_mask": kept_mask.numpy(),
        "pooled": cache.pooled.numpy(),
        "pooled_mask": cache.pooled_mask.numpy(),
        "averaging": np.eye(WAYS, dtype=np.float32),
    }

    @torch.inference_mode()
    def plain() -> torch.Tensor:
        return network.head(query, support, mask).presence.softmax(dim=1)[:, 1]

    with OnnxRuntimeEngine(bundle / "head.onnx", "cpu", threads=THREADS) as engine:
        difference = np.abs(plain().numpy() - engine.run(feed)["presence"].numpy()).max()
        times = take_turns({"theirs": plain, "ours": lambda: engine.run(feed)}, REPEATS)
    what = f"head alone, {WAYS} ways 1 shot, masks covering {MASK_COVER:.0%} ({longest} kept tokens)"
    _ratio(f"{what}: published order in PyTorch / exported head", **times, goal="5 x or more")
    print(f"    largest difference of P(present) between the two: {difference:.1e}")


def _report_frame(
    network: FewShotNetwork, model: FewShotModel, frame: Pictures, supports: Pictures, masks: Masks
) -> None:
    arguments = (torch.from_numpy(frame), torch.from_numpy(supports), torch.from_numpy(masks), WAYS)
    both = {"theirs": lambda: predict_published(network, *arguments), "ours": lambda: model.predict(frame)}
    what = f"one frame, {WAYS} ways 1 shot: published procedure in PyTorch / ours"
    _ratio(what, **take_turns(both, REPEATS), goal="10 x or more")


def _report_support_size(model: FewShotModel, picture: Pictures) -> None:
    whole = np.ones(picture.shape[:2], np.bool_)
    model.enroll("whole", [picture], [whole])
    largest = model.bank.supports("whole")[0].nbytes / 1e6
    usual = model.bank.supports("class 0")[0].nbytes / 1e6
    model.remove("whole")
    print(
        f"cached support of ViT-S/8 at 400 px in FP16: {usual:.2f} MB at {MASK_COVER:.0%} cover, {largest:.2f} MB "
        "at full cover (goal: 1.4 MB at most)"
    )


def _report_overhead(name: str, model: FewShotModel) -> None:
    measured = measure(model, ways=3, shots=1, frames=12).latency_ms
    print(
        f"{name}, 3 ways, 1280 x 720 frames: {measured['total'][0]:.1f} ms, of which outside the engines "
        f"{measured['overhead'][0]:.1f} ms (resize {measured['preprocess'][0]:.1f}, "
        f"label map {measured['postprocess'][0]:.1f}; goal: 5 ms at most)"
    )


def _report_camera_rate(model: FewShotModel) -> None:
    """Measure decoding to result on a video of 640 x 360 frames, which is first written from the demo."""
    ways = 3
    with tempfile.TemporaryDirectory() as folder:
        video = f"{folder}/demo.mp4"
        with open_source("demo") as demo, open_sink(video, 25.0) as sink:
            run_loop(demo, lambda frame: model.predict(frame.image), sink.write, RunStatistics(), max_frames=100)

        def rate() -> float:
            with open_source(video) as frames:
                so_far = RunStatistics()
                run_loop(frames, lambda frame: model.predict(frame.image), lambda *_: None, so_far)
                return so_far.fps

        measure(model, ways, shots=1, frames=1)
        usual = [rate() for _ in range(REPEATS)]
        for name in model.classes:
            model.remove(name)
        covers: list[float] = []
        for support in demo_supports()[:ways]:
            covers += model.enroll(support.name, [support.image], [support.mask]).mask_cover
        large = [rate() for _ in range(REPEATS)]
    for cover, rates in ((MASK_COVER, usual), (statistics.mean(covers), large)):
        print(
            f"{model.manifest.name}, {ways} classes, masks covering {cover:.0%}, 640 x 360 video, decode to result: "
            f"{statistics.median(rates):.1f} frames/s ({min(rates):.1f} to {max(rates):.1f}; goal: 25 or more)"
        )


def _report_help() -> None:
    command = [str(Path(sys.executable).with_name("fsvit-edge")), "--help"]
    run = {"help": lambda: subprocess.run(command, capture_output=True, check=True)}
    print(f"fsvit-edge --help: {statistics.median(take_turns(run, REPEATS)['help']):.2f} s (goal: 0.3 s at most)")


def _pictures() -> Pictures:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (1 + WAYS, SIZE // 16, SIZE // 16, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)


def _ratio(what: str, theirs: list[float], ours: list[float], goal: str) -> None:
    ratio = statistics.median(theirs) / statistics.median(ours)
    spread = f"{min(theirs) / max(ours):.1f} to {max(theirs) / min(ours):.1f}"
    print(
        f"{what}: {statistics.median(theirs):.2f} s / {statistics.median(ours):.2f} s = {ratio:.1f} x "
        f"({spread}; goal: {goal})"
    )


if __name__ == "__main__":
    main()
