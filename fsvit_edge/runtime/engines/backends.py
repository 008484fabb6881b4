"""The backends, and the words for what they make.

backend: The library that builds and runs a model: one of `BACKENDS`.
engine: A file that a backend built from a graph, or that file opened; the option --engine names a backend.
graph: A part of the network as an ONNX file: encoder, enroll, head, and objectness.
target: A GPU architecture that TensorRT-RTX builds for, such as "sm86".
"""

TENSORRT_BACKENDS = ("tensorrt", "tensorrt-rtx")
BACKENDS = (*TENSORRT_BACKENDS, "onnxruntime")
BACKEND_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime"}
