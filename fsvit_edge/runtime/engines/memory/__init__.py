"""GPU memory, by pycuda or cuda-bindings."""
