"""Precision: calibration sets, the ranges of activations, and a graph for each precision and target."""
