"""A module -> an ONNX graph: traced by torch's exporter, simplified, and checked."""

import contextlib
import io
import logging
import warnings

import onnx
import torch

from fsvit_edge.model.graphs import GraphSpec
from fsvit_edge.runtime.errors import ArtifactError, FsvitEdgeError, first_line


def trace(spec: GraphSpec, opset: int) -> onnx.ModelProto:
    """Trace a module with torch's exporter, without its messages."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            spec.module.eval(),
            tuple(spec.example.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(spec.example),
            output_names=list(spec.outputs),
            dynamic_shapes=spec.dynamic_shapes(),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def simplify(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Fold constants and remove redundant nodes, with onnxsim, which compares the results itself."""
    import onnxsim

    simplified, same = onnxsim.simplify(model)
    if not same:
        raise FsvitEdgeError(f"onnxsim changed what the {name} graph computes; export with --no-simplify.")
    return simplified  # type: ignore[no-any-return]  # onnxsim ships no types


def check(model: onnx.ModelProto, name: str, opset: int) -> None:
    """Check that a graph is valid ONNX, uses only standard operators of one opset, and has whole LayerNorms.

    A LayerNorm made of single operators overflows in FP16 (ViT-B on an Orin Nano: accuracy 85 % -> 19 %).
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"The {name} graph is not valid ONNX: {first_line(error)}.") from error
    versions = {entry.domain: entry.version for entry in model.opset_import}
    foreign = sorted({node.domain for node in model.graph.node} - {""})
    if versions.get("") != opset or foreign or model.functions:
        raise ArtifactError(
            f"The {name} graph must use only the standard operators of opset {opset}, got {versions} "
            f"and operators of the other domains {foreign or '(none)'}."
        )
    operators = {node.op_type for node in model.graph.node}
    if name == "encoder" and "LayerNormalization" not in operators:
        raise ArtifactError("The encoder graph has no LayerNormalization operator, so FP16 would overflow in it.")
