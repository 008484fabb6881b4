"""Pictures -> a `Calibration`: ranges of what enters an encoder's linear layers and what a convolutional stem stores.

The bundle's own FP32 graph runs with the runtime's own preprocessing, so the tensors' names are those of the graph. Per
picture only a digest is stored, so memory does not grow with the set. ONNX Runtime's own histogram calibrators keep
every tensor of every picture, and their histograms grow with outliers; only its search for the threshold is used here.
"""

import contextlib
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import onnx

from fsvit_edge import __version__
from fsvit_edge.calib.calibration import FORMAT_VERSION, METHODS, Calibration
from fsvit_edge.calib.convert_cpu_stem import stem_tensors
from fsvit_edge.calib.convert_int8 import LinearLayer, linear_layers
from fsvit_edge.calib.onnx_graph import Graph, labels
from fsvit_edge.calib.pictures import Rgb
from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.engines.base import Array
from fsvit_edge.runtime.engines.onnx_runtime import OnnxRuntimeEngine, import_onnxruntime
from fsvit_edge.runtime.errors import ArtifactError, InputError
from fsvit_edge.runtime.messages import Progress
from fsvit_edge.runtime.preprocess import resize_image

DEFAULT_METHOD = "percentile"
PERCENTILE = 99.995
"""Percentage of a tensor's values that stay within its range.

Relative error of cst-nano's tokens with quantized layers on unseen photographs: 0.0162 at 99.9, 0.0093 at 99.99, 0.0091
at 99.995, 0.0096 at 99.999; 0.0092 with entropy, which takes twice as long, and 0.0103 with minmax.
"""

_GRAPH = "encoder"
_BINS = 2048
_QUANTIZED_BINS = 128
_SMALLEST_REACH = 2.0**-20
_PICTURES_PER_STEP = 16


@dataclass(frozen=True)
class LayerKind:
    """The layers of the same name in all blocks, for the report."""

    name: str  # "qkv", "fc1", ...
    tensors: int  # number of their input tensors
    low: float
    high: float
    outlier_ratio: float
    """Largest channel / median channel, by largest absolute values, of the worst tensor. If it is large, one scale for
    all channels leaves few steps for most of them."""


def collect_ranges(
    bundle: Bundle,
    pictures: Iterable[Rgb],
    method: str = DEFAULT_METHOD,
    *,
    seed: int = 0,
    banked: Sequence[Rgb] = (),
    progress: Progress = lambda _: None,
) -> Calibration:
    """Run a bundle's encoder on pictures; record the inputs of its linear layers and the tensors of its stem.

    Args:
        bundle: The bundle.
        pictures: (H, W, 3) uint8 RGB pictures of any size, read one at a time.
        method: minmax uses the extremes; percentile ignores the outermost values; entropy chooses the range (ONNX
            Runtime's search) whose quantized histogram is closest to the full one.
        seed: Random seed of the sampling, for the record.
        banked: Pictures of enrolled classes, used in addition.
        progress: Called with each step that begins.

    Raises:
        InputError: The method is unknown, or there is no picture.
        ArtifactError: The encoder has no linear layer, cannot run, or computes NaN or infinity.
    """
    if method not in METHODS:
        raise InputError(f"Unknown method {method!r}; choose one of: {', '.join(METHODS)}.")
    observed, observers = _observe(bundle.graphs[_GRAPH], method != "minmax")
    if not observers:
        raise ArtifactError(f"The encoder of bundle {bundle.path} has no linear layer to quantize.")
    statistics = {name: _Statistics() for name in observers}
    digests: list[bytes] = []
    with OnnxRuntimeEngine(observed, "cpu") as engine:
        for image in chain(banked, pictures):
            if len(digests) % _PICTURES_PER_STEP == 0:
                progress(f"picture {len(digests) + 1}")
            digests.append(hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest())
            outputs = engine.run({"image": resize_image(image, bundle.manifest.image_size)[None]})
            for name, tensor in outputs.items():
                if not np.isfinite(tensor.numpy()).all():
                    raise ArtifactError(
                        f"The encoder of bundle {bundle.path} computes NaN or infinity in tensor {name!r}; "
                        "export the bundle again from an undamaged checkpoint with: fsvit-edge export."
                    )
            for name, (low, high, mean, values) in observers.items():
                statistics[name].add(
                    outputs[low].numpy(),
                    outputs[high].numpy(),
                    outputs[mean].numpy(),
                    None if values is None else outputs[values].numpy(),
                )
            outputs.clear()  # frees 324 MB (ViT-S/8 at 400 px) before the next picture
    if not digests:
        raise InputError("There is no picture to calibrate with; give at least one.")
    progress("choose ranges")
    ranges = {name: (found.low, found.high) for name, found in statistics.items()}
    if method != "minmax":
        ranges |= _narrowed({name: found for name, found in statistics.items() if found.counts.any()}, method)
    stem = set(stem_tensors(Graph(bundle.graphs[_GRAPH])))
    return Calibration(
        format_version=FORMAT_VERSION,
        model_name=bundle.manifest.name,
        image_size=bundle.manifest.image_size,
        graphs={_GRAPH: bundle.manifest.graphs[_GRAPH].sha256},
        preprocessing=bundle.manifest.preprocessing,
        method=method,
        pictures=len(digests),
        seed=seed,
        data_sha256=hashlib.sha256(b"".join(sorted(digests))).hexdigest(),
        banked=len(banked),
        ranges={_GRAPH: ranges},
        channel_max={
            _GRAPH: {
                name: _rounded([found.channel_max.max()] if name in stem else found.channel_max)
                for name, found in statistics.items()
            }
        },
        created_by=f"fsvit-edge {__version__}",
        channel_mean={_GRAPH: {name: _means(statistics[name], len(digests), ranges[name]) for name in sorted(stem)}},
    )


def layer_kinds(bundle: Bundle, calibration: Calibration) -> list[LayerKind]:
    """Summarize a calibration by the kinds of layers of its bundle, in the order of the first block."""
    graph = Graph(bundle.graphs[_GRAPH])
    tensors: dict[str, list[str]] = {}
    for name, layer in _layers(graph).items():
        tensors.setdefault(_kind(graph, layer), []).append(name)
    ranges, channels = calibration.ranges[_GRAPH], calibration.channel_max[_GRAPH]
    return [
        LayerKind(
            kind,
            len(names),
            min(ranges[name][0] for name in names),
            max(ranges[name][1] for name in names),
            max(max(channels[name]) / max(float(np.median(channels[name])), 1e-12) for name in names),
        )
        for kind, names in tensors.items()
    ]


class _Statistics:
    """Statistics of one tensor over all pictures.

    The histogram is symmetric around 0 and reaches to a power of two. A wider one has every second of its edges, so
    nothing is lost when it must widen, and the result does not depend on the order of the pictures.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.channel_max: npt.NDArray[np.float32] = np.zeros(1, np.float32)
        self.channel_sum: npt.NDArray[np.float64] = np.zeros(1)  # of the pictures' means
        self.reach = _SMALLEST_REACH
        self.counts = np.zeros(_BINS, np.int64)

    def add(self, channel_low: Array, channel_high: Array, channel_mean: Array, values: Array | None) -> None:
        """Add one picture: extremes and mean of each channel (C,), and the values (N, C) if a histogram is wanted."""
        self.low = min(self.low, float(channel_low.min()))
        self.high = max(self.high, float(channel_high.max()))
        self.channel_max = np.maximum(self.channel_max, np.maximum(np.abs(channel_low), np.abs(channel_high)))
        self.channel_sum = self.channel_sum + channel_mean.astype(np.float64)
        if values is None:
            return
        while self.reach <= max(-self.low, self.high):
            folded = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(folded, _BINS // 4)
            self.reach *= 2
        self.counts += np.histogram(values, _BINS, (-self.reach, self.reach))[0]


def _narrowed(statistics: dict[str, _Statistics], method: str) -> dict[str, tuple[float, float]]:
    """Ranges that ONNX Runtime chooses from the histograms."""
    import_onnxruntime()
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method=method,
        symmetric=False,
        num_bins=_BINS,
        num_quantized_bins=_QUANTIZED_BINS,
        percentile=PERCENTILE,
        scenario="same",
    )
    for name, found in statistics.items():
        used = np.flatnonzero(found.counts) - _BINS // 2
        half = max(-int(used[0]), int(used[-1]) + 1, _QUANTIZED_BINS)  # empty bins would take most of the time
        edges = np.linspace(-found.reach, found.reach, _BINS + 1, dtype=np.float32)
        inner = slice(_BINS // 2 - half, _BINS // 2 + half)
        collector.histogram_dict[name] = (
            found.counts[inner],
            edges[inner.start : inner.stop + 1],
            np.float32(found.low),
            np.float32(found.high),
            np.float32(found.reach),
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, but stdout is for results
        chosen = collector.compute_collection_result()
    return {name: (float(low), float(high)) for name, (low, high, *_) in chosen.items()}


def _layers(graph: Graph) -> dict[str, LinearLayer]:
    """The first linear layer of each activation."""
    found: dict[str, LinearLayer] = {}
    for layer in linear_layers(graph):
        found.setdefault(layer.activation, layer)
    return found


def _observe(data: bytes, with_values: bool) -> tuple[bytes, dict[str, tuple[str, str, str, str | None]]]:
    """Add outputs for each activation: lowest, highest and mean of each channel (C,), and all values (N, C) if wanted.

    Values that a convolution's activation bounds need no histogram, and there are many of them.

    Returns the ONNX file, and activation -> names of its outputs, None for values that are not needed.
    """
    graph = Graph(data)
    observers: dict[str, tuple[str, str, str, str | None]] = {}
    axes = graph.add_constant("observed_axes", np.zeros(1, np.int64))

    def observe(name: str, rows: str, has_values: bool) -> None:
        low, high, mean = (
            graph.add_node(kind, [rows, axes], "observed", keepdims=0)
            for kind in ("ReduceMin", "ReduceMax", "ReduceMean")
        )
        observers[name] = low, high, mean, rows if has_values else None
        graph.graph.output.extend(
            onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
            for output in filter(None, observers[name])
        )

    stem = stem_tensors(graph)
    for name, layer in _layers(graph).items():
        channels = graph.constants[layer.weight].shape[1 - layer.axis]
        shape = graph.add_constant("observed_shape", np.array([-1, channels], np.int64))
        observe(name, graph.add_node("Reshape", [name, shape], "observed"), with_values)  # (..., C) -> (N, C)
    for name, is_bounded in stem.items():
        last = graph.add_node("Transpose", [name], "observed", perm=[0, 2, 3, 1])
        flat = graph.add_node("Flatten", [last], "observed", axis=3)  # (B, C, h, w) -> (N, C)
        observe(name, flat, with_values and not is_bounded)
    return graph.finish().SerializeToString(), observers


def _means(statistics: "_Statistics", pictures: int, bounds: tuple[float, float]) -> list[float]:
    """The mean of each channel, with as many decimals as the step of the range in 255 needs, because there are many."""
    step = max(bounds[1] - bounds[0], 1e-9) / 255
    decimals = max(0, -math.floor(math.log10(step)))
    return [round(float(mean), decimals) for mean in statistics.channel_sum / pictures]


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _kind(graph: Graph, layer: LinearLayer) -> str:
    """The layer's name within its block, from the name of its weight or bias; else its operator."""
    dotted = sorted(label for label in labels(graph, layer.node) if "." in label)
    return dotted[0].split(".")[-2] if dotted else layer.node.op_type
