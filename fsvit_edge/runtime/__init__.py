"""The device side: frame in, result out. Needs numpy, OpenCV and one engine; never torch, onnx or Typer."""
