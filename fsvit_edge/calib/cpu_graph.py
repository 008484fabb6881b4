"""Linear layers in INT8 by ONNX Runtime's own operator, whose output stays floating point, bias and all.

Q/DQ would leave it to the optimizer to find them, and cost a second pass over each output where it does not. What is
fastest depends on the processor's instructions: uint8 x int8 on x86 (int8 x int8 took 2.5 times as long as FP32 on an
AMD EPYC), int8 x int8 on ARM (not tried: no such machine was at hand).
"""

import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsvit_edge.calib.cpu_attention import use_ort_operators
from fsvit_edge.calib.onnx_graph import ORT_DOMAIN, Graph
from fsvit_edge.calib.quantize import LinearLayer, Ranges, quantize_weight, tensor_range


@dataclass(frozen=True)
class IntegerForm:
    """How a processor likes its integers.

    Attributes:
        signed: Activations are int8 with zero point 0, else uint8 with the zero point that the range asks for.
        largest_weight: 127, or 63 where the sum of two products would saturate at 16 bits.
    """

    signed: bool
    largest_weight: int

    @property
    def suits_attention(self) -> bool:
        """Whether a product of uint8 and int8 of full range is right and fast, which attention in INT8 needs."""
        return not self.signed and self.largest_weight == 127


def integer_form(machine: str, cpu_flags: set[str]) -> IntegerForm:
    """Choose for a processor.

    Args:
        machine: As `platform.machine` names it.
        cpu_flags: What the kernel says it can do; empty where it does not say.
    """
    if machine.lower() in ("aarch64", "arm64"):
        return IntegerForm(signed=True, largest_weight=127)
    has_dot_product = bool(cpu_flags & {"avx512_vnni", "avx_vnni"})
    return IntegerForm(signed=False, largest_weight=127 if has_dot_product else 63)


def integer_form_here() -> IntegerForm:
    """Choose for the processor that this runs on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return integer_form(platform.machine(), set(flags))


def quantize_for_cpu(graph: Graph, layers: list[LinearLayer], ranges: Ranges, form: IntegerForm) -> None:
    """Replace linear layers by integer products.

    Raises:
        ArtifactError: A range is missing or not finite.
    """
    quantized: dict[str, tuple[str, str, str]] = {}
    for layer in layers:
        if layer.activation not in quantized:
            quantized[layer.activation] = _quantize(graph, layer.activation, ranges, form)
        integers, scale, zero = quantized[layer.activation]
        node = layer.node
        values, scales = quantize_weight(graph.constants[layer.weight], layer.axis, form.largest_weight)
        inputs = [
            integers,
            graph.add_constant(f"{layer.weight}_int8", values if layer.axis == 1 else np.ascontiguousarray(values.T)),
            scale,
            graph.add_constant(f"{layer.weight}_scale", scales),
            zero,
            graph.add_constant(f"{layer.weight}_zero", np.zeros(scales.shape, np.int8)),
            *node.input[2:3],
        ]
        graph.remove([node])
        graph.add_node("MatMulIntegerToFloat", inputs, node.name, output=node.output[0], domain=ORT_DOMAIN)
    use_ort_operators(graph)
    graph.tidy()


def _quantize(graph: Graph, name: str, ranges: Ranges, form: IntegerForm) -> tuple[str, str, str]:
    low, high = tensor_range(name, ranges)
    low, high = min(low, 0.0), max(high, 0.0)
    if form.signed:
        scale, zero = max(-low, high, 1e-9) / 127, np.zeros((), np.int8)
    else:
        scale = max(high - low, 1e-9) / 255
        zero = np.asarray(np.clip(round(-low / scale), 0, 255), np.uint8)
    scale_name = graph.add_constant(f"{name}_scale", np.asarray(scale, np.float32))
    zero_name = graph.add_constant(f"{name}_zero", zero)
    return graph.add_node("QuantizeLinear", [name, scale_name, zero_name], f"{name}_quantized"), scale_name, zero_name
