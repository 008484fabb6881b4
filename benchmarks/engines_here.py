"""The same bundle on every engine and precision of a CPU that can be had here, and its head as it was exported."""

from collections.abc import Sequence

import numpy as np

from fsvit_edge import FewShotModel
from fsvit_edge.calib.convert import make_graph
from fsvit_edge.calib.ranges import collect_ranges
from fsvit_edge.fewshot.cached_support import ClassSupports
from fsvit_edge.live.sources.demo import demo_supports
from fsvit_edge.runtime.bundle import INT8_OUTLINE, Bundle
from fsvit_edge.runtime.engines.base import Array, ResidentTensor, on_host
from fsvit_edge.runtime.engines.choose import ENGINES, choose_engines
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.errors import FsvitEdgeError
from fsvit_edge.runtime.gpu import find_gpu, gpu_missing_reason

FP32, INT8 = "FP32", "INT8"
OTHERS = (("openvino", "fp32", "FP32 in OpenVINO"), ("openvino", "bf16", "BF16 in OpenVINO"))


def open_everywhere(bundle: Bundle, threads: int, left_out: list[str]) -> dict[str, FewShotModel]:
    """Open a bundle in ONNX Runtime in FP32, as exported, and in INT8, then on the other engines.

    INT8 is made here of the encoder, calibrated on the demo's pictures, and draws outlines in INT8. Engines that cannot
    be had add the reason to `left_out`.
    """
    models = {FP32: FewShotModel.load(bundle.path, "onnxruntime", "fp32", threads)}
    calibration = collect_ranges(bundle, [support.image for support in demo_supports()], "minmax")
    graph = make_graph(bundle.graphs["encoder"], "encoder", "int8", "onnxruntime", calibration).SerializeToString()
    engines, choice = choose_engines(bundle, "onnxruntime", "fp32", threads)
    for name, own, own_threads in (("encoder", graph, threads), ("outline", bundle.cpu_graphs[INT8_OUTLINE], 1)):
        engines[name].close()
        engines[name] = OnnxRuntimeEngine(own, "cpu", own_threads)
    models[INT8] = FewShotModel(bundle.manifest, engines, choice)
    for engine, precision, name in OTHERS:
        if engine not in ENGINES:
            _note(f"{name}: this version has no such engine.", left_out)
            continue
        try:
            models[name] = FewShotModel.load(bundle.path, engine, precision, threads)
        except FsvitEdgeError as error:
            _note(f"{name}: {error}", left_out)
    if find_gpu() is None:
        _note(f"TensorRT and TensorRT-RTX: {gpu_missing_reason()}.", left_out)
    return models


def _note(sentence: str, left_out: list[str]) -> None:
    if sentence not in left_out:
        left_out.append(sentence)


class ReferenceHead:
    """The bundle's head as it was exported: all supports in one run, padded to the longest, on all threads.

    What runs today may be faster in any way it likes; this stays, so that the ratio can be measured later, too.
    """

    def __init__(self, bundle: Bundle, classes: Sequence[ClassSupports], threads: int) -> None:
        self._engine = OnnxRuntimeEngine(bundle.graphs["head"], "cpu", threads)
        shots = [(way, support) for way, supports in enumerate(classes) for support in supports]
        channels, _, dim = shots[0][1].kept.shape
        longest = max(support.kept.shape[1] for _, support in shots)
        kept = np.zeros((len(shots), channels, longest, dim), np.float32)
        kept_mask = np.zeros((len(shots), longest), np.float32)
        averaging = np.zeros((len(classes), len(shots)), np.float32)
        for index, (way, support) in enumerate(shots):
            length = support.kept.shape[1]
            kept[index, :, :length] = support.kept
            kept_mask[index, :length] = 1
            averaging[way, index] = 1 / len(classes[way])
        feed = {
            "kept": kept,
            "kept_mask": kept_mask,
            "pooled": np.stack([support.pooled for _, support in shots]).astype(np.float32),
            "pooled_mask": np.stack([support.pooled_mask for _, support in shots]).astype(np.float32),
            "averaging": averaging,
        }
        self._supports = {name: self._engine.upload(array) for name, array in feed.items()}

    def compare(self, tokens: Array | ResidentTensor) -> tuple[Array, Array]:
        """Return P(present) (ways,) and P(foreground) (ways, m, m) for the tokens of a frame."""
        answer = self._engine.run({"tokens": tokens, **self._supports})
        return on_host(answer["presence"]), on_host(answer["foreground"])
