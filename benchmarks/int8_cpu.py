"""What INT8 on this machine's CPU costs in accuracy: `python benchmarks/int8_cpu.py --data FOLDER`.

The bundled model on the same episodes in FP32 and in INT8. Its 257 tokens are too few for the INT8 attention of larger
models, so INT8 attention is also measured by force. Its speed is in `figures.py`.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fsvit_edge import FewShotModel
from fsvit_edge.calib import convert_cpu
from fsvit_edge.calib.calibration import CALIBRATION_NAME, Calibration
from fsvit_edge.calib.convert import make_graph
from fsvit_edge.learn.datasets import open_data
from fsvit_edge.learn.evaluation import Answer, EvaluationOptions, evaluate
from fsvit_edge.runtime.bundle import DEFAULT_BUNDLE, Bundle
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.machine import Machine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <class>/{images,masks}")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument(
        "--calib", type=Path, default=DEFAULT_BUNDLE / CALIBRATION_NAME, help="calibration of that bundle"
    )
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--ways", type=int, default=1, help="classes per episode")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{Machine.here().cpu}, onnxruntime {version('onnxruntime')}")
    _report_accuracy(arguments)


def _report_accuracy(arguments: argparse.Namespace) -> None:
    bundle = Bundle.load(arguments.bundle)
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
        assert found.miou is not None
        assert scores.miou is not None
        print(
            f"    {name:26s} label maps equal to FP32 {np.mean(equal):.2%} (goal: 99 %), "
            f"mIoU {found.miou.value:.2f} ({found.miou.value - scores.miou.value:+.2f} points; goal: within 1), "
            f"exact ratio {found.exact_ratio.value:.2f} ({found.exact_ratio.value - scores.exact_ratio.value:+.2f})"
        )


def _encoder(bundle: Bundle, precision: str, calibration: Calibration) -> bytes:
    data = bundle.graphs["encoder"]
    return bytes(make_graph(data, "encoder", precision, "onnxruntime", calibration).SerializeToString())


def _model(bundle: Bundle, encoder: bytes, threads: int) -> FewShotModel:
    graphs = {**bundle.graphs, "encoder": encoder}
    engines = {name: OnnxRuntimeEngine(graphs[name], "cpu", threads) for name in ("encoder", "enroll", "head")}
    return FewShotModel(bundle.manifest, engines)


if __name__ == "__main__":
    main()
