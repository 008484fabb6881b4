"""What the library hands out for the person who watches: two kinds of lines, which the commands print to stderr."""

import shlex
from collections.abc import Callable

Say = Callable[[str], None]
"""Takes a line that stays: a note, a warning, or what to do next."""

Progress = Callable[[str], None]
"""Takes a few words on the step that begins; those on the next step replace them."""


def command_line(*words: object) -> str:
    """Return a command of fsvit-edge as a shell takes it, to be copied out of a line."""
    return shlex.join(["fsvit-edge", *map(str, words)])
