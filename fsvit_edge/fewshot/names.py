"""What a class or a zone may be called."""

import re
import unicodedata
from collections.abc import Collection

from fsvit_edge.runtime.errors import InputError

MAX_NAME_LENGTH = 80

# Not str.isprintable: it depends on the Unicode of the Python that asks, so a bank with a newer emoji was "damaged"
# for an older one; and it refuses the joiners of Persian, Hindi, Sinhala and of composed emoji.
_REFUSED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"  # control, lines, directions, halves
    "\xad\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]"  # what nobody sees
)
_INVISIBLE = re.compile("[\\s\u061c\u200c-\u200f\u180e\u3164\ufe00-\ufe0f\U000e0000-\U000e0fff]+")


# An invisible letter that only sets a direction, and often comes with text that is copied. NFC and NFKC keep it.
_MARK = re.compile("[\u061c\u200e\u200f]")


def check_name(name: str, what: str = "class") -> None:
    """Refuse a name that a table, a file or a terminal could not show, with an InputError."""
    is_blank = not _INVISIBLE.sub("", name) or name != name.strip()
    if is_blank or len(name) > MAX_NAME_LENGTH or _REFUSED.search(name):
        raise InputError(f"A {what} name must be 1 to {MAX_NAME_LENGTH} printable characters, got {name!r:.100}.")


def quoted(name: str) -> str:
    """A name for a sentence, as it is: repr escapes joiners, and emoji that are newer than this Python."""
    name = escaped(name[:MAX_NAME_LENGTH])
    return f'"{name}"' if "'" in name else f"'{name}'"


def escaped(text: str) -> str:
    """A text that may come from elsewhere, with what a terminal would obey, or would not show, as escapes."""
    for hidden in (_REFUSED, _MARK):
        text = hidden.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text


def composed(name: str) -> str:
    """The name in Unicode's composed form, without marks of direction.

    Names of files on a Mac are decomposed; these and names with marks look the same as those without.
    """
    return unicodedata.normalize("NFC", _MARK.sub("", name))


def resolved(name: str, known: Collection[str]) -> str:
    """The one of the known names that is this one, perhaps in another form; else the composed form."""
    if name in known:
        return name
    return next((one for one in known if composed(one) == composed(name)), composed(name))
