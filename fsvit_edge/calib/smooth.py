"""Scale migration (SmoothQuant, Xiao et al. 2023): outlying channels of a LayerNorm become weights of what reads it.

Channel j of the norm's weight and bias is divided by s_j, row j of the linear layers that read it is multiplied by it:
the same function, with activations that int8 holds better.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from fsvit_edge.calib.onnx_graph import Graph
from fsvit_edge.calib.quantize import LinearLayer, Ranges

ALPHA = 0.5
"""How much of an outlier goes to the weights: the paper's."""
_VIEWS = ("Reshape", "Identity")

Values = npt.NDArray[np.float32]


def smooth(
    graph: Graph,
    layers: list[LinearLayer],
    ranges: Ranges,
    channel_max: Mapping[str, Sequence[float]],
    always: bool = False,
) -> dict[str, tuple[float, float]]:
    """Move scales from activations to weights wherever the expected error of the integer product falls.

    Args:
        graph: The graph.
        layers: The linear layers that will be quantized.
        ranges: Of their activations.
        channel_max: Of their activations, the largest absolute value of each channel.
        always: Move them wherever it is possible.

    Returns:
        The ranges, with those of the smoothed tensors changed.
    """
    changed = dict(ranges)
    for activation in dict.fromkeys(layer.activation for layer in layers):
        norm = _norm_before(graph, activation)
        readers = [layer for layer in layers if layer.activation == activation]
        largest = np.asarray(channel_max.get(activation, ()), np.float32)
        if norm is None or len(readers) != len(graph.readers(activation)) or not len(largest):
            continue
        weights = [_rows(graph, layer) for layer in readers]
        if any(len(weight) != len(largest) for weight in weights):
            continue
        # A range that was clipped stays clipped by as much.
        low, high = ranges[activation]
        clip = min(1.0, max(abs(low), abs(high)) / max(float(largest.max()), 1e-12))
        scale = _scales(largest, np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0))
        before = sum(_error(largest * clip, weight) for weight in weights)
        after = sum(_error(largest / scale * clip, weight * scale[:, None]) for weight in weights)
        if always or after < before:
            _fold(graph, norm, readers, scale)
            bound = float((largest / scale).max()) * clip
            changed[activation] = (-bound, bound)
    return changed


def _scales(largest: Values, weight_largest: Values) -> Values:
    """SmoothQuant's formula, kept within what FP16 holds, with a geometric mean of 1."""
    scale = np.maximum(largest, 1e-5) ** ALPHA / np.maximum(weight_largest, 1e-5) ** (1 - ALPHA)
    scale /= np.exp(np.log(scale).mean())
    return np.asarray(np.clip(scale, 1 / 64, 64), np.float32)


def _error(largest: Values, weight: Values) -> float:
    """Expected squared error of the integer product, from the two steps' sizes.

    The activation's step meets every weight, a weight's step meets the activation, of whose channels the largest value
    alone is known; a quarter of that stands for its root mean square (a normal distribution's maximum of 10,000).
    """
    step = float(largest.max()) / 127
    weight_steps = np.abs(weight).max(axis=0) / 127
    return float(step**2 * (weight**2).sum() + (weight_steps**2).sum() * ((largest / 4) ** 2).sum()) / 12


def _rows(graph: Graph, layer: LinearLayer) -> Values:
    """The weight as (in, out)."""
    weight = graph.constants[layer.weight].astype(np.float32)
    return weight if layer.axis == 1 else weight.T


def _norm_before(graph: Graph, name: str) -> NodeProto | None:
    """The LayerNorm that makes a tensor, if nothing else reads what lies between."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in _VIEWS:
        if len(graph.readers(node.input[0])) != 1 or node.input[0] in graph.output_names:
            return None
        node = graph.producer.get(node.input[0])
    is_norm = node is not None and node.op_type == "LayerNormalization" and node.input[1] in graph.constants
    return node if is_norm and name not in graph.output_names else None


def _fold(graph: Graph, norm: NodeProto, layers: list[LinearLayer], scale: Values) -> None:
    # New constants, because the exporter stores equal ones once.
    for position in range(1, len(norm.input)):
        name = norm.input[position]
        norm.input[position] = graph.add_constant(f"{name}_smooth", graph.constants[name] / scale)
    for layer in layers:
        factor = scale[:, None] if layer.axis == 1 else scale[None, :]
        layer.node.input[1] = graph.add_constant(f"{layer.weight}_smooth", graph.constants[layer.weight] * factor)
