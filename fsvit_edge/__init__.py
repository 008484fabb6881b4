"""Few-shot classification and segmentation on a frozen vision transformer, from checkpoint to camera.

The names of this page are the public Python API; they load when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsvit_edge.runtime.errors import (
        AccuracyGateError,
        ArtifactError,
        EnvironmentLacksError,
        FsvitEdgeError,
        InputError,
        SourceError,
    )
    from fsvit_edge.runtime.prediction import Prediction
    from fsvit_edge.runtime.predictor import Enrollment, FewShotModel

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

_HOME = {"Enrollment": "predictor", "FewShotModel": "predictor", "Prediction": "prediction"}


def __getattr__(name: str) -> object:
    """Import a public name on its first use, so that `fsvit-edge --help` does not wait for numpy and OpenCV."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fsvit_edge.runtime.{_HOME.get(name, 'errors')}"), name)
