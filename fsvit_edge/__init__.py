"""Few-shot classification and segmentation on a frozen vision transformer, from checkpoint to camera.

The names in `__all__` are the public Python API; each is imported on its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsvit_edge.fewshot.enrollment import Enrollment
    from fsvit_edge.fewshot.prediction import Prediction
    from fsvit_edge.fewshot.predictor import FewShotModel
    from fsvit_edge.runtime.errors import (
        AccuracyGateError,
        ArtifactError,
        EnvironmentLacksError,
        FsvitEdgeError,
        InputError,
        SourceError,
    )

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

_HOMES = {"Enrollment": "fewshot.enrollment", "FewShotModel": "fewshot.predictor", "Prediction": "fewshot.prediction"}


def __getattr__(name: str) -> object:
    """Import a public name on its first use, so that `fsvit-edge --help` does not wait for numpy and OpenCV."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fsvit_edge.{_HOMES.get(name, 'runtime.errors')}"), name)


def __dir__() -> list[str]:
    """The public names also before they are imported, for editors and shells that complete them."""
    return sorted({*globals(), *__all__})
