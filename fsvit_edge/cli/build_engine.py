"""`fsvit-edge build-engine`: announced; TensorRT engines come with the next release."""

from typing import Annotated

import typer

from fsvit_edge.runtime.errors import EnvironmentLacksError


def build_engine(
    int8: Annotated[bool, typer.Option("--int8", help="Quantise with a calibration set.")] = False,
) -> None:
    """Build a TensorRT engine from a bundle (comes with the next release)."""
    kind = "INT8" if int8 else "FP16"
    raise EnvironmentLacksError(
        f"Building {kind} engines comes with the next release of fsvit-edge; until then `fsvit-edge run` computes with "
        "ONNX Runtime, on CUDA where onnxruntime-gpu is installed."
    )
