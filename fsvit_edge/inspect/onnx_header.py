"""What an ONNX file says of itself, read from its protobuf fields without the onnx package, which devices lack."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fsvit_edge.runtime.engines.base import TensorSpec

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DTYPES = {
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("float16", 2),
    11: ("float64", 8),
    16: ("bfloat16", 2),
}
_QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
}


@dataclass(frozen=True)
class OnnxHeader:
    """An ONNX file without its weights.

    Attributes:
        producer: Name and version of the program that wrote it; empty where it does not say.
        opset: Version of ONNX's own operators.
        operators: How many of each.
        inputs: Fed at run time; sizes that vary by name.
        outputs: Likewise.
        weight_bytes: Of the constants in the file, by type.
    """

    producer: str
    opset: int
    operators: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weight_bytes: dict[str, int]

    @property
    def precision(self) -> str:
        """int8 where anything is quantized, else the type of most of the weights: fp16 or fp32."""
        if self.operators.keys() & _QUANTIZED:
            return "int8"
        halves, singles = (self.weight_bytes.get(dtype, 0) for dtype in ("float16", "float32"))
        return "fp16" if halves > singles else "fp32"


def read_onnx_header(data: bytes) -> OnnxHeader:
    """Read what a file says of itself.

    Raises:
        ValueError: It is no ONNX file, or is cut short.
    """
    producer = version = ""
    opset = 0
    graph: memoryview | None = None
    for number, value in _fields(memoryview(data)):
        if number == 2:
            producer = _text(value)
        elif number == 3:
            version = _text(value)
        elif number == 7:
            graph = _view(value)
        elif number == 8:
            domain, stated = _operator_set(value)
            if domain in ("", "ai.onnx"):
                opset = stated
    if graph is None or opset == 0:
        raise ValueError("it has no graph")
    operators: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    constants: set[str] = set()
    inputs, outputs = [], []
    for number, value in _fields(graph):
        if number == 1:
            operators[next((_text(one) for at, one in _fields(_view(value)) if at == 4), "")] += 1
        elif number == 5:
            name, dtype, nbytes = _weight(value)
            constants.add(name)
            weights[dtype] += nbytes
        elif number == 11:
            inputs.append(_tensor(value))
        elif number == 12:
            outputs.append(_tensor(value))
    fed = tuple(spec for spec in inputs if spec.name not in constants)
    made_by = f"{producer} {version}".strip()
    return OnnxHeader(made_by, opset, dict(operators.most_common()), fed, tuple(outputs), dict(weights))


def _operator_set(value: int | memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, field in _fields(_view(value)):
        if number == 1:
            domain = _text(field)
        elif number == 2:
            version = _int(field)
    return domain, version


def _weight(value: int | memoryview) -> tuple[str, str, int]:
    """Name, type and bytes of a constant."""
    name, code = "", 0
    sizes: list[int] = []
    for number, field in _fields(_view(value)):
        if number == 1:  # packed or one by one
            sizes += [field] if isinstance(field, int) else _packed(field)
        elif number == 2:
            code = _int(field)
        elif number == 8:
            name = _text(field)
    dtype, width = _DTYPES.get(code, (f"type {code}", 1))
    return name, dtype, math.prod(sizes) * width


def _tensor(value: int | memoryview) -> TensorSpec:
    name, dtype = "", "unknown"
    shape: list[int | str] = []
    for number, field in _fields(_view(value)):
        if number == 1:
            name = _text(field)
        elif number == 2:
            for kind, described in _fields(_view(field)):
                if kind != 1:  # a sequence or a map, which no graph of ours has
                    continue
                for part, content in _fields(_view(described)):
                    if part == 1:
                        code = _int(content)
                        dtype = _DTYPES.get(code, (f"type {code}", 1))[0]
                    elif part == 2:
                        shape = [_size(one) for at, one in _fields(_view(content)) if at == 1]
    return TensorSpec(name, tuple(shape), dtype)


def _size(value: int | memoryview) -> int | str:
    for number, field in _fields(_view(value)):
        if number == 1:
            return _int(field)
        if number == 2:
            return _text(field)
    return "?"


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protobuf message."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("it is no protobuf message")
        if number == 0 or position + size > len(data):
            raise ValueError("it is cut short or no protobuf message")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if position + index >= len(data):
            raise ValueError("it is cut short")
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("it is no protobuf message")


def _packed(data: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(data):
        value, position = _varint(data, position)
        values.append(value)
    return values


def _view(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a message is a number")  # noqa: TRY004 - of the file, not of the argument
    return value


def _int(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("a number is something else")  # noqa: TRY004 - as above
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_view(value)).decode("utf-8", "replace")
