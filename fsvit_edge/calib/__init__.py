"""Calibration sets and quantisation ranges come here, with the engine builder of a later release."""
