"""INT8 on this machine's CPU: `python benchmarks/int8_cpu.py [--data FOLDER]`.

Speed: ViT-S/8 at 400 px with random weights, which do not change the speed. FP32 as exported and the engines of ONNX
Runtime take turns in one process; reported are ratios of medians, with their ranges.
Accuracy, with --data: the bundled model on the same episodes in FP32 and in INT8. Its 257 tokens are too few for the
INT8 attention of larger models, so INT8 attention is also measured by force.
"""

import argparse
import os
import statistics
import tempfile
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from turns import square_masks, take_turns

from fsvit_edge import FewShotModel
from fsvit_edge.calib import convert_cpu
from fsvit_edge.calib.calibration import CALIBRATION_NAME, Calibration
from fsvit_edge.calib.convert import make_graph
from fsvit_edge.calib.ranges import collect_ranges
from fsvit_edge.export.pipeline import ExportOptions, export_bundle
from fsvit_edge.inspect.benchmark import MASK_COVER
from fsvit_edge.learn.datasets import open_data
from fsvit_edge.learn.evaluation import Answer, EvaluationOptions, evaluate
from fsvit_edge.live.sources.demo import demo_supports
from fsvit_edge.model.config import ModelConfig
from fsvit_edge.model.network import FewShotNetwork
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.machine import Machine
from fsvit_edge.runtime.preprocess import resize_image

WAYS = 5
SIZE = 400


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder of <class>/{images,masks}; without it, only speed is measured"
    )
    parser.add_argument("--bundle", type=Path, help="measure the speed of this bundle instead")
    parser.add_argument("--accuracy-of", type=Path, default=DEFAULT_BUNDLE, help="bundle whose accuracy is measured")
    parser.add_argument(
        "--calib", type=Path, default=DEFAULT_BUNDLE / CALIBRATION_NAME, help="calibration of that bundle"
    )
    parser.add_argument("--repeats", type=int, default=5, help="measurements per engine")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--ways", type=int, default=1, help="classes per episode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-speed", action="store_true", help="only measure accuracy")
    arguments = parser.parse_args()
    print(
        f"{Machine.here().cpu}, {arguments.threads} threads, onnxruntime {version('onnxruntime')}, "
        f"load average before: {os.getloadavg()[0]:.1f}"
    )
    if not arguments.no_speed:
        with tempfile.TemporaryDirectory() as folder:
            bundle = Bundle.load(arguments.bundle or _random_bundle(Path(folder) / "bundle"))
        _report_speed(bundle, arguments.repeats, arguments.threads)
    if arguments.data is not None:
        _report_accuracy(arguments)
    print(f"load average after: {os.getloadavg()[0]:.1f}")


def _report_speed(bundle: Bundle, repeats: int, threads: int) -> None:
    calibration = collect_ranges(bundle, [support.image for support in demo_supports()], "minmax")
    graphs = {
        "FP32 as exported": bundle.graphs["encoder"],
        "FP32 engines": _encoder(bundle, "fp32", calibration),
        "INT8 engines": _encoder(bundle, "int8", calibration),
    }
    frame = demo_supports()[0].image
    picture = resize_image(frame, bundle.manifest.image_size)[None]
    models = {name: _model(bundle, data, threads) for name, data in graphs.items()}
    for model in models.values():
        _enroll(model)
    engines = {name: OnnxRuntimeEngine(data, "cpu", threads) for name, data in graphs.items()}
    encoders: dict[str, Callable[[], object]] = {
        name: lambda engine=engine: engine.run({"image": picture}) for name, engine in engines.items()
    }
    frames: dict[str, Callable[[], object]] = {
        name: lambda model=model: model.predict(frame) for name, model in models.items()
    }
    title = f"{bundle.manifest.name} at {bundle.manifest.image_size} px"
    _table(f"{title}: encoder (goal: 1.8 x)", take_turns(encoders, repeats))
    what = f"one frame, {WAYS} ways 1 shot, masks covering {MASK_COVER:.0%} (goal: 1.3 x)"
    _table(f"{title}: {what}", take_turns(frames, repeats))
    labels = [model.predict(frame).label_map for model in models.values()]
    print(f"    INT8 label map equal to FP32: {np.mean(labels[0] == labels[2]):.2%} (random weights, one frame)")


def _report_accuracy(arguments: argparse.Namespace) -> None:
    bundle = Bundle.load(arguments.accuracy_of)
    calibration = Calibration.load(arguments.calib)
    calibration.check_fits(bundle)
    data = open_data("folder", arguments.data, None, None, "test", True)
    options = EvaluationOptions(arguments.ways, 1, arguments.episodes, masks=True)
    graphs = {
        "FP32 as exported": bundle.graphs["encoder"],
        "INT8 engines": _encoder(bundle, "int8", calibration),
    }
    usual = convert_cpu.INT8_FROM_TOKENS
    convert_cpu.INT8_FROM_TOKENS = 0
    graphs["INT8, attention by force"] = _encoder(bundle, "int8", calibration)
    convert_cpu.INT8_FROM_TOKENS = usual
    print(f"{bundle.manifest.name} on {arguments.data.name}, {arguments.ways}-way 1-shot, {options.episodes} episodes")
    reference: dict[int, np.ndarray] = {}
    scores = None
    for name, graph in graphs.items():
        equal: list[float] = []

        def note(answer: Answer, equal: list[float] = equal, is_first: bool = scores is None) -> None:
            label = answer.prediction.label_map
            if is_first:
                reference[answer.number] = label
            equal.append(float(np.mean(label == reference[answer.number])))

        with _model(bundle, graph, arguments.threads) as model:
            found = evaluate(model, data, options, on_answer=note).scores
        scores = scores or found
        print(
            f"    {name:26s} label maps equal to FP32 {np.mean(equal):.2%} (goal: 99 %), "
            f"mIoU {found.miou.value:.2f} ({found.miou.value - scores.miou.value:+.2f} points; goal: within 1), "
            f"exact ratio {found.exact_ratio.value:.2f} ({found.exact_ratio.value - scores.exact_ratio.value:+.2f})"
        )


def _encoder(bundle: Bundle, precision: str, calibration: Calibration) -> bytes:
    data = bundle.graphs["encoder"]
    return make_graph(data, "encoder", precision, "onnxruntime", calibration).SerializeToString()


def _model(bundle: Bundle, encoder: bytes, threads: int) -> FewShotModel:
    graphs = {**bundle.graphs, "encoder": encoder}
    engines = {name: OnnxRuntimeEngine(graphs[name], "cpu", threads) for name in ("encoder", "enroll", "head")}
    return FewShotModel(bundle.manifest, engines)


def _enroll(model: FewShotModel) -> None:
    size = model.manifest.image_size
    for way, mask in enumerate(square_masks(size, WAYS)):
        image = demo_supports()[way % len(demo_supports())].image
        model.enroll(f"class {way}", [resize_image(image, size)], [mask])


def _random_bundle(path: Path) -> Path:
    """All weights are random, biases too, because the exporter leaves out a bias of zeros."""
    network = FewShotNetwork(ModelConfig("vit-s8-random", "vit_small_patch8_224.dino", SIZE))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_scaled(name, parameter, values))
    return export_bundle(network, path, ExportOptions(verify=False)).path


def _scaled(name: str, parameter: nn.Parameter, values: torch.Tensor) -> torch.Tensor:
    leaf = name.rpartition(".")[2]
    if leaf in ("pos_embed", "cls_token"):
        return 0.2 * values
    if parameter.ndim > 1:
        return values / parameter[0].numel() ** 0.5
    return 1 + 0.1 * values if leaf == "weight" else 0.05 * values


def _table(title: str, times: dict[str, list[float]]) -> None:
    print(title)
    first = next(iter(times.values()))
    for name, seconds in times.items():
        ratio = statistics.median(first) / statistics.median(seconds)
        spread = f"{min(first) / max(seconds):.2f} to {max(first) / min(seconds):.2f}"
        print(f"    {name:20s} {statistics.median(seconds):.3f} s, {ratio:.2f} x ({spread})")


if __name__ == "__main__":
    main()
