"""Few-shot classification and segmentation on a frozen vision transformer, from checkpoint to camera.

The names in `__all__` are the public Python API; each is imported on its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsvit_edge.runtime.enrollment import Enrollment
    from fsvit_edge.runtime.errors import (
        AccuracyGateError,
        ArtifactError,
        EnvironmentLacksError,
        FsvitEdgeError,
        InputError,
        SourceError,
    )
    from fsvit_edge.runtime.prediction import Prediction
    from fsvit_edge.runtime.predictor import FewShotModel

__version__ = "0.2.0"
__all__ = [
    "AccuracyGateError",
    "ArtifactError",
    "Enrollment",
    "EnvironmentLacksError",
    "FewShotModel",
    "FsvitEdgeError",
    "InputError",
    "Prediction",
    "SourceError",
]

_HOME = {"Enrollment": "enrollment", "FewShotModel": "predictor", "Prediction": "prediction"}


def __getattr__(name: str) -> object:
    """Import a public name on its first use, so that `fsvit-edge --help` does not wait for numpy and OpenCV."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fsvit_edge.runtime.{_HOME.get(name, 'errors')}"), name)
