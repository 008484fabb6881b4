"""The two kinds of lines that the library hands out for the person who watches; the commands print them to stderr."""

from collections.abc import Callable

Say = Callable[[str], None]
"""Takes a line that stays: a note, a warning, or what to do next."""

Progress = Callable[[str], None]
"""Takes a few words on the step that begins; those on the next step replace them."""
