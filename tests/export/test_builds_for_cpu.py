"""A graph that ONNX Runtime has optimized goes through a temporary file, whatever the name of its folder."""

import os
import tempfile
from pathlib import Path

import onnx
import pytest

from fsvit_edge.export.onnxruntime import build_for_cpu

GRAPH = onnx.helper.make_model(
    onnx.parser.parse_graph("g (float[2, 2] x) => (float[2, 2] y) { a = MatMul(x, x) y = Relu(a) }"),
    ir_version=9,
    opset_imports=[onnx.helper.make_opsetid("", 20)],
).SerializeToString()


@pytest.mark.parametrize("name", [b"t", "größe 猫".encode(), b"t\xff\xe9mp"])
def test_the_name_of_the_temporary_folder_may_be_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(folder))
    assert tempfile.gettempdir() == str(folder)
    built = build_for_cpu(GRAPH, "head")
    assert [node.op_type for node in onnx.load_from_string(built.data).graph.node] == ["MatMul", "Relu"]
    assert not list(folder.iterdir())
