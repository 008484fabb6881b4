"""What errors of libraries become in our sentences."""

import pytest

from fsvit_edge.runtime.errors import first_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("It is wrong.\nat line 1 of a library"), "It is wrong"),
        (RuntimeError("no dot"), "no dot"),
        (RuntimeError(), "RuntimeError"),
        (OSError(2, "No such file"), "[Errno 2] No such file"),
    ],
)
def test_of_an_error_the_first_line_is_told_or_its_kind_if_it_has_none(error: Exception, expected: str) -> None:
    assert first_line(error) == expected
