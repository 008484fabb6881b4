"""Linear layers in INT8 by ONNX Runtime's own operators, whose output stays floating point, bias and all.

Q/DQ would leave it to the optimiser to find them, and cost a second pass over each output where it does not.
"""

import numpy as np

from fsvit_edge.calib.cpu_attention import ORT_DOMAIN, use_ort_operators
from fsvit_edge.calib.onnx_graph import Graph
from fsvit_edge.calib.quantize import LinearLayer, Ranges, quantize_weight, tensor_range


def quantize_for_cpu(graph: Graph, layers: list[LinearLayer], ranges: Ranges, signed: bool) -> None:
    """Replace linear layers by integer products.

    Args:
        graph: The graph.
        layers: Which.
        ranges: Of the activations.
        signed: Activations are int8 with zero point 0, else uint8 with the zero point that the range asks for.

    Raises:
        ArtefactError: A range is missing or not finite.
    """
    quantized: dict[str, tuple[str, str, str]] = {}
    for layer in layers:
        if layer.activation not in quantized:
            quantized[layer.activation] = _quantize(graph, layer.activation, ranges, signed)
        integers, scale, zero = quantized[layer.activation]
        weight = graph.constants[layer.weight]
        values, scales = quantize_weight(weight, layer.axis)
        node = layer.node
        inputs = [
            integers,
            graph.add_constant(f"{layer.weight}_int8", values if layer.axis == 1 else np.ascontiguousarray(values.T)),
            scale,
            graph.add_constant(f"{layer.weight}_scale", scales),
            zero,
            graph.add_constant(f"{layer.weight}_zero", np.zeros(scales.shape, np.int8)),
        ]
        inputs += node.input[2:3]
        graph.remove([node])
        graph.add_node("MatMulIntegerToFloat", inputs, node.name, output=node.output[0], domain=ORT_DOMAIN)
    use_ort_operators(graph)


def _quantize(graph: Graph, name: str, ranges: Ranges, signed: bool) -> tuple[str, str, str]:
    low, high = tensor_range(name, ranges)
    if signed:
        scale, zero = max(abs(low), abs(high), 1e-9) / 127, np.zeros((), np.int8)
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-9) / 255
        zero = np.asarray(np.clip(round(-low / scale), 0, 255), np.uint8)
    scale_name = graph.add_constant(f"{name}_scale", np.asarray(scale, np.float32))
    zero_name = graph.add_constant(f"{name}_zero", zero)
    return graph.add_node("QuantizeLinear", [name, scale_name, zero_name], f"{name}_quantized"), scale_name, zero_name
