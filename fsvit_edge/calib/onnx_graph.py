"""An ONNX graph with an index: which node makes a tensor, which nodes read it, which tensors are constants."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fsvit_edge.runtime.errors import ArtifactError, first_line

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
GEMMS = ("MatMul", "Gemm")
ORT_DOMAIN = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


class Graph:
    """A model that is being rewritten. Nodes can be added and changed freely; `finish` sorts them again.

    Args:
        data: The ONNX file's bytes, or a model, which is copied.

    Attributes:
        constants: Name -> value of every initializer and Constant node.
        producer: Tensor -> the node that makes it.

    Raises:
        ArtifactError: The data is not ONNX, or has control flow, functions or weights in other files.
    """

    def __init__(self, data: "bytes | onnx.ModelProto") -> None:
        try:
            if isinstance(data, bytes):
                self.model = onnx.load_from_string(data)
            else:
                self.model = onnx.ModelProto()
                self.model.CopyFrom(data)
        except Exception as error:  # protobuf's error class differs between its releases
            raise ArtifactError(
                "The graph is not an ONNX file; export the bundle again with: fsvit-edge export."
            ) from error
        self.graph = self.model.graph
        nested = any(attribute.type in (5, 10) for node in self.graph.node for attribute in node.attribute)
        if nested or self.model.functions or any(tensor.external_data for tensor in self.graph.initializer):
            raise ArtifactError(
                "The graph has control flow, functions or weights in other files, which cannot be converted; "
                "use a graph of plain operators that contains its weights."
            )
        self.constants: dict[str, npt.NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer
        }
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
                self.graph.node.remove(node)
        self._names = {name for node in self.graph.node for name in (node.name, *node.input, *node.output)}
        self._names |= self.constants.keys() | {value.name for value in [*self.graph.input, *self.graph.output]}
        for node in self.graph.node:
            node.name = node.name or self.new_name(f"node_{node.output[0]}")
        self.index()

    @property
    def nodes(self) -> list[NodeProto]:
        """All nodes."""
        return list(self.graph.node)

    @property
    def output_names(self) -> set[str]:
        """The graph's outputs."""
        return {value.name for value in self.graph.output}

    @property
    def is_quantized(self) -> bool:
        """Whether the graph contains Q/DQ nodes."""
        return any(node.op_type in QUANTIZERS for node in self.graph.node)

    def index(self) -> None:
        """Rebuild `producer` and `consumers`; call it after a change and before you use them."""
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a tensor."""
        return self.consumers.get(name, [])

    def new_name(self, name_hint: str) -> str:
        """Return a new, unused name."""
        name, count = name_hint, 0
        while name in self._names:
            count += 1
            name = f"{name_hint}_{count}"
        self._names.add(name)
        return name

    def add_constant(self, name_hint: str, value: npt.NDArray[Any]) -> str:
        """Add an initializer and return its name."""
        name = self.new_name(name_hint)
        self.constants[name] = value
        return name

    def add_node(
        self,
        op_type: str,
        inputs: Iterable[str],
        name_hint: str,
        output: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node with one output and return the output's name."""
        if domain and all(entry.domain != domain for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(domain, 1))
        output = output or self.new_name(name_hint)
        name = self.new_name(f"node_{name_hint}")
        self.graph.node.append(helper.make_node(op_type, list(inputs), [output], name, domain=domain, **attributes))
        return output

    def remove(self, nodes: Iterable[NodeProto]) -> None:
        """Remove nodes."""
        for node in nodes:
            self.graph.node.remove(node)

    def element_types(self) -> dict[str, int]:
        """The element type of every tensor, from ONNX's own inference."""
        self._store_constants()
        try:
            inferred = onnx.shape_inference.infer_shapes(self.model, strict_mode=True).graph
        except onnx.shape_inference.InferenceError as error:
            raise ArtifactError(f"The graph is not valid ONNX: {first_line(error)}.") from error
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        types = {value.name: value.type.tensor_type.elem_type for value in values}
        return {**types, **{tensor.name: tensor.data_type for tensor in self.graph.initializer}}

    def tidy(self) -> None:
        """Remove nodes and constants that nothing reads, and sort the nodes so that they can run in order."""
        read = self.output_names
        kept = []
        self._sort()
        for node in reversed(self.nodes):
            if read & set(node.output):
                read |= set(node.input)
                kept.append(node)
        del self.graph.node[:]
        self.graph.node.extend(reversed(kept))
        self.constants = {name: value for name, value in self.constants.items() if name in read}
        self.index()

    def finish(self) -> onnx.ModelProto:
        """Tidy up and return the model."""
        self.tidy()
        self._store_constants()
        del self.graph.value_info[:]
        return self.model

    def _store_constants(self) -> None:
        del self.graph.initializer[:]
        self.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self.constants.items())

    def _sort(self) -> None:
        self.index()
        ordered: list[NodeProto] = []
        done: set[int] = set()
        for root in self.nodes:
            stack = [(root, False)]
            while stack:
                node, is_ready = stack.pop()
                if is_ready:
                    ordered.append(node)
                elif id(node) not in done:
                    done.add(id(node))
                    stack.append((node, True))
                    makers = [self.producer[name] for name in node.input if name in self.producer]
                    stack.extend((maker, False) for maker in reversed(makers) if id(maker) not in done)
        copies = [NodeProto() for _ in ordered]
        for copy, node in zip(copies, ordered, strict=True):
            copy.CopyFrom(node)
        del self.graph.node[:]
        self.graph.node.extend(copies)
        self.index()


def labels(graph: Graph, node: NodeProto) -> set[str]:
    """The names a user can give a node: its own, its operator, its outputs and the weights that it reads.

    They include a linear layer's bias, because the exporter keeps the bias's name, even if the bias is in a separate
    Add node.
    """
    found = {node.name, node.op_type, *node.output, *(name for name in node.input if name in graph.constants)}
    if node.op_type == "MatMul":
        for reader in graph.readers(node.output[0]):
            if reader.op_type == "Add":
                found |= {name for name in reader.input if name in graph.constants}
    return found - {""}


def matches(graph: Graph, node: NodeProto, patterns: Iterable[str]) -> bool:
    """Whether a shell-style pattern (* ? [...]) matches one of a node's labels."""
    known = labels(graph, node)
    return any(fnmatchcase(label, pattern) for pattern in patterns for label in known)


def as_float16(value: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Round to FP16 without a warning: values may underflow, and too large ones become infinite."""
    with np.errstate(over="ignore", under="ignore"):
        return value.astype(np.float16)
