"""ONNX files of a few bytes, written without the onnx package."""

from collections.abc import Iterable, Mapping
from typing import Any

_DTYPES = {"float32": 1, "uint8": 2, "int64": 7, "bool": 9, "float16": 10}


def field(number: int, value: int | bytes | str) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    """A number of variable length."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def onnx_graph(described: Mapping[str, Any], *others: bytes) -> bytes:
    """A graph with the described "inputs" and "outputs", and what else is given, that computes nothing."""
    tensors = ((11, described["inputs"]), (12, described["outputs"]))
    return b"".join([*(field(number, _tensor(one)) for number, specs in tensors for one in specs), *others])


def onnx_model(described: Mapping[str, Any], *others: bytes) -> bytes:
    """The file of such a graph."""
    return field(8, field(2, 20)) + field(7, onnx_graph(described, *others))


def _tensor(spec: Mapping[str, Any]) -> bytes:
    kind = field(1, _DTYPES[spec["dtype"]]) + field(2, b"".join(_sizes(spec["shape"])))
    return field(1, spec["name"]) + field(2, field(1, kind))


def _sizes(shape: Iterable[int | str]) -> Iterable[bytes]:
    return (field(1, field(1 if isinstance(size, int) else 2, size)) for size in shape)
