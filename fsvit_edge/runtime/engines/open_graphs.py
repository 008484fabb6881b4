"""Open the graphs of a bundle, its own or engines that were built from them, in ONNX Runtime, TensorRT or OpenVINO."""

from collections.abc import Mapping
from contextlib import ExitStack

from fsvit_edge.runtime.bundle import INT8_OUTLINE, Bundle, GraphInfo
from fsvit_edge.runtime.engines.base import TENSORRT_BACKENDS, WIDE_COMPARE, Engines
from fsvit_edge.runtime.engines.cuda_packages import open_device_memory
from fsvit_edge.runtime.engines.files import EngineRecord, load_engine
from fsvit_edge.runtime.engines.fitting import EngineSet, read_int8_encoder
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from fsvit_edge.runtime.engines.openvino import OpenVinoEngine
from fsvit_edge.runtime.engines.tensorrt import TensorRtEngine
from fsvit_edge.runtime.engines.tensorrt_api import open_tensorrt
from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.machine import has_vnni_here

_Graph = tuple[bytes, GraphInfo | EngineRecord, str]
"""A graph, its description, and words for what differs if the two do not agree."""


def open_graphs(
    bundle: Bundle,
    stored: EngineSet | None,
    provider: str,
    threads: int | None,
    int8_encoder: GraphInfo | None = None,
) -> Engines:
    """Open a bundle's graphs in ONNX Runtime; if engines of encoder and head are given, these in their place."""
    graphs = _with_descriptions(bundle, bundle.graphs, bundle.manifest.graphs)
    if int8_encoder is not None:
        int8 = {"encoder": read_int8_encoder(bundle.path, int8_encoder)}
        graphs |= _with_descriptions(bundle, int8, {"encoder": int8_encoder})
    plans: dict[str, tuple[bytes, EngineRecord]] = {}
    if stored is not None:
        # Both are read and verified before one is opened.
        for name, (path, record) in (("encoder", stored.encoder), ("head", stored.head)):
            data = load_engine(path, record)
            if record.backend in TENSORRT_BACKENDS:
                plans[name] = (data, record)
                del graphs[name]
            else:
                graphs[name] = (data, record, f"{path} differ from its sidecar")
    engines: Engines = {}
    with ExitStack() as stack:
        if stored is not None and plans:
            api = open_tensorrt(stored.record.backend)
            memory = open_device_memory()  # one for both; closes when no engine uses it any more
            for name, (plan, record) in plans.items():
                engines[name] = stack.enter_context(TensorRtEngine(plan, record, api, memory))
        is_int8 = int8_encoder is not None or (stored is not None and stored.record.precision == "int8")
        engines |= _open_in_onnx_runtime(bundle, graphs, provider, threads, stack, is_int8)
        stack.pop_all()
    return engines


def open_in_openvino(bundle: Bundle, precision: str, threads: int | None) -> Engines:
    """Open a bundle's graphs: the encoder in OpenVINO, the others in ONNX Runtime.

    OpenVINO's head was slower in FP32 (cst-nano: 56 ms against 48 with 4 supports, 267 against 233 with 20), twice as
    slow at the first run with each number of supports or tokens; in BF16, its probabilities have three digits and reach
    1, where log-odds end.
    """
    info = bundle.manifest.graphs["encoder"]
    graphs = _with_descriptions(bundle, bundle.graphs, bundle.manifest.graphs)
    del graphs["encoder"]
    with ExitStack() as stack:
        encoder = stack.enter_context(OpenVinoEngine(bundle.graphs["encoder"], info, precision, threads))
        engines = {"encoder": encoder, **_open_in_onnx_runtime(bundle, graphs, "cpu", threads, stack)}
        stack.pop_all()
    return engines


def _open_in_onnx_runtime(
    bundle: Bundle,
    graphs: dict[str, _Graph],
    provider: str,
    threads: int | None,
    stack: ExitStack,
    is_int8: bool = False,
) -> Engines:
    """Open graphs; on a CPU, in place of the head the bundle's own for CPUs, if it has one.

    Beside an INT8 encoder, outlines are made in INT8 where that is known to be faster.
    """
    opened = [(name, name, threads) for name in graphs]
    if provider == "cpu" and "head" in graphs and bundle.cpu_graphs:
        graphs = {**graphs, **_with_descriptions(bundle, bundle.cpu_graphs, bundle.manifest.cpu_graphs)}
        opened = [one for one in opened if one[0] != "head"]
        outline = INT8_OUTLINE if is_int8 and INT8_OUTLINE in graphs and has_vnni_here() else "outline"
        opened += [("compare", "compare", 1), (WIDE_COMPARE, "compare", threads), ("outline", outline, 1)]
    engines: Engines = {}
    for name, graph_name, own_threads in opened:
        graph, stated, which = graphs[graph_name]
        try:
            engine = stack.enter_context(OnnxRuntimeEngine(graph, provider, own_threads))
        except ArtifactError as error:  # it knows the bytes only
            raise ArtifactError(f"{which.rpartition(' differ ')[0]} is damaged: {error}") from error
        if (engine.inputs, engine.outputs) != (stated.inputs, stated.outputs):
            raise ArtifactError(f"The inputs or outputs of {which}.")
        engines[name] = engine
    return engines


def _with_descriptions(
    bundle: Bundle, graphs: Mapping[str, bytes], described: Mapping[str, GraphInfo]
) -> dict[str, _Graph]:
    return {
        name: (graphs[name], info, f"{bundle.path / info.file} differ from bundle.json")
        for name, info in described.items()
    }
