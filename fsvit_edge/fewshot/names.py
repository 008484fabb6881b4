"""What a class or a zone may be called."""

from fsvit_edge.runtime.errors import InputError

MAX_NAME_LENGTH = 80


def check_name(name: str, what: str = "class") -> None:
    """Refuse a name that a table, a file or a terminal could not show, with an InputError."""
    if not name or name != name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise InputError(f"A {what} name must be 1 to {MAX_NAME_LENGTH} printable characters, got {name!r:.100}.")
