"""Old spellings of options: each is refused with a sentence that names the new one."""

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, Mapping[str, str]] = {
    "eval": {
        "--way": "--ways",
        "--shot": "--shots",
        "--drop": "--max-drop",
        "--min-er": "--min-exact-ratio",
        "--pictures": "--preview",
    },
    "train": {"--nameless": "--mask-dropout", "--precision": "--trainer-precision"},
    "calib": {"--num": "--max-pictures"},
    "build-engine": {"--ways-max": "--max-ways", "--shots-max": "--max-shots"},
}
"""Command -> old spelling -> new spelling."""


def new_spelling(command: str, error: Any) -> str | None:
    """Return a sentence that names the new spelling, or None if a usage error is not about an old one.

    Args:
        command: Name of the command.
        error: click's UsageError.
    """
    old = getattr(error, "option_name", "")
    if old in RENAMED.get(command, {}):
        return f"{old} is now {RENAMED[command][old]}"
    option = getattr(error, "param", None)
    if command == "eval" and option is not None and option.name == "max_drop" and "valid " in error.message:
        return "--max-drop is now a number of points; give the earlier result with --baseline FILE"
    return None
