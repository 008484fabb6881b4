"""Where the ranges of an INT8 build come from: a file, the bundle's own, or pictures that are calibrated on at once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fsvit_edge.calib.calibration import Calibration
from fsvit_edge.calib.pictures import sample_pictures
from fsvit_edge.calib.ranges import collect_ranges
from fsvit_edge.export.compare import PICTURES, Picture
from fsvit_edge.runtime.bundle import Bundle
from fsvit_edge.runtime.errors import ArtifactError, InputError

CALIBRATION_NAME = "calibration.json"
"""Looked for in the bundle where none is named; the model that is shipped has one."""
NUM_PICTURES, SEED = 256, 0
"""Of a SOURCE; `fsvit-edge calib` takes others."""


@dataclass(frozen=True)
class Calibrated:
    """Ranges, and pictures to verify with.

    Attributes:
        calibration: The ranges.
        pictures: Some of those it was made of; none where it came from a file.
        source: Where it came from, in words.
    """

    calibration: Calibration
    pictures: tuple[Picture, ...]
    source: str


def find_calibration(bundle: Bundle, wanted: str | None, progress: Callable[[str], None]) -> Calibrated:
    """Load a calibration, or make one.

    Args:
        bundle: What it must fit.
        wanted: A file (.json) or a source of pictures; None: the one in the bundle.
        progress: Is told how far it has come.

    Raises:
        InputError: There is none in the bundle and none was named, or the source cannot be used.
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
        if wanted is None:
            try:
                calibration.check_fits(bundle)
            except ArtifactError as error:
                raise ArtifactError(f"{file} is not this bundle's: {error}") from error
        else:
            calibration.check_fits(bundle)
        return Calibrated(calibration, (), str(file))
    assert wanted is not None
    sample = sample_pictures(wanted, NUM_PICTURES, SEED)
    kept: list[Picture] = []
    every = max(1, sample.count // PICTURES)
    calibration = collect_ranges(
        bundle, _keeping(sample, every, kept), seed=SEED, step=lambda step: progress(f"calibrate: {step}")
    )
    return Calibrated(calibration, tuple(kept[:PICTURES]), wanted)


def _keeping(pictures: Iterable[Picture], every: int, kept: list[Picture]) -> Iterator[Picture]:
    """Pass pictures on and keep some, because a camera gives each only once."""
    for number, picture in enumerate(pictures):
        if number % every == 0:
            kept.append(picture)
        yield picture
