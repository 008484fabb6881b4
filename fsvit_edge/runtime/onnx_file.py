"""What an ONNX file says of itself, read without its weights and without the onnx package, which devices do not have.

The numbers of the fields are those of onnx.proto. A field that may stand only once is read wherever it stands, because
parsers merge the parts of one that stands twice.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

Fields = defaultdict[int, list[Any]]
"""The values of a protobuf message by the number of the field: an int if of variable length, else a memoryview."""

_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}  # where tensors may be
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_DTYPES = {1: "float32", 2: "uint8", 7: "int64", 9: "bool", 10: "float16"}

Declared = tuple[str, str | None, tuple[int | None, ...]]
"""Name, dtype and shape of an input or output; None for what is variable, or a dtype that no graph of ours has."""


def message(data: memoryview) -> Fields:
    """Read one message; a LookupError or TypeError if it ends within a field, or a field is of another kind."""
    fields: Fields = defaultdict(list)
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        size, position = _varint(data, position) if kind in (0, 2) else ({1: 8, 5: 4}[kind], position)
        if kind == 0:
            fields[number].append(size)
            continue
        if position + size > len(data):
            raise IndexError
        fields[number].append(data[position : position + size])
        position += size
    return fields


def text(fields: Fields, number: int) -> str:
    """Return the last text of a field; "" if there is none."""
    return str(fields[number][-1], "utf-8", "replace") if fields[number] else ""


def keeps_data_elsewhere(data: bytes) -> bool:
    """Whether any tensor of an ONNX file has its values in another file.

    Engines look for that file in the working folder if they get bytes, and no sum covers it.

    Raises:
        ValueError: It is not an ONNX file, or is truncated.
    """
    try:
        return any(one[_EXTERNAL_DATA] or any(one[_DATA_LOCATION]) for one in _tensors("model", memoryview(data)))
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError("it is truncated or not a protobuf message") from error


def tensor_with_nan(data: bytes) -> str | None:
    """Return the name of the first tensor of an ONNX file that has a NaN; None if there is none.

    Infinite values are no fault: masks are made of them. Raises as `keeps_data_elsewhere`.
    """
    try:
        return next((text(one, 8) for one in _tensors("model", memoryview(data)) if _has_nan(one)), None)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError("it is truncated or not a protobuf message") from error


def _has_nan(tensor: Fields) -> bool:
    dtype = {1: "<f4", 10: "<f2", 11: "<f8"}.get(sum(tensor[2][-1:]))
    packed = {"<f4": 4, "<f8": 10}.get(dtype or "", 0)  # FP16 is packed as integers, by nobody
    return dtype is not None and any(
        bool(np.isnan(np.frombuffer(part, dtype)).any()) for part in (*tensor[9], *tensor[packed]) if len(part)
    )


def declared_tensors(data: bytes) -> tuple[list[Declared], list[Declared]]:
    """Return what an ONNX file declares as its inputs and outputs, in order; raises as `keeps_data_elsewhere`."""
    try:
        graphs = [message(one) for one in message(memoryview(data))[7]]
        weights = {text(message(one), 8) for graph in graphs for one in graph[5]}
        inputs, outputs = ([_declared(one) for graph in graphs for one in graph[number]] for number in (11, 12))
    except (LookupError, TypeError) as error:
        raise ValueError("it is truncated or not a protobuf message") from error
    return [one for one in inputs if one[0] not in weights], outputs


def _declared(data: memoryview) -> Declared:
    fields = message(data)
    dtype, shape = None, list[int | None]()
    for kind in fields[2]:
        for tensor in map(message, message(kind)[1]):
            dtype = _DTYPES.get(tensor[1][-1]) if tensor[1] else None
            for sizes in tensor[2]:
                shape += [one[1][-1] if one[1] else None for one in map(message, message(sizes)[1])]
    return text(fields, 1), dtype, tuple(shape)


def _tensors(kind: str, data: memoryview) -> Iterator[Fields]:
    fields = message(data)
    if kind == "tensor":
        yield fields
        return
    for number, part in _PARTS[kind].items():
        for one in fields[number]:
            yield from _tensors(part, one)


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of variable length, at most 10 bytes, and the position after it."""
    value = 0
    for at in range(10):
        byte = data[position + at]
        value |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            return value, position + at + 1
    raise IndexError
