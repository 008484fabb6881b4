"""The state of a box, as a device sees it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

BoxState = Literal["live", "lost"]


class BoxCondition(NamedTuple):
    """The part of a box's status that people are told about when it changes; reasons alone are no news."""

    state: BoxState
    is_in_trouble: bool
    bank_trouble: str


HEALTHY_BOX = BoxCondition("live", is_in_trouble=False, bank_trouble="")
"""The condition of a box that has no problem."""


@dataclass(frozen=True)
class BoxStatus:
    """The state of the box that answers, see `RemoteModel`."""

    address: str  # Its address, safe to print.
    since_s: float  # When this state began, in seconds since 1970 (UTC).
    state: BoxState = "live"  # "lost" while it answers nothing.
    trouble: str = ""  # Why it answers nothing, or only some requests; empty if nothing is wrong.
    bank_sha256: str = ""  # Of the bank's file that answered last, in hexadecimal.
    bank_trouble: str = ""  # Why the bank's file of now is not used but the one before; empty if it is.

    @property
    def condition(self) -> BoxCondition:
        """What people are told about when it changes."""
        return BoxCondition(self.state, bool(self.trouble), self.bank_trouble)
