"""Limits that an evaluation must keep: absolute ones, and the distance from an earlier result."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsvit_edge.learn.evaluation import EvaluationResult
from fsvit_edge.learn.scenes import SceneResult
from fsvit_edge.runtime.errors import AccuracyGateError, ArtifactError, InputError

DEFAULT_DROP_POINTS = 1.0
_SETTINGS = ("way", "shot", "episodes", "masks")


@dataclass(frozen=True)
class Reference:
    """An earlier result, as `fsvit-edge eval --json` prints it.

    Attributes:
        path: Its file.
        settings: The episodes' settings and the outlines by name.
        episodes_sha256: Of its episodes.
        exact_ratio: In percent.
        miou: In percent; None where nothing was segmented.
    """

    path: Path
    settings: dict[str, Any]
    episodes_sha256: str
    exact_ratio: float
    miou: float | None

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read a result.

        Raises:
            ArtifactError: The file is missing or is no such result.
        """
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ArtifactError(f"The reference {path} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"The reference {path} is not JSON: {error}.") from error
        try:
            return cls(
                path,
                # Results from before there was a choice do not say which outlines theirs are.
                {**{name: values[name] for name in _SETTINGS}, "outlines": values.get("outlines", "plain")},
                str(values["episodes_sha256"]),
                float(values["exact_ratio"]["value"]),
                None if values["miou"] is None else float(values["miou"]["value"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"The reference {path} is no result of an evaluation: {error} is missing or wrong; make one with: "
                f"fsvit-edge eval --output {path}."
            ) from error

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse to be compared with other episodes or other outlines.

        Raises:
            InputError: A setting differs.
        """
        differing = [name for name, value in self.settings.items() if value != settings[name]]
        if differing:
            theirs = ", ".join(f"{name} {self.settings[name]}" for name in differing)
            ours = ", ".join(f"{name} {settings[name]}" for name in differing)
            raise InputError(
                f"The reference {self.path} cannot be compared: it has {theirs}, this evaluation {ours}; "
                "use the settings of the reference."
            )


@dataclass(frozen=True)
class Gates:
    """What a result must reach, in percent; None is no limit.

    Attributes:
        min_miou: Smallest mIoU.
        min_exact_ratio: Smallest 0/1 exact ratio.
        reference: An earlier result over the same episodes.
        drop: How many points mIoU and exact ratio may lie below the reference's.
    """

    min_miou: float | None = None
    min_exact_ratio: float | None = None
    reference: Reference | None = None
    drop: float = DEFAULT_DROP_POINTS

    def check(self, result: EvaluationResult) -> None:
        """Judge a result.

        Raises:
            AccuracyGateError: It misses a limit; the message names every one that it misses.
            InputError: The reference is of other episodes.
        """
        scores = result.scores
        exact, miou = scores.exact_ratio.value, None if scores.miou is None else scores.miou.value
        limits = [("exact ratio", exact, self.min_exact_ratio, "the limit"), ("mIoU", miou, self.min_miou, "the limit")]
        if self.reference is not None:
            self.reference.check_settings(result.to_dict())
            if self.reference.episodes_sha256 != result.episodes_sha256:
                raise InputError(
                    f"The reference {self.reference.path} cannot be compared: it was made with other classes, pictures "
                    "or masks; make it again from this data."
                )
            for what, value, before in (
                ("exact ratio", exact, self.reference.exact_ratio),
                ("mIoU", miou, self.reference.miou),
            ):
                if before is not None:
                    limits.append((what, value, before - self.drop, f"{self.drop:g} points below {before:.2f} %"))
        # Not `value < least`, which is false of a NaN.
        missed = [
            f"{what} {_measured(value)}, at least {least:.2f} % wanted ({why})"
            for what, value, least, why in limits
            if least is not None and (value is None or not value >= least)
        ]
        _fail(missed)


@dataclass(frozen=True)
class SceneGates:
    """What a result on scenes must keep, in percent, as means over the classes at their levels; None is no limit.

    Attributes:
        max_false_alarms: Largest share of the scenes without a class in which it is present.
        min_hits: Smallest share of the pictures of a class in which it is present.
    """

    max_false_alarms: float | None = None
    min_hits: float | None = None

    def check(self, result: SceneResult) -> None:
        """Judge a result.

        Raises:
            AccuracyGateError: It misses a limit; the message names every one that it misses.
        """
        alarms, hits = (None if one is None else one.value for one in (result.scores.false_alarms, result.scores.hits))
        missed = []
        # Not `alarms > most`, which is false of a NaN.
        if self.max_false_alarms is not None and (alarms is None or not alarms <= self.max_false_alarms):
            missed.append(f"false alarms {_measured(alarms)}, at most {self.max_false_alarms:.2f} % wanted")
        if self.min_hits is not None and (hits is None or not hits >= self.min_hits):
            missed.append(f"hits {_measured(hits)}, at least {self.min_hits:.2f} % wanted")
        _fail(missed)


def _measured(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} %"


def _fail(missed: list[str]) -> None:
    if missed:
        raise AccuracyGateError(f"The accuracy gate failed: {'; '.join(missed)}.")
