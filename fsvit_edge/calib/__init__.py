"""Quantization: pictures are sampled, ranges collected, and the graph of each precision and target made."""
