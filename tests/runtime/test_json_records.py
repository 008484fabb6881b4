import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsvit_edge.runtime.errors import ArtifactError
from fsvit_edge.runtime.json_records import read_json_object, record_from_json


@dataclass(frozen=True)
class Inner:
    name: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Record:
    format_version: int
    size: int
    share: float
    is_whole: bool
    inner: tuple[Inner, ...]
    ranges: dict[str, tuple[float, float]]
    profile: dict[str, list[int]]
    maybe: float | None
    anything: Any
    later: str = "unsaid"
    list_of: list[str] = field(default_factory=list)


WHOLE: dict[str, Any] = {
    "format_version": 1,
    "size": 3,
    "share": 1,
    "is_whole": True,
    "inner": [{"name": "a", "shape": ["batch", 2]}],
    "ranges": {"x": [0, 1.5]},
    "profile": {"x": [1, 2]},
    "maybe": None,
    "anything": {"deep": [None, {"x": 1}]},
}
FILE = Path("folder/file.json")


def test_every_field_gets_its_type() -> None:
    record = record_from_json(Record, FILE, WHOLE)
    assert record == Record(
        1, 3, 1.0, True, (Inner("a", ("batch", 2)),), {"x": (0.0, 1.5)}, {"x": [1, 2]}, None, {"deep": [None, {"x": 1}]}
    )
    assert type(record.share) is float
    assert (record.later, record.list_of) == ("unsaid", [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": "3"}, "size is '3'"),
        ({"size": 3.0}, r"size is 3\.0"),
        ({"size": True}, "size is True"),
        ({"size": None}, "size is None"),
        ({"is_whole": 1}, "is_whole is 1"),
        ({"share": True}, "share is True"),
        ({"maybe": "x"}, "maybe is 'x'"),
        ({"inner": {}}, "inner is {}"),
        ({"inner": [1]}, r"inner\[0\] is 1"),
        ({"inner": [{"name": "a"}]}, r"'inner\[0\]\.shape' is missing"),
        ({"inner": [{"name": "a", "shape": [1.5]}]}, r"inner\[0\]\.shape\[0\] is 1\.5"),
        ({"inner": [{"name": "a", "shape": [], "color": 1}]}, r"unknown field 'inner\[0\]\.color'"),
        ({"ranges": {"x": [0]}}, r"ranges\.x is \[0\]"),
        ({"ranges": {"x": [0, 1, 2]}}, r"ranges\.x is \[0, 1, 2\]"),
        ({"ranges": {"x": [0, None]}}, r"ranges\.x\[1\] is None"),
        ({"profile": {"x": [1, "2"]}}, r"profile\.x\[1\] is '2'"),
        ({"color": 1}, "unknown field 'color'"),
        ({"later": 1}, "later is 1"),
    ],
)
def test_a_wrong_field_is_named_at_any_depth(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArtifactError, match=f"{FILE} is incomplete, has unknown fields or wrong values: {reason}"):
        record_from_json(Record, FILE, WHOLE | change)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(ArtifactError, match=f"wrong values: '{name}' is missing"):
        record_from_json(Record, FILE, {key: value for key, value in WHOLE.items() if key != name})


def test_a_huge_value_is_quoted_in_part() -> None:
    with pytest.raises(ArtifactError) as refused:
        record_from_json(Record, FILE, WHOLE | {"size": "x" * 10**6})
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is not readable JSON"),
        (b"\xff", "is not readable JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b"[]", "has format version None, this fsvit-edge reads 1; make it again"),
        (b'{"format_version": 2}', "has format version 2"),
        (b'{"format_version": 1.0}', r"has format version 1\.0"),
        (b'{"format_version": true}', "has format version True"),
        (b'{"format_version": 1, "share": NaN}', "NaN is not a JSON number"),
        (b'{"format_version": 1, "share": -Infinity}', "-Infinity is not a JSON number"),
    ],
)
def test_anything_but_an_object_of_this_version_is_refused(tmp_path: Path, text: bytes, reason: str) -> None:
    file = tmp_path / "record.json"
    file.write_bytes(text)
    with pytest.raises(ArtifactError, match=reason) as refused:
        read_json_object(file, 1, "make it again")
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_the_callers_to_handle(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "none.json", 1, "make it")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(WHOLE)), value=JSON)
def test_any_value_is_kept_as_it_is_or_refused(name: str, value: Any) -> None:
    kept = value
    with suppress(ArtifactError):
        kept = getattr(record_from_json(Record, FILE, WHOLE | {name: value}), name)
    assert json.loads(json.dumps(kept, default=vars)) == value
