"""Names of several sources, the list of cameras, and the sinks that have a place for a name."""

from pathlib import Path

import pytest

from fsvit_edge.live.run import RunOptions, run_source
from fsvit_edge.live.sinks.base import EventOptions
from fsvit_edge.live.sinks.open import refuse_other_places, sinks_of_sources, snapshots_of_sources
from fsvit_edge.live.sources.names import read_cameras, source_names
from fsvit_edge.runtime.errors import InputError


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["door.mp4", "hall/door.mp4", "door.avi"], ["door", "door-2", "door-3"]),
        (["0", "/dev/video2", "csi://0", "demo"], ["0", "video2", "csi-0", "demo"]),
        (["rtsp://me:secret@192.168.1.20:8554/a", "http://Yard.local/b"], ["192.168.1.20", "yard.local"]),
        (["rtsp://[fe80::1]/a"], ["fe80_1"]),
        (["my film #1+.mp4", "Küche.mp4", ".hidden.mp4"], ["my_film_1_", "Küche", "hidden"]),
        (["+++.mp4", "x" * 60 + ".mp4", "x" * 60 + ".avi"], ["_", "x" * 40, "x" * 38 + "-2"]),
    ],
)
def test_a_name_comes_from_the_source_and_fits_into_paths_and_topics(sources: list[str], names: list[str]) -> None:
    named = source_names((None, source) for source in sources)
    assert list(named.items()) == list(zip(names, sources, strict=True))


def test_the_name_of_a_folder_is_whole(tmp_path: Path) -> None:
    (tmp_path / "day.1").mkdir()
    assert list(source_names([(None, f"{tmp_path}/day.1/")])) == ["day.1"]


def test_a_given_name_is_kept_and_a_derived_one_makes_room() -> None:
    named = source_names([(None, "door.mp4"), ("door", "rtsp://host/a")])
    assert named == {"door-2": "door.mp4", "door": "rtsp://host/a"}


@pytest.mark.parametrize("name", ["", "a/b", "a b", "..", "-a", "a+", "a#", "x" * 41, "a\n"])
def test_a_name_that_fits_no_path_or_topic_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"must be 1 to 40 letters, digits or \. _ -"):
        source_names([(name, "0")])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="Two sources have the name 'door'"):
        source_names([("door", "0"), ("door", "1")])


def test_a_list_of_cameras_has_names_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    path.write_text(
        "# the house\n\n  door = rtsp://me:a=b#c@host/stream?x=1   # at the left\nhall=1\n0\nhttp://host/a?b=c\n./a=b.mp4\n"
    )
    assert read_cameras(path) == [
        ("door", "rtsp://me:a=b#c@host/stream?x=1"),
        ("hall", "1"),
        (None, "0"),
        (None, "http://host/a?b=c"),
        (None, "./a=b.mp4"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "it is not UTF-8 text"),
        (b"# none\n", "has no source"),
        (b"\0" * 100_001, "it is longer than 100,000 bytes"),
        (b"# none\na = 0\nb =\n", "Line 3 of the list of cameras .*: The name 'b' has no source"),
        (b"a b = 0", "Line 1 of the list of cameras .*: The name 'a b' of a source must be"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "cameras.txt").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_cameras(tmp_path / "cameras.txt")


def test_a_list_from_windows_or_without_an_end_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    path.write_bytes(b"\xef\xbb\xbfdoor = 0\r\nhall = 1\r\n")
    assert read_cameras(path) == [("door", "0"), ("hall", "1")]
    with pytest.raises(InputError, match="it is longer than"):
        read_cameras(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("uri", "sinks"),
    [
        ("out-{source}.mp4", [("a", "out-a.mp4"), ("b", "out-b.mp4")]),
        ("mqtt://host/home/{source}", [("a", "mqtt://host/home/a"), ("b", "mqtt://host/home/b")]),
        ("{source}/", [("a", "a/"), ("b", "b/")]),
        *((uri, [(None, uri)]) for uri in ("out.jsonl", "-", "http://127.0.0.1:8080")),
    ],
)
def test_a_sink_has_a_place_for_the_name_or_says_of_what_each_result_is(
    uri: str, sinks: list[tuple[str | None, str]]
) -> None:
    assert sinks_of_sources(uri, ["a", "b"]) == sinks


@pytest.mark.parametrize(
    ("uri", "own"),
    [
        ("out.mp4", "out-{source}.mp4"),
        ("deep/out.MP4", "deep/out-{source}.MP4"),
        ("pictures/", "pictures/{source}/"),
        ("mqtt://me:secret@host/home", "mqtt://host/home/{source}"),
    ],
)
def test_what_several_sources_would_write_is_refused_and_one_may(uri: str, own: str) -> None:
    with pytest.raises(InputError) as refused:
        sinks_of_sources(uri, ["a", "b"])
    assert "2 sources would write to" in str(refused.value)
    assert str(refused.value).endswith(f"as in: --sink {own}")
    assert "secret" not in str(refused.value)
    assert sinks_of_sources(uri, ["a"]) == [(None, uri)]


def test_an_existing_folder_is_one_even_without_a_slash(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"as in: --sink .*/\{source\}/$"):
        sinks_of_sources(str(tmp_path), ["a", "b"])


def test_snapshots_have_a_folder_for_each_source() -> None:
    assert snapshots_of_sources(Path("shots/{source}"), ["a", "b"]) == [("a", Path("shots/a")), ("b", Path("shots/b"))]
    with pytest.raises(InputError, match=r"as in: --snapshots shots/\{source\}$"):
        snapshots_of_sources(Path("shots"), ["a", "b"])
    assert snapshots_of_sources(Path("shots"), ["a"]) == [("a", Path("shots"))]


@pytest.mark.parametrize(
    ("sink", "place"),
    [
        ("{Source}/out.jsonl", "{Source}"),
        ("out-{sources}.mp4", "{sources}"),
        ("{source}/{name}.jsonl", "{name}"),
        ("{}/", "{}"),
        ("mqtt://me:pa{ss}@host/{Source}", "{Source}"),
    ],
)
def test_a_place_that_is_spelled_wrong_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        run_source({"a": "none.mp4", "b": "none.mp4"}, [sink])
    assert str(refused.value) == (
        f"Unknown place {place} in --sink; the only one is {{source}}, for the name of a source."
    )
    assert list(tmp_path.iterdir()) == []


def test_braces_of_a_password_or_of_a_folder_that_exists_are_no_place(tmp_path: Path) -> None:
    (tmp_path / "{name}").mkdir()
    refuse_other_places("--sink", str(tmp_path / "{name}" / "out-{source}.mp4"))
    refuse_other_places("--health", str(tmp_path / "{name}" / "health.json"), has_place=False)
    refuse_other_places("--sink", f"masks:{tmp_path / '{name}'}/")
    refuse_other_places("--sink", "mqtt://me:pa{ss}@host/{source}")
    with pytest.raises(InputError, match=r"Unknown place \{Name\} in --sink"):
        refuse_other_places("--sink", str(tmp_path / "{Name}" / "out-{source}.mp4"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (RunOptions(health_file=Path("{source}.json")), "--health has no place for names, got {source}: its file is"),
        (RunOptions(bank=Path("{name}.safetensors")), "--bank has no place for names, got {name}: its file is one"),
        (
            RunOptions(events=EventOptions(snapshots=Path("{Source}"))),
            "Unknown place {Source} in --snapshots; the only",
        ),
    ],
)
def test_other_options_have_no_place_or_the_same(options: RunOptions, reason: str) -> None:
    with pytest.raises(InputError) as refused:
        run_source({"a": "none.mp4", "b": "none.mp4"}, ["-"], options)
    assert str(refused.value).startswith(reason)


def test_a_run_refuses_before_it_opens_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"2 sources would write to out\.mp4"):
        run_source({"a": "none.mp4", "b": "none.mp4"}, ["out.mp4"])
    with pytest.raises(InputError, match="2 sources would write to shots"):
        run_source({"a": "none.mp4", "b": "none.mp4"}, [], RunOptions(events=EventOptions(snapshots=Path("shots"))))
    assert list(tmp_path.iterdir()) == []


def test_a_sink_of_one_source_must_not_overwrite_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.mp4").write_bytes(b"film")
    with pytest.raises(InputError, match=r"The sink b\.mp4 is the source, which it would overwrite"):
        run_source({"b": "x.mp4", "c": "b.mp4"}, ["{source}.mp4"])
