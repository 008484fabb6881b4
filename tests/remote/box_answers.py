"""Compares answers of a box with answers here; a picture without a thing."""

import numpy as np

from fsvit_edge.fewshot.prediction import Prediction

NAME = "cst-nano"
ADDRESS = f"triton://box.example:8001/{NAME}"
HERE = {"engine": "onnxruntime", "precision": "fp32"}


def gray(value: int, height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def is_same_answer(one: Prediction, other: Prediction) -> bool:
    """Whether two answers are equal in everything but their times."""
    arrays = ("scores", "levels", "label_map", "raw_scores", "contested", "present")
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
    types = all(getattr(one, name).dtype == getattr(other, name).dtype for name in arrays)
    steady = (one.steady_present is None) == (other.steady_present is None)
    return same and types and steady and one.results == other.results and one.zones == other.zones
