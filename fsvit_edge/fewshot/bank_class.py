"""An enrolled class of a bank, and how many pictures there can be."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from fsvit_edge.fewshot.cached_support import ClassSupports, Negative
from fsvit_edge.fewshot.decide import scene_level
from fsvit_edge.fewshot.names import quoted
from fsvit_edge.runtime.errors import InputError

MAX_SHOTS = 100
"""Pictures of one class."""
MAX_SUPPORTS = 1275
"""Pictures and negatives of all classes, 5 for each of the most: every frame is compared with each."""


@dataclass(frozen=True)
class BankClass:
    """An enrolled class and what decides whether it is present."""

    supports: ClassSupports
    own_level: float  # as set by hand, or as its pictures give it
    is_level_by_hand: bool
    negatives: tuple[Negative, ...] = ()
    scene_scores: Mapping[bytes, float] = field(default_factory=dict)  # of the scene's pictures scored since a change
    held_level: float = 0.0  # what the scene asked for before a change, until all of it is scored again

    @cached_property  # read for every class of every frame
    def level(self) -> float:
        """The score above which the class is present, in (0, 1)."""
        if self.is_level_by_hand:
            return self.own_level
        return max(self.held_level, scene_level(self.own_level, tuple(self.scene_scores.values())))

    def to_score_again(self) -> "BankClass":
        """The class without its scores on the scene, on which it must not be found until it has new ones."""
        held = self.level if self.level > self.own_level else 0.0
        return replace(self, scene_scores={}, held_level=held)


def check_room(classes: Mapping[str, BankClass], name: str, more: int, shots: int = 0) -> None:
    """Refuse more pictures or negatives of a class than fit, with an InputError; `shots` are those it would have."""
    if shots > MAX_SHOTS:
        raise InputError(
            f"Class {quoted(name)} would have {shots} pictures, and can have {MAX_SHOTS}; give the best ones."
        )
    known = sum(len(entry.supports) + len(entry.negatives) for entry in classes.values())
    if known + more > MAX_SUPPORTS:
        raise InputError(
            f"The bank has {known} pictures and negatives, and can have {MAX_SUPPORTS}, so {more} more of "
            f"{quoted(name)} do not fit; remove some first."
        )
