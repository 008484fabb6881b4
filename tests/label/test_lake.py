"""Pictures of a store, by the file systems of pyarrow: here one of local files."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from label_album import scene, write_album

from fsvit_edge.label.lake import list_lake
from fsvit_edge.label.pictures import list_pictures
from fsvit_edge.runtime.errors import FsvitEdgeError, InputError, SourceError
from fsvit_edge.runtime.pictures import write_image

pytest.importorskip("pyarrow.fs", reason='pyarrow is not installed: pip install "fsvit-edge[ray]"')


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An album with what is left out: hidden files, masks beside pictures."""
    folder = tmp_path / "photos"
    write_album(folder)
    (folder / "gone.jpg").unlink()  # a store has no links
    for name in ("10.png", ".hidden.png", "a/images/1.png", "a/masks/1.png", "a2/x.JPG", "a10/x.png", ".git/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name.replace("JPG", "jpg"), scene(1))
    (folder / "notes.txt").write_text("x")
    (folder / "a2/x.jpg").rename(folder / "a2/x.JPG")
    return folder


def test_a_store_lists_what_a_folder_lists_in_its_order(photos: Path) -> None:
    found, expected = list_lake([f"file://{photos}"]), list_pictures([str(photos)])
    assert [one.name for one in found.entries] == [one.name for one in expected.entries]
    assert len(found.entries) > 8
    assert found.base == expected.base
    assert [found.version(one.name) for one in found.entries] == [expected.version(one.name) for one in found.entries]
    assert found.notes[0].endswith("photos, 1 videos are not read.")
    assert found.notes[1].endswith("photos/a/masks is left out: beside images/, masks/ has masks.")


def test_names_are_below_the_deepest_folder_of_all_sources(photos: Path) -> None:
    sources = [f"file://{photos}/a2/", f"file://{photos}/sub/5.jpg", f"file://{photos}/sub"]
    assert [one.name for one in list_lake(sources).entries] == ["a2/x.JPG", "sub/5.jpg"]


def test_a_reader_in_another_process_reads_the_same(photos: Path) -> None:
    found = list_lake([f"file://{photos}"])
    read = pickle.loads(pickle.dumps(found.reader))
    (image, size_hw), (wanted, wanted_hw) = read("1.png"), list_pictures([str(photos)]).reader("1.png")
    assert np.array_equal(image, wanted)
    assert size_hw == wanted_hw == wanted.shape[:2]
    for name, sentence in (
        ("empty.jpg", "empty.jpg is empty"),
        ("cut.png", "is damaged"),
        ("none.png", "none.png cannot be read"),
    ):
        with pytest.raises(FsvitEdgeError, match=sentence) as error:
            read(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sources", "kind", "sentence"),
    [
        (["file:///none/here"], SourceError, "file:///none/here does not exist; check the address."),
        (["file:///proc/self/fdinfo"], InputError, "has no pictures"),
        (["nfs2://host/folder"], SourceError, "nfs2://host/folder cannot be read: "),
        (["file:///a", "s3://bucket/b"], InputError, "The sources are in several stores"),
        (["s3://one/b", "s3://two/b"], InputError, "The sources are in several stores"),
        (["file:///a", "photos"], InputError, "The sources are in several stores"),
    ],
)
def test_what_cannot_be_listed_is_told(sources: list[str], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=re.escape(sentence)):
        list_lake(sources)
