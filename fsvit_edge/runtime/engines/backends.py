"""The backends, and the words for what they make.

backend: The library that builds and runs a model: one of `BACKENDS`.
engine: A file that a backend built from a graph, or that file opened; the option --engine names a backend.
graph: A part of the network as an ONNX file: encoder, enroll, head, and objectness.
target: A GPU architecture that TensorRT-RTX builds for, such as "sm86".
"""

from fsvit_edge.runtime.errors import InputError

TENSORRT_BACKENDS = ("tensorrt", "tensorrt-rtx")
BACKENDS = (*TENSORRT_BACKENDS, "onnxruntime")
BACKEND_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime"}
_RENAMED = {"cpu": "onnxruntime", "cuda": "onnxruntime-cuda"}


def refuse_old_name(engine: str) -> None:
    """Refuse a name that --engine had in 0.1.0.

    Raises:
        InputError: The name is one of them.
    """
    if engine in _RENAMED:
        raise InputError(f"Engine {engine!r} is now called {_RENAMED[engine]!r}.")
