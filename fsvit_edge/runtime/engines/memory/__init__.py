"""Memory on the GPU, by pycuda or cuda.bindings."""
