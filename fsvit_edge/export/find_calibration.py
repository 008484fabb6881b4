"""The calibration of an INT8 build: a file, the bundle's own, or pictures that are calibrated on right now."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.calib.calibration import CALIBRATION_NAME, Calibration
from fsvit_edge.calib.pictures import sample_pictures
from fsvit_edge.calib.ranges import collect_ranges
from fsvit_edge.export.agreement import PICTURES, Picture
from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.errors import InputError

MAX_PICTURES, SEED = 256, 0
"""Sampling of a SOURCE; `fsvit-edge calib` has options for it."""


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and pictures to verify with.

    Attributes:
        calibration: The calibration.
        pictures: Some of the pictures it was made from; empty if it came from a file.
        source: The file, or where the pictures come from.
    """

    calibration: Calibration
    pictures: tuple[Picture, ...]
    source: str


def find_calibration(bundle: Bundle, wanted: str | None, progress: Callable[[str], None]) -> Calibrated:
    """Load a calibration, or make one.

    Args:
        bundle: The bundle that the calibration must fit.
        wanted: A file (.json) or a source of pictures; None: the bundle's own calibration.
        progress: Called with what is being calibrated.

    Raises:
        InputError: None is named and the bundle has none, or the source cannot be used.
        ArtifactError: The file is missing, damaged or of another model.
        SourceError: The source cannot be reached.
    """
    file = bundle.path / CALIBRATION_NAME if wanted is None else Path(wanted)
    if wanted is None and not file.is_file():
        raise InputError(
            f"INT8 needs a calibration and bundle {bundle.path} has none: name pictures, a video or a camera with "
            f"--calib SOURCE, or make a file with: fsvit-edge calib SOURCE --bundle {bundle.path} --output {file}."
        )
    if file.suffix == ".json":
        calibration = Calibration.load(file)
        calibration.check_fits(bundle)
        return Calibrated(calibration, (), str(file))
    assert wanted is not None
    sample = sample_pictures(wanted, MAX_PICTURES, SEED)
    kept: list[Picture] = []
    every = max(1, sample.count // PICTURES)
    calibration = collect_ranges(
        bundle, _keeping(sample, every, kept), seed=SEED, step=lambda step: progress(f"calibrate: {step}")
    )
    return Calibrated(calibration, tuple(kept[:PICTURES]), wanted)


def _keeping(pictures: Iterable[Picture], every: int, kept: list[Picture]) -> Iterator[Picture]:
    """Yield pictures and keep some of them, because a camera shows each picture only once."""
    for number, picture in enumerate(pictures):
        if number % every == 0:
            kept.append(picture)
        yield picture
