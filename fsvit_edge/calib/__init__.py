"""Calibration, and the graph of each precision for each backend."""
