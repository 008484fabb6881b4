"""A box that answers the frames of many cameras: a model of Triton Inference Server, and the device's side of it."""
