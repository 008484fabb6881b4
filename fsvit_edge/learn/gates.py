"""Limits on the result of an evaluation: absolute ones, and the largest drop from an earlier result."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsvit_edge.learn.evaluation import EvaluationResult
from fsvit_edge.learn.metrics import Score
from fsvit_edge.learn.scenes import SceneResult
from fsvit_edge.runtime.errors import AccuracyGateError, ArtifactError, InputError
from fsvit_edge.runtime.given_text import read_given
from fsvit_edge.runtime.json_records import MAX_JSON_BYTES

DEFAULT_MAX_DROP = 1.0
_OLD_NAMES = {"ways": "way", "shots": "shot"}
"""Names of version 0.1.0, whose results can still be compared with."""


@dataclass(frozen=True)
class Baseline:
    """An earlier result, as written by `fsvit-edge eval --output`."""

    path: Path
    settings: dict[str, Any]  # of the episodes, and the outlines, by name
    episodes_sha256: str  # see `EvaluationResult`
    exact_ratio: float  # in percent
    miou: float | None  # in percent; None if no query had a mask

    @classmethod
    def load(cls, path: Path) -> "Baseline":
        """Read a result; a file that is missing or something else is an ArtifactError."""
        try:
            values: Any = json.loads(read_given(path, MAX_JSON_BYTES))
        except OSError as error:
            raise ArtifactError(f"The baseline {path} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"The baseline {path} is not JSON: {error}.") from error
        try:
            settings = {
                name: values[old if (old := _OLD_NAMES.get(name)) in values else name]
                for name in ("ways", "shots", "episodes", "masks")
            }
            # Results from before --outlines existed are plain.
            settings["outlines"] = values.get("outlines", "plain")
            miou = None if values["miou"] is None else float(values["miou"]["value"])
            return cls(path, settings, str(values["episodes_sha256"]), float(values["exact_ratio"]["value"]), miou)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"The baseline {path} is not the result of an evaluation: {error} is missing or wrong; make one with: "
                f"fsvit-edge eval --output {path}."
            ) from error

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse to compare with other episodes or other outlines."""
        differing = [name for name, value in self.settings.items() if value != settings[name]]
        if differing:
            theirs, ours = (", ".join(f"{name} {of[name]}" for name in differing) for of in (self.settings, settings))
            raise InputError(
                f"The baseline {self.path} cannot be compared: it has {theirs}, this evaluation has {ours}; "
                "use the settings of the baseline."
            )


@dataclass(frozen=True)
class Gates:
    """What a result must reach, in percent; None means no limit."""

    min_miou: float | None = None
    min_exact_ratio: float | None = None
    baseline: Baseline | None = None  # an earlier result on the same episodes
    max_drop: float = DEFAULT_MAX_DROP  # percentage points by which mIoU and exact ratio may be below the baseline's

    def check(self, result: EvaluationResult) -> None:
        """Check a result against the limits.

        Raises:
            AccuracyGateError: It misses a limit; the message names each limit that it misses.
            InputError: The baseline was made from other episodes.
        """
        exact, miou = _value(result.scores.exact_ratio), _value(result.scores.miou)
        limits = [("exact ratio", exact, self.min_exact_ratio, "the limit"), ("mIoU", miou, self.min_miou, "the limit")]
        if self.baseline is not None:
            self.baseline.check_settings(result.to_dict())
            if self.baseline.episodes_sha256 != result.episodes_sha256:
                raise InputError(
                    f"The baseline {self.baseline.path} cannot be compared: it was made with other classes, pictures "
                    "or masks; make it again from this data."
                )
            limits += [
                (what, value, before - self.max_drop, f"{self.max_drop:g} points below {before:.2f} %")
                for what, value, before in (
                    ("exact ratio", exact, self.baseline.exact_ratio),
                    ("mIoU", miou, self.baseline.miou),
                )
                if before is not None
            ]
        # Not `value < least`, which is False for NaN.
        _fail(
            f"{what} is {_measured(value)}, expected at least {least:.2f} % ({why})"
            for what, value, least, why in limits
            if least is not None and (value is None or not value >= least)
        )


@dataclass(frozen=True)
class SceneGates:
    """What a result on scenes must reach, in percent, averaged over the classes; None means no limit."""

    max_false_alarms: float | None = None  # share of the scenes without a class in which it is found
    min_hits: float | None = None  # share of the pictures of a class in which it is found

    def check(self, result: SceneResult) -> None:
        """Raise an AccuracyGateError that names each limit that a result misses."""
        alarms, hits = _value(result.scores.false_alarms), _value(result.scores.hits)
        missed = []
        # Not `alarms > most`, which is False for NaN.
        if self.max_false_alarms is not None and (alarms is None or not alarms <= self.max_false_alarms):
            missed.append(f"false alarms are {_measured(alarms)}, expected at most {self.max_false_alarms:.2f} %")
        if self.min_hits is not None and (hits is None or not hits >= self.min_hits):
            missed.append(f"hits are {_measured(hits)}, expected at least {self.min_hits:.2f} %")
        _fail(missed)


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value


def _measured(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} %"


def _fail(missed: Iterable[str]) -> None:
    if sentences := "; ".join(missed):
        raise AccuracyGateError(f"The accuracy gate failed: {sentences}.")
